"""Data sets: what a file in `datasets/` returns, before any stream is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fedcl.core.data.arrival import Source
from fedcl.core.data.table import Table


@dataclass(frozen=True)
class Dataset:
    """A named data set with a train and a test split.

    Attributes:
        name: Short name for plots and errors.
        train: Split that the clients' shares are cut from.
        test: Split that only the evaluation sees.
        classes: Size of the public, fixed label space.
        shape: Shape of one input, e.g. (1, 28, 28) or (9, 128).
        class_names: Names of the classes for plots; empty when unknown.
        source: Where further rows arrive with the clients; None where all are there.
    """

    name: str
    train: Table
    test: Table
    classes: int
    shape: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    source: Source | None = None


class DatasetFactory(Protocol):
    """What a file in `datasets/` offers: a frozen dataclass of options that makes the data."""

    def load(self) -> Dataset:
        """Returns the data set.

        Raises:
            ConfigError: Files are missing, damaged or mislabelled.
        """
        ...
