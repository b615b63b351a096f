"""Model parameters as a mapping of names to tensors, and the arithmetic that federations need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Params: TypeAlias = Mapping[str, Tensor]


def add(params: Params, change: Params, scale: float = 1.0) -> dict[str, Tensor]:
    """Returns `params + scale * change`, name by name, in the dtype of `params`."""
    return {
        name: value + (change[name] * scale if scale != 1.0 else change[name]).to(value.dtype)
        for name, value in params.items()
    }


def subtract(params: Params, other: Params) -> dict[str, Tensor]:
    """Returns `params - other`, name by name."""
    return {name: value - other[name] for name, value in params.items()}


def copy(params: Params) -> dict[str, Tensor]:
    """Returns detached copies that no longer share memory with `params`."""
    return {name: value.detach().clone() for name, value in params.items()}


def not_finite(params: Params) -> str | None:
    """Returns the name of the first tensor with a NaN or infinity in it, or None."""
    for name, value in params.items():
        if not value.is_floating_point() or math.isfinite(float(value.sum())):
            continue  # a sum is finite only when all of it is, and costs a tenth of the look
        if not bool(torch.isfinite(value).all()):
            return name
    return None
