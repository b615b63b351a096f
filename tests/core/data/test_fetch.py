"""Examples from rows: in parts, mixed, and always the same bits."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fedcl.core.data.fetch import fetch, join_rows
from fedcl.core.data.scenario import Task
from fedcl.core.data.table import ArrayTable
from tests.core import toys


@dataclass(frozen=True)
class Halve:
    """Halves every input, and knows the largest batch that it was given."""

    batches: list[int]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.batches.append(len(x))
        return x / np.float32(2)


def table(rows: int, features: int) -> ArrayTable:
    values = np.random.default_rng(0).integers(0, 255, (rows, features)).astype(np.uint8)
    return ArrayTable(values, toys.ints(np.arange(rows) % 3), scale=1 / 255)


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200])
def test_large_fetches_are_transformed_in_parts(rows: int) -> None:
    source, change = table(200, 1024), Halve([])
    chosen = toys.ints(np.random.default_rng(1).permutation(200)[:rows])
    found = fetch(source, chosen, change)
    assert np.array_equal(found.x.numpy(), source.rows(chosen) / np.float32(2))
    assert found.y.tolist() == source.labels[chosen].tolist()
    # 64 rows of 1024 values are as many as are made at once.
    assert max(change.batches) <= 64
    assert (found.x.dtype, found.x.shape) == (torch.float32, (rows, 1024))


def test_rows_of_several_tasks_keep_their_places() -> None:
    source = table(30, 4)
    none = toys.ints([])
    tasks = [
        Task(t, str(t), (0, 1, 2), none, none, none, none, change)
        for t, change in enumerate((None, Halve([]), None))
    ]
    parts = [(1, [3, 4]), (0, [5]), (1, []), (2, [3]), (1, [29])]
    found = join_rows(source, tasks, [(task, toys.ints(rows)) for task, rows in parts]).take()
    alone = [fetch(source, toys.ints(rows), tasks[task].transform) for task, rows in parts]
    assert torch.equal(found.x, torch.cat([one.x for one in alone]))
    assert torch.equal(found.y, torch.cat([one.y for one in alone]))
