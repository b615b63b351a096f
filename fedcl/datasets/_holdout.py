"""Which rows of an undivided data set are held out for testing."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedcl.core.data.table import IntArray

__all__ = ["Mask", "block_rows", "random_rows"]

Mask: TypeAlias = npt.NDArray[np.bool_]


def random_rows(labels: IntArray, fraction: float, seed: int) -> tuple[Mask, Mask]:
    """Returns masks of train and test rows: each class gives its share, never all its rows."""
    held = np.zeros(len(labels), dtype=np.bool_)
    generator = np.random.default_rng(seed)
    met = 0
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        due = math.floor((met + len(rows)) * fraction + 0.5) - math.floor(met * fraction + 0.5)
        held[rows[: min(due, len(rows) - 1)]] = True
        met += len(rows)
    return ~held, held


def block_rows(recordings: IntArray, fraction: float, block: int, gap: int) -> tuple[Mask, Mask]:
    """Returns masks of train and test rows; rows within the gap of a test block are in neither."""
    kept, held = (np.zeros(len(recordings), dtype=np.bool_) for _ in range(2))
    for recording in np.unique(recordings):
        rows = np.flatnonzero(recordings == recording)
        number = np.arange(len(rows)) // block
        # Spread evenly: with a fraction of 1/5, the blocks 2, 7, 12, ... are held out.
        tested = np.floor((number + 1) * fraction + 0.5) > np.floor(number * fraction + 0.5)
        near = tested.copy()
        for distance in range(1, gap + 1):
            near[distance:] |= tested[:-distance]
            near[:-distance] |= tested[distance:]
        kept[rows], held[rows] = ~near, tested
    return kept, held
