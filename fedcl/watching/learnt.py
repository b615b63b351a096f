"""What a run has learnt and forgotten so far: its evaluations, before there is a summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedcl import metrics
from fedcl.evaluations import AccuracyTable, accuracy_matrix
from fedcl.watching.sources import Row


@dataclass(frozen=True)
class TaskNow:
    """How well a task is known.

    Attributes:
        task: The task.
        accuracy: Accuracy when last evaluated, in [0, 1].
        lost: Its best accuracy at the end of an earlier stage, minus that; None of the present
            task. The mean is the forgetting.
    """

    task: int
    accuracy: float
    lost: float | None


@dataclass(frozen=True)
class Learnt:
    """How well tasks are known; None where there is no such number yet.

    Attributes:
        tasks: The tasks that were met and evaluated.
        forgetting: As `fedcl.metrics.forgetting`, of the stages so far: within a stage its last
            evaluation stands for its end. Where clients have orders of their own it is the mean
            over clients, each in its own.
        evaluated: Finished rounds of the run at the last evaluation.
    """

    tasks: tuple[TaskNow, ...] = ()
    forgetting: float | None = None
    evaluated: int | None = None

    @property
    def accuracy(self) -> float | None:
        """Mean over the tasks."""
        known = [task.accuracy for task in self.tasks]
        return sum(known) / len(known) if known else None


def learnt(rows: Sequence[Row], shared: bool) -> Learnt:
    """Returns what a run has learnt so far.

    Args:
        rows: Accuracies, with the columns of evaluations.csv.
        shared: Whether all clients meet the same task at the same stage.
    """
    splits = {row["split"] for row in rows}
    split = next((name for name in ("test", "validation") if name in splits), "test")
    try:
        table = accuracy_matrix(rows, split=split)
    except ValueError:  # nobody has evaluated anything
        return Learnt()
    evaluated = max(int(row["round"]) for row in rows)
    if not len(table.curve):
        return Learnt(evaluated=evaluated)
    last = int(table.stages[-1]) if shared else len(table.matrix) - 1
    if shared:
        forgotten = metrics.forgetting(table.matrix[: last + 1, : last + 1])
    else:
        forgotten = _by_clients(rows, split)
    tasks = tuple(
        TaskNow(task, float(value), _lost(table, task, last) if shared else None)
        for task, value in enumerate(table.curve[-1][: last + 1])
        if not math.isnan(value)
    )
    return Learnt(tasks, None if math.isnan(forgotten) else forgotten, evaluated)


def _lost(table: AccuracyTable, task: int, last: int) -> float | None:
    before = table.matrix[:last, task] if task < last else ()
    ends = [end for end in before if not math.isnan(end)]
    return float(max(ends) - table.curve[-1][task]) if ends else None


def _by_clients(rows: Sequence[Row], split: str) -> float:
    """Returns the mean over clients, each in its own order, as a finished run's summary does."""
    by_client: dict[int, list[Row]] = {}
    for row in rows:
        if row["client"] not in (None, ""):
            by_client.setdefault(int(row["client"]), []).append(row)
    model = "personal" if any(row["model"] == "personal" for row in rows) else "global"
    found = []
    for client, own in by_client.items():
        if any(int(row["round"]) for row in own):
            table = accuracy_matrix(own, split=split, model=model, client=client)
            found.append(metrics.forgetting(table.matrix))
    known = [value for value in found if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
