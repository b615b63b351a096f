"""A stream: the tasks of a scenario, who holds what of them, and when each client meets which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedcl.core.data.cache import Cache
from fedcl.core.data.calendar import Calendar, Ids, Path, used_at
from fedcl.core.data.dataset import Dataset
from fedcl.core.data.fetch import Rows, fetch, join_rows
from fedcl.core.data.remaining import Remaining
from fedcl.core.data.scenario import Order, Partition, Shares, Task
from fedcl.core.data.table import IntArray
from fedcl.core.task import ClientTask, Examples, ScenarioKind, TaskInfo, class_mask
from fedcl.core.tree import settle

T = TypeVar("T")

_CACHE = 256 * 2**20  # bytes of what takes long to make and is asked for again


@dataclass(frozen=True)
class Stream:
    """A built stream: indices into arrays; a client's examples are made when asked for.

    Attributes:
        name: Name of the plug-in that made it.
        scenario: What is known when predicting.
        dataset: The data.
        tasks: The tasks, in the order of their index.
        clients: Number of registered clients.
        partition: Who holds what.
        order: When each client meets what.
        seed: Seed of partition and order.
        fixed: Whether a client keeps the same rows in every task made of the same rows.
        natural: Column that names the client, whose own test rows are then its test share.
        borders: Whether methods are told where a stage begins and ends.
        kept: Mask of the rows of the training split that clients hold; the others, which an audit
            leaves out, would have been where they are without it. None for all.
        elsewhere: Whether all rows lie with the clients alone: of them nothing is known here.
        owner: The one client whose own rows these are, where nobody else's are here; else None.
    """

    name: str
    scenario: ScenarioKind
    dataset: Dataset
    tasks: tuple[Task, ...]
    clients: int
    partition: Partition
    order: Order
    seed: int
    fixed: bool = False
    natural: str = ""
    borders: bool = True
    kept: npt.NDArray[np.bool_] | None = None
    elsewhere: bool = False
    owner: int | None = None
    _memo: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)
    _cache: Cache = field(default_factory=lambda: Cache(_CACHE), repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        # A worker works these out again when it needs them: they are functions of the seed.
        return {**self.__dict__, "_memo": {}, "_cache": Cache(_CACHE)}

    def _once(self, key: object, make: Callable[[], T]) -> T:
        if key not in self._memo:
            self._memo[key] = make()
        value: T = self._memo[key]
        return value

    def keeping(self, kept: npt.NDArray[np.bool_]) -> Stream:
        """Returns the same stream of which only some rows of the training split are held."""
        return replace(self, kept=kept, _memo={}, _cache=Cache(_CACHE))

    @property
    def stages(self) -> int:
        """Number of stages, up to the last one at which a client has data."""
        return max(1, int(np.flatnonzero(self.calendar.met.any(1)).max(initial=0)) + 1)

    @property
    def classes(self) -> int:
        """Size of the fixed label space."""
        return self.dataset.classes

    @property
    def calendar(self) -> Calendar:
        """Who meets what at which stage."""
        return self._once(
            "calendar",
            lambda: Calendar(self.order, len(self.tasks), self.clients, self.seed, self.shares),
        )

    def shares(self, task: int) -> Shares:
        """Returns who holds which of a task's training rows, as places in `tasks[task].train`."""

        def divide() -> Shares:
            pool = self.tasks[task].train
            table = self.dataset.train
            columns = {key: column[pool] for key, column in table.columns.items()}
            if self.natural:
                columns[self.natural] = np.searchsorted(self.natural_ids(), columns[self.natural])
            seed = self.seed if self.fixed else self.seed + 1 + task
            shares = self.partition.divide(table.labels[pool], columns, self.clients, seed)
            return shares if self.kept is None else Remaining(shares, self.kept[pool])

        return self._once(("shares", task), divide)

    def rows(self, client: int, task: int) -> IntArray:
        """Returns the rows of the training split that a client holds of a task."""
        return self.tasks[task].train[self.shares(task).rows(client)]

    def sizes(self, task: int) -> IntArray:
        """Returns the (clients,) number of rows that each client holds of a task."""
        return self.shares(task).sizes(np.arange(self.clients))

    def task_at(self, client: int, stage: int) -> int | None:
        """Returns the task that a client meets at a stage, or None when it has no data then."""
        task = self.calendar.paths((client,))[0][stage]
        return task if task >= 0 else None

    def members(self, stage: int) -> Sequence[int]:
        """Returns the ids of the clients with data at a stage, ascending."""
        return self._cache.get(
            ("members", stage),
            lambda: self.calendar.members(stage),
            lambda ids: ids.array.nbytes if isinstance(ids, Ids) else 0,
        )

    def meets(self, stage: int) -> bool:
        """Returns whether any client has data at a stage."""
        return bool(self.calendar.met[stage].any())

    def history(self, client: int, stage: int) -> tuple[int, ...]:
        """Returns the tasks that a client has met up to and with a stage, in its own order."""
        met = self.calendar.paths((client,))[0][: stage + 1]
        return met if self.calendar.full else tuple(task for task in met if task >= 0)

    def present(self, stage: int) -> tuple[int, ...]:
        """Returns the tasks that at least one client meets at a stage."""
        return tuple(np.flatnonzero(self.calendar.met[stage]).tolist())

    def seen_classes(self, stage: int) -> tuple[int, ...]:
        """Returns the classes that the federation has met up to a stage, ascending."""
        return self._once(("seen", stage), lambda: self._classes(range(self._around(stage).stop)))

    def _around(self, stage: int) -> range:
        """Returns the stages whose tasks a stage's examples are of: blurred, its neighbours too."""
        if not self.order.blur:
            return range(stage, stage + 1)
        return range(max(0, stage - 1), min(self.stages, stage + 2))

    def _classes(self, stages: range) -> tuple[int, ...]:
        met = {task for stage in stages for task in self.present(stage)}
        return tuple(sorted({c for task in met for c in self.tasks[task].classes}))

    def info(self, stage: int) -> TaskInfo:
        """Returns what a method may know of a stage."""
        return TaskInfo(
            stage,
            self._classes(self._around(stage)),
            self.seen_classes(stage),
            self.scenario,
            self.borders,
            self.public(stage),
        )

    def public(self, stage: int) -> Examples | None:
        """Returns the data of all tasks met up to a stage that everyone may use, or None."""
        return self._once(("public", stage), lambda: self._join_public(stage))

    def _join_public(self, stage: int) -> Examples | None:
        met = sorted({t for s in range(stage + 1) for t in self.present(s)})
        parts = [(t, self.tasks[t].public) for t in met if len(self.tasks[t].public)]
        if not parts:
            return None
        # Laid out anew: who computes with them, and in which process, must not change a bit.
        found = join_rows(self.dataset.train, self.tasks, parts).take()
        return settle(found, torch.device("cpu"))

    def client_task(self, client: int, stage: int) -> ClientTask:
        """Returns the masks of a client's own stage; raises ValueError when it has no data then.

        Clients with the same history get the same object, so that `is` tells a block of equals.
        """
        path = self.calendar.paths((client,))[0]
        _check(client, path, stage)
        history, around = self.history(client, stage), self._around(stage)
        now = path[around.start : around.stop]
        met = frozenset((*history, *now))

        def make() -> ClientTask:
            present = self._mask(now)
            head = present if self.scenario == "task" else self.head(path[stage], stage)
            index, task = torch.tensor(len(history) - 1), torch.tensor(path[stage])
            return ClientTask(index, task, present, self._mask(met), head)

        key = ("client task", stage, len(history), now, met)
        return self._cache.get(key, make, lambda task: 2000 + 3 * self.classes)

    def _mask(self, tasks: Iterable[int]) -> Tensor:
        """Returns the mask of the classes of some tasks, of which -1 is none."""
        classes = {c for task in tasks if task >= 0 for c in self.tasks[task].classes}
        return class_mask(sorted(classes), self.classes)

    def head(self, task: int, stage: int) -> Tensor:
        """Returns the (classes,) mask that prediction on a task chooses from."""
        if self.scenario == "task":
            return class_mask(self.tasks[task].classes, self.classes)
        if self.scenario == "class":
            return class_mask(self.seen_classes(stage), self.classes)
        return torch.ones(self.classes, dtype=torch.bool)

    def train(self, client: int, stage: int) -> Examples:
        """Returns a client's own examples of a stage: x (n, ...) float32, y (n,)."""
        return self.gather((client,), stage)[0].take()

    def gather(self, clients: Sequence[int], stage: int) -> tuple[Rows, tuple[int, ...]]:
        """Returns the rows of several clients, one after the other, and the number of each.

        Clients of one task cost one fetch together.
        """
        parts: list[tuple[int, IntArray]] = []
        counts = []
        for client, path in zip(clients, self.calendar.paths(clients), strict=True):
            own = self._parts(client, path, stage)
            counts.append(sum(len(rows) for _, rows in own))
            parts += own
        return join_rows(self.dataset.train, self.tasks, parts), tuple(counts)

    def _parts(self, client: int, path: Path, stage: int) -> list[tuple[int, IntArray]]:
        """Returns the tasks that a client's examples of a stage come from, with their rows."""
        _check(client, path, stage)
        if not self.order.blur:
            return [(path[stage], self.rows(client, path[stage]))]
        parts = []
        for home in self._around(stage):
            if path[home] >= 0:
                rows = self.rows(client, path[home])
                parts.append(
                    (path[home], rows[used_at(path, home, len(rows), self.order.blur) == stage])
                )
        return parts

    def rows_at(self, client: int, stage: int) -> IntArray:
        """Returns the rows of the training split behind a client's own examples of a stage."""
        path = self.calendar.paths((client,))[0]
        return np.concatenate([rows for _, rows in self._parts(client, path, stage)])

    def held_out(self, task: int, split: str) -> Examples:
        """Returns a task's `test` or `validation` examples: not to be written to."""
        chosen = self.tasks[task]
        table, rows = (
            (self.dataset.test, chosen.test)
            if split == "test"
            else (self.dataset.train, chosen.validation)
        )
        return self._cache.get(
            ("held out", task, split),
            lambda: fetch(table, rows, chosen.transform),
            lambda examples: examples.nbytes,
        )

    def owners(self, task: int, split: str) -> IntArray | None:
        """Returns the owner of each held-out row of a task (-1: unknown), or None."""
        table = self.dataset.test if split == "test" else self.dataset.train
        rows = self.tasks[task].test if split == "test" else self.tasks[task].validation
        if self.owner is not None:
            return np.full(len(rows), self.owner)
        if not self.natural or self.natural not in table.columns:
            return None

        def owners() -> IntArray:
            ids, owner = self.natural_ids(), table.columns[self.natural][rows]
            place = np.minimum(np.searchsorted(ids, owner), len(ids) - 1)
            return np.where(ids[place] == owner, place, -1)

        return self._once(("owners", task, split), owners)

    def natural_ids(self) -> IntArray:
        """Returns the sorted values of the column that names the clients."""
        return self._once("natural", lambda: np.unique(self.dataset.train.columns[self.natural]))

    def label_counts(self, client: int, task: int) -> IntArray:
        """Returns the (classes,) number of a client's training examples of a task by class."""
        labels = self.dataset.train.labels[self.rows(client, task)]
        return np.bincount(labels, minlength=self.classes).astype(np.int64)


def _check(client: int, path: Path, stage: int) -> None:
    if path[stage] < 0:
        raise ValueError(f"client {client} has no data at stage {stage}")
