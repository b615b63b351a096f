"""Views of a run's evaluations: curves over rounds, the matrices of its clients."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

import numpy as np
import numpy.typing as npt

from fedcl.evaluations import accuracy_matrix
from fedcl.reporting.results import Evaluation, Matrix, Run, damage

FloatArray = npt.NDArray[np.float64]
Curve = dict[int, float]


def task_curves(run: Run) -> dict[int, Curve]:
    """Returns for each task its accuracy on the union test set by finished rounds."""
    curves: dict[int, Curve] = defaultdict(dict)
    for row in run.evaluations:
        if row.client is None:
            curves[row.task][row.round] = row.value
    return {task: dict(sorted(curves[task].items())) for task in sorted(curves)}


def seen_curve(run: Run) -> Curve:
    """Returns the mean over tasks met so far by rounds; empty where clients' orders differ."""
    values: dict[int, dict[int, float]] = defaultdict(dict)
    for row in run.evaluations:
        if row.client is None and row.task <= row.stage and run.matrix is not None:
            values[row.round][row.task] = row.value
    return {finished: fmean(values[finished].values()) for finished in sorted(values)}


def stage_ends(run: Run) -> list[int]:
    """Returns the last round of each stage, counted over the whole run."""
    ends: dict[int, int] = {}
    for row in run.evaluations:
        ends[row.stage] = max(row.round, ends.get(row.stage, 0))
    return [ends[stage] for stage in sorted(ends)]


def client_matrices(run: Run) -> dict[int, FloatArray]:
    """Returns each client's own (T, T) accuracies, tasks in the order in which it met them.

    A personal model goes before the global one. METRICS.md's formulas apply to each matrix.
    """
    clients: dict[int, list[Evaluation]] = defaultdict(list)
    for row in run.evaluations:
        if row.client is not None and row.round > 0:
            clients[row.client].append(row)
    models = {row.model for rows in clients.values() for row in rows}
    model = "personal" if "personal" in models else "global"
    matrices = {}
    for client, own in sorted(clients.items()):
        rows = [row._asdict() | {"metric": "accuracy"} for row in own if row.model == model]
        try:
            table = accuracy_matrix(rows, split=run.split, model=model, client=client)
        except ValueError as error:
            raise damage(run.path, "evaluations.csv", f"contradicts itself ({error})") from error
        matrices[client] = table.matrix
    return matrices


def client_values(
    matrices: Mapping[int, FloatArray], metric: Callable[[FloatArray], float]
) -> dict[int, float]:
    """Returns a metric of each client's own matrix, without the clients that have none."""
    values = {client: metric(matrix) for client, matrix in matrices.items()}
    return {client: value for client, value in values.items() if not math.isnan(value)}


def mean_matrix(matrices: Iterable[FloatArray]) -> Matrix:
    """Returns the mean over clients of their own matrices, cell by cell over those that have it."""
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for matrix in matrices:
        for cell in np.argwhere(~np.isnan(matrix)):
            cells[cell[0], cell[1]].append(float(matrix[tuple(cell)]))
    size = 1 + max((max(cell) for cell in cells), default=-1)
    mean = {cell: fmean(values) for cell, values in cells.items()}
    return [[mean.get((i, j)) for j in range(size)] for i in range(size)]


def payloads(run: Run) -> list[str]:
    """Returns the kinds of payload, that with most bytes first."""
    flows = list(run.traffic.values())
    kinds = dict.fromkeys(kind for flow in flows for kind in flow)
    return sorted(kinds, key=lambda kind: -sum(flow.get(kind, 0) for flow in flows))
