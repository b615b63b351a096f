"""When each client meets which task: what the order says, less the tasks of which it has no data.

Whatever asks about everybody works on arrays, a part of the clients at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

from fedcl.core.data.scenario import Order, Shares
from fedcl.core.data.table import IntArray

_FIRST = 2**8  # clients that are looked at first
_MOST = 2**18  # stages of paths that are worked out together: two megabytes
_KEPT = 2**20  # stages of paths that are kept: eight megabytes

_GOLDEN = (5**0.5 - 1) / 2

Path = tuple[int, ...]


@dataclass(frozen=True)
class Calendar:
    """Who meets what at which stage; a path is worked out when asked for.

    Attributes:
        order: When each client meets what.
        tasks: Number of tasks.
        clients: Number of registered clients.
        seed: Seed of the order.
        shares: Who holds what of a task.
    """

    order: Order
    tasks: int
    clients: int
    seed: int
    shares: Callable[[int], Shares]
    _paths: dict[int, Path] = field(default_factory=dict, repr=False)

    def paths(self, clients: Sequence[int]) -> list[Path]:
        """Returns the task that each client meets at each stage, -1 where it has no data."""
        if self.full and self.order.shared:
            return [self._common] * len(clients)
        missing = [client for client in clients if client not in self._paths]
        if missing:
            room = max(_KEPT // self._stages, len(clients))
            if len(self._paths) + len(missing) > room:
                self._paths.clear()
                missing = list(clients)
            found = self._draw(np.array(missing, dtype=np.int64)).tolist()
            self._paths.update(zip(missing, map(tuple, found), strict=True))
        return [self._paths[client] for client in clients]

    @cached_property
    def full(self) -> bool:
        """Whether everybody is known to have data at every stage, before paths are looked at."""
        return not (self.order.gaps or self._sparse)

    @cached_property
    def met(self) -> npt.NDArray[np.bool_]:
        """(stages, tasks): whether any client meets a task, and has data of it, at a stage."""
        met = np.zeros((self._stages, self.tasks), dtype=np.bool_)
        possible = np.eye(*met.shape, dtype=np.bool_) if self.order.shared else np.ones_like(met)
        for _, paths in self._sweep():
            for stage, tasks in enumerate(paths.T):
                met[stage, tasks[tasks >= 0]] = True
            if met[possible].all():
                break
        return met

    def members(self, stage: int) -> Sequence[int]:
        """Returns the ids of the clients with data at a stage, ascending."""
        if self.full:
            return range(self.clients)
        parts = [first + np.flatnonzero(paths[:, stage] >= 0) for first, paths in self._sweep()]
        ids = np.concatenate([part.astype(np.int32) for part in parts])
        return Ids(ids) if len(ids) < self.clients else range(self.clients)

    @property
    def _stages(self) -> int:
        return self.order.stages(self.tasks)

    @cached_property
    def _common(self) -> Path:
        return tuple(range(self.tasks))

    @cached_property
    def _sparse(self) -> tuple[int, ...]:
        """The tasks of which somebody has no data."""
        everyone = np.arange(self.clients)
        return tuple(t for t in range(self.tasks) if not self.shares(t).sizes(everyone).all())

    def _draw(self, clients: IntArray) -> IntArray:
        paths = self.order.paths(clients, self.tasks, self.seed)
        for task in self._sparse:
            empty = self.shares(task).sizes(clients) == 0
            paths = np.where(empty[:, None] & (paths == task), -1, paths)
        return paths

    def _sweep(self) -> Iterator[tuple[int, IntArray]]:
        """Yields the paths of all clients part by part, with the first client of each part.

        The parts grow, so that a question whose answer is soon known costs little.
        """
        most = max(1, _MOST // self._stages)
        first, step = 0, min(_FIRST, most)
        while first < self.clients:
            last = min(self.clients, first + step)
            yield first, self._draw(np.arange(first, last))
            first, step = last, min(2 * step, most)


def used_at(path: Path, home: int, examples: int, blur: float) -> IntArray:
    """Returns the stage at which each of a client's examples of its task of stage `home` is used.

    With blurred borders a share of them, `blur`, is used a stage early, and as many a stage late;
    they are spread evenly over the examples, so that any sorting of them does not matter. What
    would go to where the client has no stage stays at home, and so does the first example always:
    each example is used once, and no stage of the client is left empty.
    """
    # Multiples of the golden ratio fill [0, 1) as evenly as can be.
    place = (0.5 + _GOLDEN * np.arange(examples)) % 1.0
    at = np.full(examples, home)
    if home > 0 and path[home - 1] >= 0:
        at[place < blur] -= 1
    if home + 1 < len(path) and path[home + 1] >= 0:
        at[place >= 1.0 - blur] += 1
    return at


@dataclass(frozen=True, eq=False)
class Ids(Sequence[int]):
    """Ids in four bytes each, which are Python's integers when they are looked at.

    Attributes:
        array: (n,) int32, ascending.
    """

    array: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Ids: ...
    def __getitem__(self, place: int | slice) -> int | Ids:
        """Returns the id at a place, or those of a slice."""
        return Ids(self.array[place]) if isinstance(place, slice) else int(self.array[place])

    def __iter__(self) -> Iterator[int]:
        """Returns an iterator over the ids."""
        return iter(self.array.tolist())

    def __contains__(self, id: object) -> bool:
        """Returns whether an id is among them."""
        place = int(np.searchsorted(self.array, id)) if isinstance(id, int) else len(self)
        return place < len(self) and int(self.array[place]) == id
