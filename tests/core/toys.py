"""Small data sets whose inputs say which row they are, and clients made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedcl.core.client import Client
from fedcl.core.data.dataset import Dataset
from fedcl.core.data.table import ArrayTable, IntArray
from fedcl.core.params import Params
from fedcl.core.task import ClientTask, Examples

TEST_FROM = 100_000  # the first test row's number, so that no test row is taken for a training row


def ints(values: Any) -> IntArray:
    """Returns an int64 array."""
    return np.asarray(values, dtype=np.int64)


def table(
    labels: Sequence[int] | IntArray,
    columns: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] = (2,),
    start: int = 0,
) -> ArrayTable:
    """Returns a split whose inputs are filled with the number of their row."""
    rows = np.arange(start, start + len(labels), dtype=np.float32)
    values = np.broadcast_to(rows.reshape(-1, *[1] * len(shape)), (len(labels), *shape)).copy()
    own = {key: ints(value) for key, value in (columns or {}).items()}
    return ArrayTable(values, ints(labels), own)


def dataset(
    labels: Sequence[int] | IntArray,
    test: Sequence[int] | IntArray | None = None,
    columns: Mapping[str, Any] | None = None,
    test_columns: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] = (2,),
    classes: int | None = None,
) -> Dataset:
    """Returns a data set of `table`s; the test split has the same labels unless given."""
    labels = ints(labels)
    return Dataset(
        "toy",
        table(labels, columns, shape),
        table(labels if test is None else test, test_columns, shape, TEST_FROM),
        int(labels.max()) + 1 if classes is None else classes,
        shape,
    )


def rows_of(examples: Examples) -> list[int]:
    """Returns the numbers of the rows that examples of a `dataset` are, in their order."""
    return [int(value) for value in examples.x.flatten(1)[:, 0]]


def client_task(classes: int, head: Sequence[int] | None = None, index: int = 0) -> ClientTask:
    """Returns masks of a stage at which `head` (default: all) is present, seen and compared."""
    mask = torch.zeros(classes, dtype=torch.bool)
    mask[list(range(classes) if head is None else head)] = True
    return ClientTask(torch.tensor(index), torch.tensor(index), mask, mask.clone(), mask.clone())


def client(
    model: nn.Module,
    rows: int,
    shape: tuple[int, ...] = (6,),
    classes: int = 3,
    *,
    id: int = 0,
    head: Sequence[int] | None = None,
    state: Any = None,
    dtype: torch.dtype = torch.float64,
) -> Client:
    """Returns a client with normal inputs and labels within its head, functions of its id."""
    generator = torch.Generator().manual_seed(1000 + id)
    x = torch.randn((rows, *shape), generator=generator, dtype=torch.float64).to(dtype)
    allowed = torch.tensor(list(range(classes) if head is None else head))
    y = allowed[torch.randint(len(allowed), (rows,), generator=generator)]
    return Client(
        id, model, Examples(x, y), client_task(classes, head), state, seed=77_000 + 13 * id
    )


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Returns detached copies of a model's parameters by name."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def distance(a: Params, b: Params) -> float:
    """Returns the largest absolute difference over all entries of the same names."""
    assert list(a) == list(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)
