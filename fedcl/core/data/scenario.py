"""What a stream is made of: tasks, who holds what of them, and when each client meets which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedcl.core.data.table import IntArray


class InputTransform(Protocol):
    """How a task changes its inputs: a frozen dataclass, so that it can travel to a worker."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Maps (n, ...) float32 inputs to inputs of the same shape, each input by itself."""
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


class Shares(Protocol):
    """Who holds which of a task's n rows: written down, or drawn when asked for."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        ...

    def sizes(self, clients: IntArray) -> IntArray:
        """Returns the number of rows of each of these clients."""
        ...

    def rows(self, client: int) -> IntArray:
        """Returns a client's rows, as places among the n."""
        ...


class Partition(Protocol):
    """Who holds what: divides one task's rows among clients."""

    def divide(
        self, labels: IntArray, columns: Mapping[str, IntArray], clients: int, seed: int
    ) -> Shares:
        """Returns who holds which rows.

        Args:
            labels: (n,) labels of the task's rows.
            columns: Further (n,) columns of these rows.
            clients: Number of clients.
            seed: Seed of this task's division.

        Raises:
            ValueError: There are too few rows for so many clients.
        """
        ...


class Order(Protocol):
    """When each client meets what.

    A client's path is a function of (seed, client) alone: nobody else's is needed to work it out.
    """

    @property
    def shared(self) -> bool:
        """Whether every client meets task t at stage t."""
        ...

    @property
    def gaps(self) -> bool:
        """Whether a client may be without a task at a stage."""
        ...

    @property
    def blur(self) -> float:
        """Share of a client's examples of a task that come a stage early, and as many late."""
        ...

    def stages(self, tasks: int) -> int:
        """Returns the number of stages of a stream of `tasks` tasks."""
        ...

    def paths(self, clients: IntArray, tasks: int, seed: int) -> IntArray:
        """Returns the (clients, stages) task that each client meets at each stage; -1 for none."""
        ...
