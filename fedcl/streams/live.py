"""A stream of which nobody knows the data but the clients: what arrives there makes its stages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.plan import StreamPlan
from fedcl.core.data.scenario import Shares, Task
from fedcl.core.data.stream import Stream
from fedcl.core.data.table import IntArray
from fedcl.core.errors import ConfigError
from fedcl.core.seeds import seed_of
from fedcl.streams._order import Shared

__all__ = ["Live"]


@dataclass(frozen=True, kw_only=True)
class Live(StreamPlan):
    """Every client learns its own arrivals, one after the other; all are members of every stage.

    With borders a client takes one new arrival a stage, without one a round; where it has nothing
    new it goes on with its last one. Task t of a client is what it first learnt at stage t.

    Attributes:
        clients: Registered clients.
        stages: Number of stages.
        scenario: `domain`, or `class`; the label space is public either way, and a prediction
            chooses from all of it.
        borders: Whether the method is told where a stage begins and ends.
        arrivals: Clients that must have new data before a stage begins (without borders: the
            first); 0 asks nobody.
        patience: Seconds after which a stage begins with fewer, at least one; a run that finds none
            stops, and may be resumed. 0 waits for ever. With arrivals = 0, seconds before a stage.
    """

    elsewhere: ClassVar[bool] = True

    clients: int = 2
    stages: int = 5
    scenario: Literal["domain", "class"] = "domain"
    borders: bool = True
    arrivals: int = 1
    patience: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("clients", 1), ("stages", 1), ("arrivals", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.arrivals > self.clients:
            raise ValueError(f"arrivals = {self.arrivals}, but there are {self.clients} clients")
        if not (math.isfinite(self.patience) and self.patience >= 0):
            raise ValueError(f"patience must be at least 0 seconds, not {self.patience}")

    def build(self, dataset: Dataset, seed: int, name: str) -> Stream:
        """Returns the stream as the server knows it: its tasks have no rows.

        Raises:
            ConfigError: The data do not arrive, or some client has no folder.
        """
        source = dataset.source
        if source is None:
            raise ConfigError(
                f"[stream] {name!r} takes data that arrive, but those of data set "
                f'{dataset.name!r} are there: set dataset.name = "arrivals", or another stream'
            )
        missing = source.missing(self.clients)
        if missing:
            raise ConfigError(
                f"[stream] {self.clients} clients, but dataset.root holds no folder for client "
                f"{missing[0]}: make one named {missing[0]}, or lower stream.clients"
            )
        none, everything = np.zeros(0, dtype=np.int64), tuple(range(dataset.classes))
        return Stream(
            name,
            self.scenario,
            dataset,
            tuple(
                Task(stage, f"stage {stage}", everything, none, none, none, none)
                for stage in range(self.stages)
            ),
            self.clients,
            _Elsewhere(),
            Shared(),
            seed_of(seed, "stream"),
            borders=self.borders,
            elsewhere=True,
        )


@dataclass(frozen=True)
class _Elsewhere:
    """Clients hold what nobody else knows."""

    def divide(
        self, labels: IntArray, columns: Mapping[str, IntArray], clients: int, seed: int
    ) -> Shares:
        """Returns shares of which no row is here."""
        return _Unknown()


@dataclass(frozen=True)
class _Unknown:
    nbytes: int = 0

    def sizes(self, clients: IntArray) -> IntArray:
        """Returns one for each client: it may have something, which makes it a member."""
        return np.ones(len(clients), dtype=np.int64)

    def rows(self, client: int) -> IntArray:
        """Returns none."""
        return np.zeros(0, dtype=np.int64)
