"""A run's summary: the metrics of its evaluations, its costs, and what is needed to repeat it."""

from __future__ import annotations

import json
import math
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fedcl import __version__, metrics
from fedcl.config import Experiment
from fedcl.core.data.stream import Stream
from fedcl.core.errors import ConfigError
from fedcl.decomposition import PAYLOAD, by_task, loss_decomposition, mean
from fedcl.evaluations import accuracy_matrix, over_clients
from fedcl.record import Record, Row

_NUMBERS = (
    *("accuracy_matrix", "untrained_accuracy", "average_accuracy", "average_accuracy_by_stage"),
    *("pooled_accuracy", "average_incremental_accuracy", "forgetting", "forgetting_first_last"),
    *("forgetting_clipped", "backward_transfer", "forward_transfer", "learning_accuracy"),
    *("intransigence", "anytime_accuracy"),
)


def summarise(
    experiment: Experiment, stream: Stream, record: Record, joint: Sequence[float] | None
) -> dict[str, Any]:
    """Returns the contents of summary.json, without wall time and engine.

    Args:
        experiment: The experiment.
        stream: Its stream.
        record: Its finished tables.
        joint: Accuracies a*_j of a reference run, or None.
    """
    split = main_split(experiment)
    accuracies = [
        row for row in record.evaluations if row["metric"] == "accuracy" and row["split"] == split
    ]
    # What is evaluated only to decompose a round changes no other number.
    is_planned, rounds = experiment.evaluation.is_planned, experiment.training.rounds
    rows = [
        row for row in accuracies if row["model"] != "local" and is_planned(row["round"], rounds)
    ]
    matrices = _matrices(rows)
    if not any(row["client"] is None for row in rows):  # clients were asked, and nobody answered
        numbers = dict.fromkeys(_NUMBERS)
    elif stream.order.shared:
        numbers = _shared(rows, stream, split, joint)
    else:
        numbers = _own_orders(rows, matrices)
    names = experiment.names
    up, down = _bytes(record.costs, "up"), _bytes(record.costs, "down")
    return {
        "method": names["method"],
        "stream": names["stream"],
        "scenario": stream.scenario,
        "seed": experiment.seed,
        "dataset": names["dataset"],
        "model": names["model"],
        "split": split,
        "evaluated_by": None
        if stream.elsewhere and experiment.evaluation.where == "server"
        else experiment.evaluation.where,
        **numbers,
        **_losses(accuracies, len(stream.tasks), split),
        "clients": _clients(matrices),
        "bytes_up": sum(up.values()),
        "bytes_down": sum(down.values()),
        "bytes_by_payload": {"up": up, "down": down},
        "steps": _work(record.costs, "steps"),
        "examples": _work(record.costs, "examples"),
        "versions": versions(),
    }


def _shared(
    rows: Sequence[Row], stream: Stream, split: str, joint: Sequence[float] | None
) -> dict[str, Any]:
    table = accuracy_matrix(rows, split=split, tasks=len(stream.tasks))
    matrix, last = table.matrix, len(table.matrix) - 1
    sizes = table.sizes[last]
    pooled = stream.scenario != "task"
    forward = (
        metrics.forward_transfer(matrix, table.untrained) if stream.scenario != "class" else None
    )
    return _plain(
        accuracy_matrix=matrix.tolist(),
        untrained_accuracy=table.untrained.tolist(),
        average_accuracy=metrics.average_accuracy(matrix),
        average_accuracy_by_stage=[metrics.average_accuracy(matrix, k) for k in range(len(matrix))],
        pooled_accuracy=metrics.pooled_accuracy(matrix[last], sizes),
        average_incremental_accuracy=metrics.average_incremental_accuracy(
            matrix, table.sizes if pooled else None
        ),
        forgetting=metrics.forgetting(matrix),
        forgetting_first_last=metrics.forgetting_first_last(matrix),
        forgetting_clipped=metrics.forgetting_clipped(matrix),
        backward_transfer=metrics.backward_transfer(matrix),
        forward_transfer=forward,
        learning_accuracy=metrics.learning_accuracy(matrix),
        intransigence=None if joint is None else metrics.intransigence(matrix, joint),
        anytime_accuracy=metrics.anytime_accuracy(table.curve, table.stages)
        if len(table.curve)
        else None,
    )


def _own_orders(rows: Sequence[Row], per_client: Mapping[int, Any]) -> dict[str, Any]:
    """Returns what can be said without a common matrix: the final row, and means over clients."""
    ends = [
        row for row in rows if row["client"] is None and row["model"] == "global" and row["round"]
    ]
    final_round = max((row["round"] for row in ends), default=0)
    final = {row["task"]: row for row in ends if row["round"] == final_round}
    accuracies = [final[task]["value"] for task in sorted(final)]
    sizes = [final[task]["n"] for task in sorted(final)]
    means = {
        name: _mean([getattr(metrics, name)(matrix) for matrix in per_client.values()])
        for name in (
            "forgetting",
            "forgetting_first_last",
            "forgetting_clipped",
            "backward_transfer",
            "learning_accuracy",
        )
    }
    return _plain(
        accuracy_matrix=None,
        untrained_accuracy=None,
        average_accuracy=float(np.mean(accuracies)) if accuracies else None,
        average_accuracy_by_stage=None,
        pooled_accuracy=metrics.pooled_accuracy(accuracies, sizes) if accuracies else None,
        average_incremental_accuracy=None,
        forward_transfer=None,
        intransigence=None,
        anytime_accuracy=None,
        **means,
    )


def _losses(rows: Sequence[Row], tasks: int, split: str) -> dict[str, Any]:
    """Returns what local training and aggregation lost on old tasks, in all decomposed rounds."""
    found = by_task(loss_decomposition(rows, split=split))
    names = ("local_update_loss", "aggregation_loss")
    if not found:
        return dict.fromkeys((*names, *(f"{name}_by_task" for name in names)))
    every = [found.get(task) for task in range(tasks)]
    return {name: float(part) for name, part in zip(names, mean(found.values()), strict=True)} | {
        f"{name}_by_task": [None if loss is None else float(loss[half]) for loss in every]
        for half, name in enumerate(names)
    }


def _matrices(rows: Sequence[Row]) -> dict[int, Any]:
    """Returns each recorded client's own square matrix."""
    by_client: dict[int, list[Row]] = {}
    for row in rows:
        if row["client"] is not None:
            by_client.setdefault(row["client"], []).append(row)
    personal = any(row["model"] == "personal" for row in rows)
    model, split = "personal" if personal else "global", rows[0]["split"] if rows else "test"
    return {
        id: accuracy_matrix(own, split=split, model=model, client=id).matrix
        for id, own in by_client.items()
        if any(row["round"] for row in own)
    }


def _clients(matrices: Mapping[int, Any]) -> dict[str, Any] | None:
    if not matrices:
        return None
    result: dict[str, Any] = {}
    for name, better in (("average_accuracy", True), ("forgetting", False)):
        values = {id: getattr(metrics, name)(matrix) for id, matrix in matrices.items()}
        if all(math.isnan(value) for value in values.values()):
            result[name] = None
            continue
        found = over_clients(values, higher_is_better=better)
        result[name] = _plain(
            mean=found.mean,
            std=found.std,
            worst=found.worst,
            worst_client=found.worst_client,
            count=found.count,
        )
    return result


def _work(costs: Sequence[Row], column: str) -> int:
    """Returns what the clients did: without those that were trained once more to be looked at."""
    return sum(row[column] or 0 for row in costs if row["payload"] != PAYLOAD)


def _bytes(costs: Sequence[Row], direction: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for row in costs:
        if row["direction"] == direction:
            total[row["payload"]] += row["bytes"]
    return dict(sorted(total.items()))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _plain(**values: Any) -> dict[str, Any]:
    """Returns values that JSON can hold: NaN becomes null."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(part) for part in value]
        if isinstance(value, float):
            return None if math.isnan(value) else float(value)
        return value

    return {key: clean(value) for key, value in values.items()}


def main_split(experiment: Experiment) -> str:
    """Returns the split that a summary speaks of: `test` when it is evaluated."""
    splits = experiment.evaluation.splits
    return "test" if "test" in splits else splits[0]


def versions() -> dict[str, str]:
    """Returns the versions of what a result depends on."""
    found = {"fedcl": __version__, "python": platform.python_version(), **_installed()}
    return {**found, "platform": f"{sys.platform} {platform.machine()}"}


@cache
def _installed() -> Mapping[str, str]:
    # Each is read from a long text, which would take a tenth of a tiny run.
    found = {}
    for package in ("torch", "numpy", "scipy", "ray", "flwr", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read_reference(folder: str, experiment: Experiment, stream: Stream) -> list[float] | None:
    """Returns a*_j = R[j, j] of a joint run: after stage j its model was trained on tasks 0 to j.

    Args:
        folder: Folder of the joint run; empty for none.
        experiment: The experiment that it is a reference for.
        stream: Its stream.

    Raises:
        ConfigError: The folder holds no finished joint run, or one on another stream.
    """
    if not folder:
        return None
    if not stream.order.shared:
        raise ConfigError(
            "[evaluation] reference needs the accuracy matrix of all, but clients have orders of "
            "their own: leave it out"
        )
    path = Path(folder) / "summary.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        matrix = found["accuracy_matrix"]
        if found["method"] != "joint" or matrix is None:
            raise ValueError(f"it is a run of {found['method']!r}")
        own = {
            **experiment.names,
            "split": main_split(experiment),
            "evaluated_by": experiment.evaluation.where,
        }
        found.setdefault("evaluated_by", "server")
        for key in ("dataset", "stream", "split", "evaluated_by"):
            if found[key] != own[key]:
                raise ValueError(f"its {key} is {found[key]!r}, not {own[key]!r}")
        if len(matrix) != len(stream.tasks):
            raise ValueError(f"it has {len(matrix)} tasks, not {len(stream.tasks)}")
        return [float(matrix[j][j]) for j in range(len(matrix))]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(
            f"[evaluation] reference {folder!r} is no finished run of method joint on this stream "
            f"({type(error).__name__}: {error}): name the folder of one"
        ) from error
