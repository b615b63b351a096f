"""Examples from rows: the inputs are fetched and transformed when asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fedcl.core.dataset import IntArray, Table
from fedcl.core.scenario import InputTransform, Task
from fedcl.core.task import Examples

_CHUNK = 2**16  # values that are fetched and transformed at once: they fit the processor's cache


def fetch(table: Table, rows: IntArray, transform: InputTransform | None) -> Examples:
    """Returns the examples of some rows: x (n, ...) float32 and y (n,), fresh ones each time."""
    x = table.rows(rows) if transform is None else _transformed(table, rows, transform)
    labels = table.labels[rows]
    return Examples(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(labels))


def fetch_mixed(
    table: Table, tasks: Sequence[Task], parts: Sequence[tuple[int, IntArray]]
) -> Examples:
    """Returns the examples of `parts`, pairs of a task and rows, one after the other.

    The rows of one task are fetched together, wherever they stand.
    """
    rows = np.concatenate([part for _, part in parts])
    met = {task for task, _ in parts}
    if len(met) == 1:
        return fetch(table, rows, tasks[met.pop()].transform)
    of = np.repeat([task for task, _ in parts], [len(part) for _, part in parts])
    found = {task: fetch(table, rows[of == task], tasks[task].transform).x for task in met}
    x = np.empty((len(rows), *found[parts[0][0]].shape[1:]), dtype=np.float32)
    for task, inputs in found.items():
        x[of == task] = inputs.numpy()
    return Examples(torch.from_numpy(x), torch.from_numpy(table.labels[rows]))


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
