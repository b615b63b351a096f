"""Gaussian blobs of any size, computed when fetched: for tests and for a million clients.

Every value is a pure function of (seed, split, row, feature): the position is hashed, and the
Box-Muller transform makes two normal values of each hash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.table import IntArray
from fedcl.core.seeds import hashes

__all__ = ["Synthetic"]

_TRAIN, _TEST, _CENTRES, _DOMAINS = range(1, 5)  # which of a seed's independent streams
_CHUNK = 2**16  # values made at once: bounds the memory of a large fetch and fits the cache


@dataclass(frozen=True)
class Synthetic:
    """One Gaussian blob of unit variance a class, around centres that are Gaussian themselves.

    Row i has class `i % classes` and domain `(i // classes) % domains`, so that any stretch of rows
    is balanced. With more than one domain there is a column `domain`, and each domain moves all its
    centres by one vector of its own.

    Attributes:
        classes: Number of classes.
        features: Length of an input, or its shape, e.g. (1, 28, 28).
        train: Rows of the train split.
        test: Rows of the test split.
        spread: Standard deviation of the centres (and of the domains' moves) along each feature, in
            units of the noise within a class: two centres lie `spread * sqrt(2 * features)` apart.
        seed: Decides every value.
        domains: Number of domains; 1 means no column.
    """

    classes: int = 10
    features: int | tuple[int, ...] = 20
    train: int = 2000
    test: int = 500
    spread: float = 1.0
    seed: int = 0
    domains: int = 1

    def __post_init__(self) -> None:
        """Checks the options."""
        for name in ("classes", "domains"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("train", "test"):
            rows, least = getattr(self, name), self.classes * self.domains
            if rows < least:
                reason = "a row for each class of each domain"
                raise ValueError(f"{name} must be at least {least} ({reason}), not {rows}")
        if not self._shape or min(self._shape) < 1:
            raise ValueError(f"features must be positive, not {self.features}")
        if not (math.isfinite(self.spread) and self.spread >= 0.0):
            raise ValueError(f"spread must be finite and not negative, not {self.spread}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self.features,) if isinstance(self.features, int) else tuple(self.features)

    def load(self) -> Dataset:
        """Returns two lazy tables; costs nothing until rows or labels are asked for."""
        train, test = (
            _Blobs(rows, stream, self.classes, self.domains, self._shape, self.spread, self.seed)
            for rows, stream in ((self.train, _TRAIN), (self.test, _TEST))
        )
        return Dataset("synthetic", train, test, self.classes, self._shape)


@dataclass(frozen=True)
class _Blobs:
    """One split; holds nothing until its labels or columns are asked for: 8 bytes a row each."""

    count: int
    stream: int
    classes: int
    domains: int
    shape: tuple[int, ...]
    spread: float
    seed: int

    @cached_property
    def labels(self) -> IntArray:
        return np.arange(self.count, dtype=np.int64) % self.classes

    @cached_property
    def columns(self) -> Mapping[str, IntArray]:
        if self.domains == 1:
            return {}
        return {"domain": np.arange(self.count, dtype=np.int64) // self.classes % self.domains}

    def rows(self, indices: IntArray) -> npt.NDArray[np.float32]:
        """Returns (len(indices), *shape) float32 inputs.

        Raises:
            IndexError: An index is negative or beyond the last row.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= self.count):
            raise IndexError(f"row indices must lie in 0 to {self.count - 1}")
        width = math.prod(self.shape)
        values = np.empty((len(indices), width), dtype=np.float32)
        step = max(1, _CHUNK // width)
        for start in range(0, len(indices), step):
            chosen = indices[start : start + step]
            noise = _normal(self.seed, self.stream, chosen, width)
            noise += self._centres[chosen % self.classes]
            if self.domains > 1:
                noise += self._moves[chosen // self.classes % self.domains]
            values[start : start + step] = noise
        return values.reshape(-1, *self.shape)

    @cached_property
    def _centres(self) -> npt.NDArray[np.float64]:
        """(classes, features), shared by both splits."""
        classes = np.arange(self.classes, dtype=np.int64)
        return self.spread * _normal(self.seed, _CENTRES, classes, math.prod(self.shape))

    @cached_property
    def _moves(self) -> npt.NDArray[np.float64]:
        """(domains, features), shared by both splits."""
        domains = np.arange(self.domains, dtype=np.int64)
        return self.spread * _normal(self.seed, _DOMAINS, domains, math.prod(self.shape))


def _normal(seed: int, stream: int, rows: IntArray, width: int) -> npt.NDArray[np.float64]:
    """Returns (len(rows), width) standard normal values, functions of their position alone."""
    pairs = (width + 1) // 2
    first = rows.astype(np.uint64) * np.uint64(pairs)
    key = _mixed(_mixed(seed) + stream)
    bits = hashes(key, np.add.outer(first, np.arange(pairs, dtype=np.uint64)))
    # Box-Muller: the upper half of a hash gives the radius, the lower half the angle.
    radius = np.sqrt(-2.0 * np.log(((bits >> np.uint64(32)) + np.uint64(1)) * 2.0**-32))
    angle = (bits & np.uint64(2**32 - 1)) * (2.0 * math.pi * 2.0**-32)
    normal = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)
    return normal.reshape(len(rows), 2 * pairs)[:, :width]


def _mixed(word: int) -> int:
    """Returns a hash of one integer, of whatever length."""
    return int(hashes(word, np.ones(1, dtype=np.uint64))[0])
