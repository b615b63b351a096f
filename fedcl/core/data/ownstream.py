"""The stream as one client knows it: its own rows, of arrivals that are read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedcl.core.data.arrival import Arrival
from fedcl.core.data.cache import Cache
from fedcl.core.data.calendar import Path
from fedcl.core.data.diary import Entry
from fedcl.core.data.scenario import Shares
from fedcl.core.data.stream import Stream
from fedcl.core.data.table import ArrayTable, IntArray


def own_stream(
    stream: Stream, client: int, taken: Sequence[Entry], load: Callable[[Entry], Arrival]
) -> Stream:
    """Returns the stream of one client, whose calendar ends where its diary does.

    Task t is what it first learnt at stage t; at a stage without anything new it stayed with what
    it had.

    Args:
        stream: The stream as the server knows it.
        client: The client.
        taken: What it has taken, in the order of places.
        load: Returns an arrival that it took.
    """
    arrivals = [load(entry) for entry in taken]
    shape = stream.dataset.shape
    train = _Joined(tuple(arrival.train for arrival in arrivals), shape)
    test = _Joined(tuple(arrival.test for arrival in arrivals), shape)
    tasks = []
    for task in stream.tasks:
        own = [k for k, entry in enumerate(taken) if entry.stage == task.index]
        tasks.append(replace(task, train=train.of(own), test=test.of(own)))
    path, last = [], -1
    met = {entry.stage for entry in taken}
    for stage in range(len(tasks)):
        last = stage if stage in met else last
        path.append(last)
    return replace(
        stream,
        dataset=replace(stream.dataset, train=train, test=test),
        tasks=tuple(tasks),
        partition=_Own(client),
        order=_Known(tuple(path)),
        elsewhere=False,
        owner=client,
        _memo={},
        _cache=Cache(0),
    )


@dataclass(frozen=True)
class _Joined:
    """Rows of several tables, one after the other; each keeps its own raw values."""

    parts: tuple[ArrayTable, ...]
    shape: tuple[int, ...]
    columns: Mapping[str, IntArray] = field(default_factory=dict)

    @property
    def labels(self) -> IntArray:
        """The labels of all."""
        none = np.zeros(0, dtype=np.int64)
        return np.concatenate([none, *(part.labels for part in self.parts)])

    @property
    def _starts(self) -> IntArray:
        return np.cumsum([0, *(len(part.labels) for part in self.parts)])

    def of(self, parts: Sequence[int]) -> IntArray:
        """Returns the rows of some of the tables."""
        starts = self._starts
        none = np.zeros(0, dtype=np.int64)
        return np.concatenate([none, *(np.arange(starts[k], starts[k + 1]) for k in parts)])

    def rows(self, indices: IntArray) -> npt.NDArray[np.float32]:
        """Returns the chosen rows as float32."""
        home = np.searchsorted(self._starts, indices, side="right") - 1
        chosen = np.empty((len(indices), *self.shape), dtype=np.float32)
        for k in np.unique(home).tolist():
            chosen[home == k] = self.parts[k].rows(indices[home == k] - self._starts[k])
        return chosen


@dataclass(frozen=True)
class _Own:
    """One client holds all rows, and nobody else has any here."""

    client: int

    def divide(
        self, labels: IntArray, columns: Mapping[str, IntArray], clients: int, seed: int
    ) -> Shares:
        """Returns the shares of one holder."""
        return _OwnShares(self.client, len(labels))


@dataclass(frozen=True)
class _OwnShares:
    client: int
    count: int
    nbytes: int = 0

    def sizes(self, clients: IntArray) -> IntArray:
        """Returns the number of rows of each of these clients."""
        return np.where(clients == self.client, self.count, 0).astype(np.int64)

    def rows(self, client: int) -> IntArray:
        """Returns a client's rows, as places among the n."""
        return np.arange(self.count if client == self.client else 0)


@dataclass(frozen=True)
class _Known:
    """An order that is written down."""

    path: Path
    shared: bool = False
    gaps: bool = True
    blur: float = 0.0

    def stages(self, tasks: int) -> int:
        """Returns one stage for each task."""
        return tasks

    def paths(self, clients: IntArray, tasks: int, seed: int) -> IntArray:
        """Returns the path for each client."""
        return np.tile(np.array(self.path, dtype=np.int64), (len(clients), 1))
