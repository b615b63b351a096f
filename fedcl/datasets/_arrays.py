"""Inputs that come as arrays: which rows cannot be used, and which arrays are images."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "channels_first", "unfit_row"]

Array: TypeAlias = npt.NDArray[Any]


def unfit_row(values: Array) -> int | None:
    """Returns the first of (N, ...) rows that is NaN or infinite in float32, or None."""
    step = max(1, 2**20 // math.prod(values.shape[1:]))  # bounds the memory of the check
    for start in range(0, len(values) if values.dtype.kind == "f" else 0, step):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            finite = np.isfinite(values[start : start + step].astype(np.float32))
        if not finite.all():
            return start + int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
    return None


def channels_first(values: Array) -> Array:
    """Returns bytes (N, H, W) and (N, H, W, C) with C in 1, 3, 4 as (N, C, H, W), others as is."""
    if values.dtype == np.uint8 and values.ndim == 3:
        return values[:, None]
    if values.dtype == np.uint8 and values.ndim == 4 and values.shape[3] in (1, 3, 4):
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    return values
