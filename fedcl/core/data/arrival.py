"""Arrivals: examples that reach a client together, after others and before the next ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedcl.core.data.table import ArrayTable


@dataclass(frozen=True)
class Arrival:
    """One arrival of a client.

    Attributes:
        name: Its name: arrivals follow one another in the order of their names.
        digest: Hash of its content: the same name with another one is another arrival.
        train: Examples to learn from, at least one.
        test: Examples held out of training.
    """

    name: str
    digest: str
    train: ArrayTable
    test: ArrayTable

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes that occur in what is learnt, ascending."""
        return tuple(int(label) for label in np.unique(self.train.labels))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.train.values.nbytes + self.test.values.nbytes


class Source(Protocol):
    """Where clients' examples arrive. What is not there yet, or not whole, is not told."""

    @property
    def here(self) -> bool:
        """Whether anything can arrive here at all; not on the server of a deployment."""
        ...

    def missing(self, clients: int) -> Sequence[int]:
        """Returns which of this many clients have no place here where anything could arrive."""
        ...

    def names(self, client: int) -> Sequence[str]:
        """Returns the names of a client's arrivals, ascending."""
        ...

    def stamp(self, client: int, name: str) -> str:
        """Returns what changes when an arrival is replaced; its content is not read."""
        ...

    def load(self, client: int, name: str) -> Arrival:
        """Returns an arrival: not to be written to.

        Raises:
            ConfigError: It is gone, damaged, or no data of this federation.
        """
        ...

    def plan(self, client: int) -> str | None:
        """Returns the diary of another run that this one is to repeat (`data.diary`), or None."""
        ...
