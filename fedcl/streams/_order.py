"""When each client meets what.

`ORDERS` names the rules for configs: `order = { name = "staggered", delay = 2 }`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedcl.core.seeds import numpy_generator

__all__ = ["ORDERS", "Shared", "Shuffled", "Staggered"]


@dataclass(frozen=True)
class Shared:
    """All clients meet task t at stage t."""

    @property
    def shared(self) -> bool:
        """Whether every client meets task t at stage t."""
        return True

    def stages(self, tasks: int) -> int:
        """Returns one stage for each task."""
        return tasks

    def task_at(self, client: int, stage: int, tasks: int, seed: int) -> int | None:
        """Returns the task of the stage."""
        return stage


@dataclass(frozen=True)
class Shuffled:
    """Every client meets all tasks in a random order of its own."""

    @property
    def shared(self) -> bool:
        """Whether every client meets task t at stage t."""
        return False

    def stages(self, tasks: int) -> int:
        """Returns one stage for each task."""
        return tasks

    def task_at(self, client: int, stage: int, tasks: int, seed: int) -> int | None:
        """Returns the client's own task of the stage."""
        return int(numpy_generator(seed, "order", client).permutation(tasks)[stage])


@dataclass(frozen=True)
class Staggered:
    """Some clients join late and meet all tasks in the common order, so many stages later.

    Attributes:
        delay: Largest number of stages by which a client may be late.
        late: Share of the clients that join late, each by 1 to `delay` stages.
    """

    delay: int = 1
    late: float = 0.5

    def __post_init__(self) -> None:
        if self.delay < 1:
            raise ValueError(f"delay must be at least 1 stage, not {self.delay}")
        if not 0 <= self.late <= 1:
            raise ValueError(f"late must lie in [0, 1], not {self.late}")

    @property
    def shared(self) -> bool:
        """Whether every client meets task t at stage t."""
        return False

    def stages(self, tasks: int) -> int:
        """Returns the stages until the latest client has met every task."""
        return tasks + self.delay

    def task_at(self, client: int, stage: int, tasks: int, seed: int) -> int | None:
        """Returns the client's task, or None before it joins and after it has finished."""
        generator = numpy_generator(seed, "order", client)
        start = int(generator.integers(1, self.delay + 1)) if generator.random() < self.late else 0
        task = stage - start
        return task if 0 <= task < tasks else None


ORDERS = {"shared": Shared, "shuffled": Shuffled, "staggered": Staggered}
