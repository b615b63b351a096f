"""A stream in time: each client's own examples, in their order of time, are cut into stages.

With `partition = { name = "natural", column = "subject" }` every person goes through their own
time; stage t is each one's t-th part. With any other partition the time of the whole data set is
cut. The classes stay (domain-incremental).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.table import IntArray, Table
from fedcl.core.errors import ConfigError
from fedcl.core.task import ScenarioKind
from fedcl.streams._partition import Natural
from fedcl.streams._scenario import Cut, Scenario

__all__ = ["Temporal"]


@dataclass(frozen=True, kw_only=True)
class Temporal(Scenario):
    """Consecutive parts of each client's time, one a stage.

    Attributes:
        column: Column that tells the time of a row in both splits; `position` is the place in the
            file.
    """

    kind: ClassVar[ScenarioKind] = "domain"

    column: str = "position"

    def cut(self, dataset: Dataset, seed: int) -> Sequence[Cut]:
        """Returns one task for each part; test rows fall into the part in whose time they lie."""
        if self.tasks < 1:
            raise ConfigError("[stream] temporal needs tasks, at least 1")
        train, test = self._parts(dataset)
        return [
            Cut(f"part {t}", np.flatnonzero(train == t), np.flatnonzero(test == t))
            for t in range(self.tasks)
        ]

    def hold_out(self, dataset: Dataset, seed: int) -> tuple[IntArray, IntArray]:
        """Returns the last rows of each client's parts: neighbours in time are too alike."""
        time, owner = self._time(dataset, dataset.train), self._owner(dataset, dataset.train)
        parts, _ = self._parts(dataset)
        held: list[IntArray] = []
        public: list[IntArray] = []
        for client in np.unique(owner):
            for part in range(self.tasks):
                rows = np.flatnonzero((owner == client) & (parts == part))
                rows = rows[np.argsort(time[rows], kind="stable")]
                first = len(rows) - round(self.validation * len(rows))
                second = first - round(self.public * len(rows))
                held.append(rows[first:])
                public.append(rows[second:first])
        return np.concatenate(held), np.concatenate(public)

    def _parts(self, dataset: Dataset) -> tuple[IntArray, IntArray]:
        """Returns the part of every training and test row; -1 for test rows of unknown clients."""
        time, owner = self._time(dataset, dataset.train), self._owner(dataset, dataset.train)
        test_time, test_owner = (
            self._time(dataset, dataset.test),
            self._owner(dataset, dataset.test),
        )
        train_part = np.full(len(time), -1)
        test_part = np.full(len(test_time), -1)
        for client in np.unique(owner):
            rows = np.flatnonzero(owner == client)
            if len(rows) < self.tasks:
                raise ConfigError(
                    f"[stream] client {client} has {len(rows)} examples, too few for {self.tasks} "
                    "parts: lower stream.tasks"
                )
            rows = rows[np.argsort(time[rows], kind="stable")]
            pieces = np.array_split(rows, self.tasks)
            for part, piece in enumerate(pieces):
                train_part[piece] = part
            borders = [time[piece[0]] for piece in pieces[1:]]
            own = np.flatnonzero(test_owner == client)
            test_part[own] = np.searchsorted(borders, test_time[own], side="right")
        return train_part, test_part

    def _time(self, dataset: Dataset, table: Table) -> IntArray:
        if self.column not in table.columns:
            raise ConfigError(
                f"[stream] column {self.column!r}, the time of a row, is not in data set "
                f"{dataset.name!r}, which has the columns: "
                f"{', '.join(sorted(table.columns)) or 'none'}; npz adds `position` when it holds "
                "out blocks"
            )
        return table.columns[self.column]

    def _owner(self, dataset: Dataset, table: Table) -> IntArray:
        if not isinstance(self.partition, Natural):
            return np.zeros(len(table.labels), dtype=np.int64)
        if self.partition.column not in table.columns:
            raise ConfigError(
                f"[stream] column {self.partition.column!r} names the clients, but the test split "
                f"of data set {dataset.name!r} lacks it, so that nobody knows whose time its rows "
                "lie in"
            )
        return table.columns[self.partition.column]
