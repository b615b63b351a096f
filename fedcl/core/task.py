"""Examples, and what a method or a client may know of the present task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

ScenarioKind = Literal["task", "class", "domain"]


@dataclass(frozen=True)
class Examples:
    """Rows of inputs and labels, with any further columns.

    Attributes:
        x: (n, ...) inputs.
        y: (n,) int64 labels.
        extra: Further columns of n rows each: weights, remembered logits, flags.
    """

    x: Tensor
    y: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor) -> Examples:
        """Returns the chosen rows, in the order given."""
        return Examples(
            self.x.index_select(0, rows),
            self.y.index_select(0, rows),
            {name: column.index_select(0, rows) for name, column in self.extra.items()},
        )

    def part(self, first: int, last: int) -> Examples:
        """Returns rows `first` to `last - 1`, without copying them."""
        columns = {name: column[first:last] for name, column in self.extra.items()}
        return Examples(self.x[first:last], self.y[first:last], columns)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        columns = (self.x, self.y, *self.extra.values())
        return sum(column.numel() * column.element_size() for column in columns)


def join(parts: Sequence[Examples]) -> Examples:
    """Returns the rows of all parts, one after the other; the parts have the same extra columns."""
    return Examples(
        torch.cat([part.x for part in parts]),
        torch.cat([part.y for part in parts]),
        {key: torch.cat([part.extra[key] for part in parts]) for key in parts[0].extra},
    )


@dataclass(frozen=True)
class TaskInfo:
    """All that a method may know of the present: never a test set, never a client's data.

    Attributes:
        index: Stage of the stream, counted from 0.
        classes: Classes present at this stage, over all clients.
        seen: Classes met so far by the federation, this stage included.
        scenario: `task`, `class` or `domain`: what is known when predicting.
        border: Whether the end of a stage is announced.
        public: Data that everyone may use, or None.
    """

    index: int
    classes: tuple[int, ...]
    seen: tuple[int, ...]
    scenario: ScenarioKind = "domain"
    border: bool = True
    public: Examples | None = None


@dataclass(frozen=True)
class ClientTask:
    """What a client's own stage looks like, as tensors, so that a block of clients can be batched.

    Attributes:
        index: () int64, the client's own stage: how many stages with data it had before.
        task: () int64, the task of the stream that it learns now.
        present: (classes,) bool, classes of that task.
        seen: (classes,) bool, classes that this client has met, now included.
        head: (classes,) bool, the logits that training compares: the task's classes in the
            task-incremental scenario, those the federation has seen in the class-incremental one,
            else all.
    """

    index: Tensor
    task: Tensor
    present: Tensor
    seen: Tensor
    head: Tensor


def class_mask(classes: Sequence[int], total: int) -> Tensor:
    """Returns a (total,) bool mask of the given classes."""
    mask = torch.zeros(total, dtype=torch.bool)
    mask[list(classes)] = True
    return mask
