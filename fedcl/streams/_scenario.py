"""What all scenarios share: who holds what and when, and the rows held out of training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.plan import StreamPlan
from fedcl.core.data.scenario import InputTransform, Order, Partition, Task
from fedcl.core.data.stream import Stream
from fedcl.core.data.table import IntArray
from fedcl.core.errors import ConfigError
from fedcl.core.seeds import numpy_generator, seed_of
from fedcl.core.task import ScenarioKind
from fedcl.streams._order import Shared
from fedcl.streams._partition import Iid, Natural

__all__ = ["Cut", "Scenario", "class_groups"]


@dataclass(frozen=True)
class Cut:
    """One task as a scenario cuts it, before rows are held out.

    Attributes:
        name: Short name for plots.
        train: Rows of the training split.
        test: Rows of the test split.
        transform: Change of the inputs, or None.
    """

    name: str
    train: IntArray
    test: IntArray
    transform: InputTransform | None = None


@dataclass(frozen=True, kw_only=True)
class Scenario(StreamPlan):
    """A scenario cuts a data set into tasks; partition and order then say who meets them when.

    Attributes:
        tasks: Number of tasks; 0 means as many as the data name.
        clients: Registered clients; 0 means 20, or as many as the natural partition's column names.
        partition: Who holds what.
        order: When each client meets what.
        validation: Share of the training rows held out for tuning, the same rows in every task.
        public: Share of the training rows that everybody may use and nobody owns.
        fixed_shares: Whether a client keeps the same rows in every task that is made of the same
            rows; otherwise each task is divided anew, as in FOT's protocol.
        borders: Whether the method is told where a stage ends; without, its `begin_task` and
            `end_task` are never called.
    """

    kind: ClassVar[ScenarioKind] = "domain"

    tasks: int = 5
    clients: int = 0
    partition: Partition = field(default_factory=Iid)
    order: Order = field(default_factory=Shared)
    validation: float = 0.0
    public: float = 0.0
    fixed_shares: bool = False
    borders: bool = True

    def __post_init__(self) -> None:
        if self.tasks < 0:
            raise ValueError(f"tasks must be at least 1, not {self.tasks}")
        if self.clients < 0:
            raise ValueError(f"clients must be at least 1, not {self.clients}")
        if not (self.validation >= 0 and self.public >= 0 and self.validation + self.public < 1):
            raise ValueError(
                f"validation ({self.validation}) and public ({self.public}) are shares that leave "
                "something to train on"
            )

    @abstractmethod
    def cut(self, dataset: Dataset, seed: int) -> Sequence[Cut]:
        """Returns the tasks; raises ConfigError when the data set cannot be cut like this."""

    def hold_out(self, dataset: Dataset, seed: int) -> tuple[IntArray, IntArray]:
        """Returns the rows of the training split held out for validation and for public use."""
        rows = len(dataset.train.labels)
        order = numpy_generator(seed, "hold out").permutation(rows)
        first, second = round(self.validation * rows), round((self.validation + self.public) * rows)
        return order[:first], order[first:second]

    def build(self, dataset: Dataset, seed: int, name: str) -> Stream:
        """Returns the stream of a data set; see `StreamPlan.build`."""
        if dataset.source is not None:
            raise ConfigError(
                f"[stream] {name!r} divides data that are there, but those of data set "
                f'{dataset.name!r} arrive: set stream.name = "live", or another data set'
            )
        seed = seed_of(seed, "stream")
        natural = self.partition.column if isinstance(self.partition, Natural) else ""
        clients = self._clients(dataset, natural)
        cuts = self.cut(dataset, seed)
        validation, public = self.hold_out(dataset, seed)
        rows = len(dataset.train.labels)
        mark = np.zeros(rows, dtype=np.int8)
        mark[validation], mark[public] = 1, 2
        tasks = []
        for index, cut in enumerate(cuts):
            if not len(cut.train) or not len(cut.test):
                raise ConfigError(
                    f"[stream] task {index} ({cut.name}) has {len(cut.train)} training and "
                    f"{len(cut.test)} test examples in data set {dataset.name!r}: lower "
                    "stream.tasks or choose another column"
                )
            own = mark[cut.train]
            if self.validation and not np.any(own == 1):
                raise ConfigError(
                    f"[stream] validation = {self.validation} holds out no example of task {index} "
                    f"({cut.name}), which has {len(cut.train)}: raise it"
                )
            classes = tuple(int(c) for c in np.unique(dataset.train.labels[cut.train]))
            tasks.append(
                Task(
                    index,
                    cut.name,
                    classes,
                    # Tasks made of the same rows share one array, which a million clients need.
                    train=cut.train if np.all(own == 0) else cut.train[own == 0],
                    test=cut.test,
                    validation=cut.train[own == 1],
                    public=cut.train[own == 2],
                    transform=cut.transform,
                )
            )
        stream = Stream(
            name,
            self.kind,
            dataset,
            tuple(tasks),
            clients,
            self.partition,
            self.order,
            seed,
            self.fixed_shares,
            natural,
            self.borders,
        )
        try:
            for task in stream.tasks:
                stream.shares(task.index)
        except ValueError as error:
            raise ConfigError(f"[stream.partition] {error}") from error
        for stage in range(stream.stages):
            if not stream.meets(stage):
                raise ConfigError(
                    f"[stream] no client has data at stage {stage}: change stream.order, or hold "
                    "out fewer examples"
                )
        return stream

    def _clients(self, dataset: Dataset, natural: str) -> int:
        if not natural:
            return self.clients or 20
        columns = dataset.train.columns
        if natural not in columns:
            raise ConfigError(
                f"[stream.partition] column {natural!r} is not in data set {dataset.name!r}, which "
                f"has the columns: {', '.join(sorted(columns)) or 'none'}"
            )
        named = len(np.unique(columns[natural]))
        if self.clients not in (0, named):
            raise ConfigError(
                f"[stream] column {natural!r} names {named} clients, but clients = {self.clients}: "
                f"set it to {named} or 0"
            )
        return named


def class_groups(dataset: Dataset, tasks: int, shuffle: bool, seed: int) -> list[IntArray]:
    """Returns the classes of each task: equal groups, by index or in a random order.

    Raises:
        ConfigError: More tasks than classes.
    """
    tasks = tasks or dataset.classes
    if tasks > dataset.classes:
        raise ConfigError(
            f"[stream] {tasks} tasks need at least as many classes, but data set {dataset.name!r} "
            f"has {dataset.classes}: lower stream.tasks"
        )
    order = np.arange(dataset.classes)
    if shuffle:
        order = numpy_generator(seed, "classes").permutation(order)
    return np.array_split(order, tasks)


def cuts_by_class(dataset: Dataset, groups: Sequence[IntArray]) -> list[Cut]:
    """Returns one cut for each group of classes."""
    train, test = dataset.train.labels, dataset.test.labels
    return [
        Cut(
            f"classes {min(group)}-{max(group)}" if len(group) > 1 else f"class {group[0]}",
            np.flatnonzero(np.isin(train, group)),
            np.flatnonzero(np.isin(test, group)),
        )
        for group in groups
    ]
