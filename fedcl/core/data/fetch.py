"""Examples from rows: the inputs are fetched and transformed when asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedcl.core.data.scenario import InputTransform, Task
from fedcl.core.data.table import IntArray, Table
from fedcl.core.task import Examples

_CHUNK = 2**16  # values that are fetched and transformed at once: they fit the processor's cache


def fetch(table: Table, rows: IntArray, transform: InputTransform | None) -> Examples:
    """Returns the examples of some rows: x (n, ...) float32 and y (n,), fresh ones each time."""
    x = table.rows(rows) if transform is None else _transformed(table, rows, transform)
    labels = table.labels[rows]
    return Examples(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(labels))


@dataclass(frozen=True)
class Rows:
    """Rows of one split, with the task that each is of; what they hold is fetched when asked for.

    Attributes:
        table: The split.
        tasks: The tasks of the stream.
        rows: (n,) rows of the split.
        of: (n,) task of each row, or the one task of all.
    """

    table: Table
    tasks: Sequence[Task]
    rows: IntArray
    of: IntArray | int

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, order: IntArray | None = None) -> Examples:
        """Returns the examples in the order of their rows, or those at the places `order`.

        The rows of one task are fetched together, wherever they stand.
        """
        rows = self.rows if order is None else self.rows[order]
        if isinstance(self.of, int):
            return fetch(self.table, rows, self.tasks[self.of].transform)
        of = self.of if order is None else self.of[order]
        met = np.unique(of).tolist()
        found = {t: fetch(self.table, rows[of == t], self.tasks[t].transform).x for t in met}
        x = np.empty((len(rows), *found[met[0]].shape[1:]), dtype=np.float32)
        for task, inputs in found.items():
            x[of == task] = inputs.numpy()
        return Examples(torch.from_numpy(x), torch.from_numpy(self.table.labels[rows]))


def join_rows(table: Table, tasks: Sequence[Task], parts: Sequence[tuple[int, IntArray]]) -> Rows:
    """Returns the rows of `parts`, pairs of a task and its rows, one after the other."""
    rows = np.concatenate([part for _, part in parts])
    if len({task for task, _ in parts}) == 1:
        return Rows(table, tasks, rows, parts[0][0])
    of = np.repeat([task for task, _ in parts], [len(part) for _, part in parts])
    return Rows(table, tasks, rows, of.astype(np.int64))


def _transformed(
    table: Table, rows: IntArray, transform: InputTransform
) -> npt.NDArray[np.float32]:
    shape = table.rows(rows[:1]).shape[1:]
    step = max(1, _CHUNK // max(1, math.prod(shape)))
    if len(rows) <= step:
        return transform(table.rows(rows))
    x = np.empty((len(rows), *shape), dtype=np.float32)
    for start in range(0, len(rows), step):
        x[start : start + step] = transform(table.rows(rows[start : start + step]))
    return x
