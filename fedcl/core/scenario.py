"""What a stream is made of: tasks, who holds what of them, and when each client meets which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedcl.core.dataset import IntArray


class InputTransform(Protocol):
    """How a task changes its inputs: a frozen dataclass, so that it can travel to a worker."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Maps (n, ...) float32 inputs to inputs of the same shape."""
        ...


@dataclass(frozen=True)
class Task:
    """What is learnt: rows of the data set, and a change of their inputs.

    Attributes:
        index: Number of the task, from 0.
        name: Short name for plots.
        classes: Classes that occur in it.
        train: Rows of the training split that belong to it (hold-outs already taken away).
        test: Rows of the test split.
        validation: Rows of the training split held out for tuning.
        public: Rows of the training split that everybody may use.
        transform: Change of the inputs, or None.
    """

    index: int
    name: str
    classes: tuple[int, ...]
    train: IntArray
    test: IntArray
    validation: IntArray
    public: IntArray
    transform: InputTransform | None = None


class Partition(Protocol):
    """Who holds what: divides one task's rows among clients."""

    def divide(
        self, labels: IntArray, columns: Mapping[str, IntArray], clients: int, seed: int
    ) -> tuple[IntArray, IntArray]:
        """Returns `(order, offsets)`: client i holds `order[offsets[i]:offsets[i + 1]]`.

        Args:
            labels: (n,) labels of the task's rows.
            columns: Further (n,) columns of these rows.
            clients: Number of clients.
            seed: Seed of this task's division.
        """
        ...


class Order(Protocol):
    """When each client meets what."""

    def stages(self, tasks: int) -> int:
        """Returns the number of stages of a stream of `tasks` tasks."""
        ...

    def task_at(self, client: int, stage: int, tasks: int, seed: int) -> int | None:
        """Returns the task that a client meets at a stage, or None when it has no data then."""
        ...

    @property
    def shared(self) -> bool:
        """Whether every client meets task t at stage t."""
        ...
