"""A stream: the tasks of a scenario, who holds what of them, and when each client meets which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedcl.core.dataset import Dataset, IntArray
from fedcl.core.scenario import Order, Partition, Task
from fedcl.core.task import ClientTask, Examples, ScenarioKind, TaskInfo, class_mask

T = TypeVar("T")


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
    _memo: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        # A worker works these out again when it needs them: they are functions of the seed.
        return {**self.__dict__, "_memo": {}}

    def _once(self, key: object, make: Callable[[], T]) -> T:
        if key not in self._memo:
            self._memo[key] = make()
        value: T = self._memo[key]
        return value

    @property
    def stages(self) -> int:
        """Number of stages, up to the last one at which a client has data."""

        def count() -> int:
            last = self.order.stages(len(self.tasks))
            while last > 1 and not self.meets(last - 1):
                last -= 1
            return last

        return self._once("stages", count)

    @property
    def classes(self) -> int:
        """Size of the fixed label space."""
        return self.dataset.classes

    def shares(self, task: int) -> tuple[IntArray, IntArray]:
        """Returns `(rows, offsets)`: client i trains on `rows[offsets[i]:offsets[i + 1]]`."""

        def divide() -> tuple[IntArray, IntArray]:
            pool = self.tasks[task].train
            table = self.dataset.train
            columns = {key: column[pool] for key, column in table.columns.items()}
            if self.natural:
                columns[self.natural] = np.searchsorted(self.natural_ids(), columns[self.natural])
            seed = self.seed if self.fixed else self.seed + 1 + task
            order, offsets = self.partition.divide(table.labels[pool], columns, self.clients, seed)
            return pool[order], offsets

        return self._once(("shares", task), divide)

    def task_at(self, client: int, stage: int) -> int | None:
        """Returns the task that a client meets at a stage, or None when it has no data then."""
        task = self.order.task_at(client, stage, len(self.tasks), self.seed)
        if task is None:
            return None
        _, offsets = self.shares(task)
        return task if offsets[client + 1] > offsets[client] else None

    def members(self, stage: int) -> Sequence[int]:
        """Returns the ids of the clients with data at a stage, ascending."""

        def members() -> Sequence[int]:
            everyone = range(self.clients)
            if not self.order.shared:
                return [client for client in everyone if self.task_at(client, stage) is not None]
            sizes = np.diff(self.shares(stage)[1])
            return everyone if bool(np.all(sizes > 0)) else np.flatnonzero(sizes).tolist()

        return self._once(("members", stage), members)

    def meets(self, stage: int) -> bool:
        """Returns whether any client has data at a stage; stops at the first that has."""
        return any(self.task_at(client, stage) is not None for client in range(self.clients))

    def history(self, client: int, stage: int) -> tuple[int, ...]:
        """Returns the tasks that a client has met up to and with a stage, in its own order."""
        met = (self.task_at(client, earlier) for earlier in range(stage + 1))
        return tuple(task for task in met if task is not None)

    def present(self, stage: int) -> tuple[int, ...]:
        """Returns the tasks that at least one client meets at a stage."""
        if self.order.shared:
            return (stage,)

        def met() -> tuple[int, ...]:
            tasks = {self.task_at(client, stage) for client in self.members(stage)}
            return tuple(sorted(task for task in tasks if task is not None))

        return self._once(("present", stage), met)

    def seen_classes(self, stage: int) -> tuple[int, ...]:
        """Returns the classes that the federation has met up to a stage, ascending."""

        def seen() -> tuple[int, ...]:
            met = {task for earlier in range(stage + 1) for task in self.present(earlier)}
            return tuple(sorted({c for task in met for c in self.tasks[task].classes}))

        return self._once(("seen", stage), seen)

    def info(self, stage: int) -> TaskInfo:
        """Returns what a method may know of a stage."""
        present = self.present(stage)
        classes = sorted({c for t in present for c in self.tasks[t].classes})
        met = sorted(
            {t for s in range(stage + 1) for t in self.present(s) if len(self.tasks[t].public)}
        )
        public = None
        if met:
            parts = [self._examples(self.tasks[t], "train", self.tasks[t].public) for t in met]
            public = Examples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))
        return TaskInfo(
            stage, tuple(classes), self.seen_classes(stage), self.scenario, self.borders, public
        )

    def client_task(self, client: int, stage: int) -> ClientTask:
        """Returns the masks of a client's own stage; raises ValueError when it has no data then."""
        task = self.task_at(client, stage)
        if task is None:
            raise ValueError(f"client {client} has no data at stage {stage}")
        history = self.history(client, stage)
        present = class_mask(self.tasks[task].classes, self.classes)
        seen = class_mask(sorted({c for t in history for c in self.tasks[t].classes}), self.classes)
        head = self.head(task, stage)
        return ClientTask(torch.tensor(len(history) - 1), torch.tensor(task), present, seen, head)

    def head(self, task: int, stage: int) -> Tensor:
        """Returns the (classes,) mask that training and prediction on a task choose from."""
        if self.scenario == "task":
            return class_mask(self.tasks[task].classes, self.classes)
        if self.scenario == "class":
            return class_mask(self.seen_classes(stage), self.classes)
        return torch.ones(self.classes, dtype=torch.bool)

    def train(self, client: int, stage: int) -> Examples:
        """Returns a client's own examples of a stage: x (n, ...) float32, y (n,)."""
        task = self.task_at(client, stage)
        if task is None:
            raise ValueError(f"client {client} has no data at stage {stage}")
        rows, offsets = self.shares(task)
        return self._examples(
            self.tasks[task], "train", rows[offsets[client] : offsets[client + 1]]
        )

    def held_out(self, task: int, split: str) -> Examples:
        """Returns a task's `test` or `validation` examples."""
        chosen = self.tasks[task]
        if split == "test":
            return self._examples(chosen, "test", chosen.test)
        return self._examples(chosen, "train", chosen.validation)

    def owners(self, task: int, split: str) -> IntArray | None:
        """Returns the owner of each held-out row of a task (-1: unknown), or None."""
        table = self.dataset.test if split == "test" else self.dataset.train
        rows = self.tasks[task].test if split == "test" else self.tasks[task].validation
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
        rows, offsets = self.shares(task)
        labels = self.dataset.train.labels[rows[offsets[client] : offsets[client + 1]]]
        return np.bincount(labels, minlength=self.classes).astype(np.int64)

    def _examples(self, task: Task, table: str, rows: IntArray) -> Examples:
        source = self.dataset.train if table == "train" else self.dataset.test
        x = source.rows(rows)
        if task.transform is not None:
            x = task.transform(x)
        return Examples(
            torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(source.labels[rows])
        )
