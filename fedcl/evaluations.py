"""A run's evaluations: its long table as accuracy matrices and curves, one metric over clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AccuracyTable:
    """Accuracies as `fedcl.metrics` takes them; NaN where the table has no row or no value.

    Attributes:
        matrix: (T, T) accuracy on each task at the end of each stage, R[stage, task].
        sizes: (T, T) numbers of test examples behind `matrix`.
        untrained: (T,) accuracies b_j of the untrained model, those of round 0.
        curve: (P, T) accuracies at each evaluated round from 1 on.
        stages: (P,) stage that each of these rounds lies in.
    """

    matrix: FloatArray
    sizes: FloatArray
    untrained: FloatArray
    curve: FloatArray
    stages: npt.NDArray[np.int64]


def accuracy_matrix(
    rows: Iterable[Mapping[str, Any]],
    *,
    split: str = "test",
    model: str = "global",
    client: int | None = None,
    tasks: int | None = None,
) -> AccuracyTable:
    """Returns the accuracies in rows with the columns of evaluations.csv, as text or as numbers.

    A stage ends with its last evaluated round; a task without a row in that round is missing there,
    even if an earlier round has one. With `client`, tasks come in the order in which that client
    met them: it has rows from then on only. Its stage i ends with the last evaluation of the stage
    in which it met its i-th task (recurring tasks begin no stage), its last with its last one.

    Args:
        rows: The table; rows of other metrics, splits, models and clients are skipped.
        split: `test`, `validation` or `train`.
        model: `global`, `local` or `personal`.
        client: A client's id; None for the union test set of the server.
        tasks: T, the stages and tasks of the stream; by default as many as the rows show. A client
            has as many as it met.

    Raises:
        ValueError: A column is missing, nothing was evaluated, one evaluation stands there twice,
            or a stage or task is not among `tasks`.
    """
    cells: dict[int, dict[int, tuple[float, float]]] = {}  # round, task: accuracy, size
    stage_of: dict[int, int] = {}
    for row in rows:
        if not _is_wanted(row, split, model, client):
            continue
        at, stage, task = (int(cell(row, column)) for column in ("round", "stage", "task"))
        if task in cells.setdefault(at, {}):
            raise ValueError(f"round {at} has two accuracies of model {model!r} on task {task}")
        if stage_of.setdefault(at, stage) != stage:
            raise ValueError(f"round {at} lies in two stages, {stage_of[at]} and {stage}")
        cells[at][task] = _number(cell(row, "value")), _number(cell(row, "n"))
    rounds = sorted(at for at in cells if at > 0)  # round 0 is before any stage
    if not (cells if client is None else rounds):
        of = "the union test set" if client is None else f"client {client}"
        raise ValueError(f"no accuracy of model {model!r} on split {split!r} for {of}")
    if client is None:
        shown = 1 + max(*stage_of.values(), *(task for at in cells for task in cells[at]))
        order = list(range(shown if tasks is None else tasks))
        if shown > len(order):
            raise ValueError(f"rows show stage or task {shown - 1}, but there are {tasks} tasks")
        ends = {stage_of[at]: at for at in rounds}
    else:
        order = list(dict.fromkeys(task for at in rounds for task in sorted(cells[at])))
        met: set[int] = set()
        own: dict[int, int] = {}  # the client's own stage by round
        for at in rounds:
            met.update(cells[at])
            own[at] = len(met) - 1
        began = {own[at]: stage_of[at] for at in reversed(rounds)}
        ends = {own[at]: at for at in rounds if stage_of[at] == began[own[at]]}
        ends[len(order) - 1] = rounds[-1]
        stage_of = own
    table = [[cells.get(at, {}).get(j, (np.nan, np.nan)) for j in order] for at in (0, *rounds)]
    values = np.array(table, dtype=np.float64).reshape(len(table), len(order), 2)
    position = {at: index for index, at in enumerate((0, *rounds))}
    matrix = np.full((len(order), len(order), 2), np.nan)
    for stage, at in ends.items():
        matrix[stage] = values[position[at]]
    stages = np.array([stage_of[at] for at in rounds], dtype=np.int64)
    return AccuracyTable(matrix[..., 0], matrix[..., 1], values[0, :, 0], values[1:, :, 0], stages)


@dataclass(frozen=True)
class ClientSummary:
    """One metric over clients.

    Attributes:
        mean: Mean over the clients that have a value; NaN, as the next two, when none has.
        std: Population standard deviation (divided by `count`).
        worst: The worst value.
        worst_client: Id of the client with it, the lowest on a tie; None when none has a value.
        count: Clients with a value.
        missing: Clients without, such as one that met a single task and has nothing to forget.
    """

    mean: float
    std: float
    worst: float
    worst_client: int | None
    count: int
    missing: int


def over_clients(
    values: Mapping[int, float | None], *, higher_is_better: bool = True
) -> ClientSummary:
    """Returns the summary of a metric given by client id; NaN and None count as missing.

    Args:
        values: The metric by client.
        higher_is_better: True for accuracies and transfers, False for forgetting, intransigence
            and losses: it decides which value is the worst.

    Raises:
        ValueError: There are no clients at all.
    """
    if not values:
        raise ValueError("values is empty: there are no clients to summarise")
    known = {i: float(v) for i, v in sorted(values.items()) if v is not None and not np.isnan(v)}
    missing = len(values) - len(known)
    if not known:
        nan = float("nan")
        return ClientSummary(nan, nan, nan, worst_client=None, count=0, missing=missing)
    worst = (min if higher_is_better else max)(known, key=known.__getitem__)
    numbers = np.array(list(known.values()))
    mean, std = float(numbers.mean()), float(numbers.std())
    return ClientSummary(mean, std, known[worst], worst, len(known), missing)


def cell(row: Mapping[str, Any], column: str) -> Any:
    """Returns a row's cell; raises ValueError for a column that is missing."""
    try:
        return row[column]
    except KeyError:
        raise ValueError(f"a row of evaluations lacks the column {column!r}") from None


def _is_wanted(row: Mapping[str, Any], split: str, model: str, client: int | None) -> bool:
    owner = cell(row, "client")
    return (
        cell(row, "metric") == "accuracy"
        and cell(row, "split") == split
        and cell(row, "model") == model
        and ("" if owner is None else str(owner)) == ("" if client is None else str(client))
    )


def _number(value: Any) -> float:
    return float("nan") if value is None or value == "" else float(value)
