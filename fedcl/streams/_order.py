"""When each client meets what.

`ORDERS` names the rules for configs: `order = { name = "staggered", delay = 2 }`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedcl.core.data.table import IntArray
from fedcl.core.seeds import seed_of, uniforms

__all__ = ["ORDERS", "Blurred", "PowerLaw", "Shared", "Shuffled", "Staggered"]


@dataclass(frozen=True)
class Shared:
    """All clients meet task t at stage t."""

    shared: ClassVar[bool] = True
    gaps: ClassVar[bool] = False
    blur: ClassVar[float] = 0.0

    def stages(self, tasks: int) -> int:
        """Returns one stage for each task."""
        return tasks

    def paths(self, clients: IntArray, tasks: int, seed: int) -> IntArray:
        """Returns the common order for each client."""
        return np.tile(np.arange(tasks), (len(clients), 1))


@dataclass(frozen=True)
class Blurred:
    """As shared, but borders are blurred: at each, consecutive tasks exchange examples.

    At stage t a client has most of its examples of task t, some of task t - 1 that come late, and
    some of task t + 1 that come early (as in i-Blurry, Koh et al., ICLR 2022). Each of its examples
    is used at one stage. Whether methods are told when a stage ends is `stream.borders`'s to say.

    Attributes:
        share: Share of a client's examples of a task that come a stage early, and as many come a
            stage late; below one half.
    """

    shared: ClassVar[bool] = True
    gaps: ClassVar[bool] = False

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share < 0.5:
            raise ValueError(f"share must lie in [0, 0.5), not {self.share}")

    @property
    def blur(self) -> float:
        """Share of a client's examples of a task that come a stage early, and as many late."""
        return self.share

    def stages(self, tasks: int) -> int:
        """Returns one stage for each task."""
        return tasks

    def paths(self, clients: IntArray, tasks: int, seed: int) -> IntArray:
        """Returns the common order for each client."""
        return np.tile(np.arange(tasks), (len(clients), 1))


@dataclass(frozen=True)
class Shuffled:
    """Every client meets all tasks in a random order of its own."""

    shared: ClassVar[bool] = False
    gaps: ClassVar[bool] = False
    blur: ClassVar[float] = 0.0

    def stages(self, tasks: int) -> int:
        """Returns one stage for each task."""
        return tasks

    def paths(self, clients: IntArray, tasks: int, seed: int) -> IntArray:
        """Returns a permutation of the tasks for each client."""
        return _uniforms(seed, clients, tasks).argsort(axis=1)


@dataclass(frozen=True)
class Staggered:
    """Some clients join late and meet all tasks in the common order, so many stages later.

    Attributes:
        delay: Largest number of stages by which a client may be late.
        late: Share of the clients that join late, each by 1 to `delay` stages.
    """

    shared: ClassVar[bool] = False
    gaps: ClassVar[bool] = True
    blur: ClassVar[float] = 0.0

    delay: int = 1
    late: float = 0.5

    def __post_init__(self) -> None:
        if self.delay < 1:
            raise ValueError(f"delay must be at least 1 stage, not {self.delay}")
        if not 0 <= self.late <= 1:
            raise ValueError(f"late must lie in [0, 1], not {self.late}")

    def stages(self, tasks: int) -> int:
        """Returns the stages until the latest client has met every task."""
        return tasks + self.delay

    def paths(self, clients: IntArray, tasks: int, seed: int) -> IntArray:
        """Returns the common order from each client's first stage on; -1 before and after."""
        is_late, how = _uniforms(seed, clients, 2).T
        start = np.where(is_late < self.late, 1 + np.floor(self.delay * how), 0).astype(np.int64)
        met = np.arange(self.stages(tasks)) - start[:, None]
        return np.where(met < tasks, np.maximum(met, -1), -1)


@dataclass(frozen=True)
class PowerLaw:
    """Tasks come back to each client, the less likely the longer ago it has met them.

    A task that a client last met l stages ago returns with the probability c l^-exponent, for all
    l from 2 on; what is left is the probability that the client stays with its present task. The
    constant c is the largest for which these never exceed 1: one over the sum of l^-exponent over
    l = 2 .. tasks. First meetings follow the same law, as if each client had met all tasks, one a
    stage and in a random order of its own, before the stream began.

    So every client has a task at each stage, it may stay with it for some stages, and with an
    exponent above 1 there are tasks that it never meets (again).

    Attributes:
        exponent: How fast tasks are forgotten by the world; 0 makes all equally likely to return.
        length: Number of stages; 0 means four for each task.
    """

    shared: ClassVar[bool] = False
    gaps: ClassVar[bool] = False
    blur: ClassVar[float] = 0.0

    exponent: float = 1.0
    length: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise ValueError(f"exponent must be finite and at least 0, not {self.exponent}")
        if self.length < 0:
            raise ValueError(f"length must be at least 1 stage, not {self.length}")

    def stages(self, tasks: int) -> int:
        """Returns the number of stages."""
        return self.length or 4 * tasks

    def chances(self, tasks: int) -> npt.NDArray[np.float64]:
        """Returns the probability that a task returns by the stages since it was last met."""
        since = np.arange(2, self.stages(tasks) + tasks + 1, dtype=np.float64)
        power = since**-self.exponent
        return np.concatenate([[0.0, 0.0], power / power[: max(1, tasks - 1)].sum()])

    def paths(self, clients: IntArray, tasks: int, seed: int) -> IntArray:
        """Returns the tasks that each client meets; it has one at every stage."""
        draws = _uniforms(seed, clients, tasks + self.stages(tasks))
        last = -1 - draws[:, :tasks].argsort(axis=1)  # the stage at which a task was last met
        chances, everyone, present = self.chances(tasks), np.arange(len(clients)), last.argmax(1)
        paths = np.empty((len(clients), self.stages(tasks)), dtype=np.int64)
        for stage in range(self.stages(tasks)):
            reached = chances[stage - last].cumsum(axis=1) > draws[:, tasks + stage, None]
            present = np.where(reached.any(axis=1), reached.argmax(axis=1), present)
            last[everyone, present] = stage
            paths[:, stage] = present
        return paths


def _uniforms(seed: int, clients: IntArray, draws: int) -> npt.NDArray[np.float64]:
    return uniforms(seed_of(seed, "order"), clients, draws)


ORDERS = {
    "shared": Shared,
    "blurred": Blurred,
    "shuffled": Shuffled,
    "staggered": Staggered,
    "power_law": PowerLaw,
}
