"""A split of a data set: labels and columns in memory, inputs fetched by row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


class Table(Protocol):
    """One split of a data set: labels and columns in memory, inputs fetched by row."""

    @property
    def labels(self) -> IntArray:
        """The (N,) class indices, from 0."""
        ...

    @property
    def columns(self) -> Mapping[str, IntArray]:
        """Further named (N,) integer arrays, such as `domain` or `subject`."""
        ...

    def rows(self, indices: IntArray) -> npt.NDArray[np.float32]:
        """Returns (len(indices), ...) float32 inputs for a model; images are channels first."""
        ...


@dataclass(frozen=True)
class ArrayTable:
    """A split that lies in memory in its own dtype; rows become float32 only when fetched.

    Attributes:
        values: (N, ...) raw inputs, any real dtype; images channels first.
        labels: (N,) int64 class indices.
        columns: Further named (N,) int64 arrays.
        scale: Factor for the raw values, e.g. 1/255 for bytes.
        shift: Added after scaling.
    """

    values: npt.NDArray[np.generic]
    labels: IntArray
    columns: Mapping[str, IntArray] = field(default_factory=dict)
    scale: float = 1.0
    shift: float = 0.0

    def rows(self, indices: IntArray) -> npt.NDArray[np.float32]:
        """Returns the chosen rows as float32: `values * scale + shift`."""
        chosen = _fresh((len(indices), *self.values.shape[1:]))
        if self.values.dtype == np.float32 and len(indices):
            if indices.min() < 0 or indices.max() >= len(self.values):
                raise IndexError(f"rows must lie in [0, {len(self.values)})")
            # "clip" writes into `out` at once; the indices need no clipping.
            np.take(self.values, indices, axis=0, out=chosen, mode="clip")
        else:
            chosen[...] = self.values.take(indices, axis=0)
        if self.scale != 1.0:
            chosen *= np.float32(self.scale)
        if self.shift != 0.0:
            chosen += np.float32(self.shift)
        return chosen


def _fresh(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Returns an uninitialised array that begins at a 64-byte border, as PyTorch's tensors do."""
    size = 4 * math.prod(shape)
    room = np.empty(size + 64, dtype=np.uint8)
    first = -room.ctypes.data % 64
    return room[first : first + size].view(np.float32).reshape(shape)
