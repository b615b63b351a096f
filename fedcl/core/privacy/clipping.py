"""Bounds what one participant can change: a clip that holds for every input whatsoever."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedcl.core.params import Params


def norm(tensors: Params) -> float:
    """Returns the Euclidean norm of all floating tensors together, in float64.

    It is infinite or NaN only where a number is: numbers are scaled by the largest of them first,
    so that no square overflows or vanishes.
    """
    largest, parts = 0.0, _floating(tensors)
    for part in parts:
        if part.numel():
            top = float(part.abs().max())
            if not math.isfinite(top):
                return top
            largest = max(largest, top)
    if largest == 0.0:
        return 0.0
    return largest * math.sqrt(sum(float((part / largest).square().sum()) for part in parts))


def clipped(tensors: Params, bound: float) -> dict[str, Tensor]:
    """Returns tensors whose floating numbers together have a norm of at most `bound`.

    Total: what holds a NaN or an infinity becomes zeros. What is no floating tensor, such as a
    counter, becomes zeros too: it would reach the sum unprotected.

    Args:
        tensors: Of one participant.
        bound: The largest norm, above 0.

    Returns:
        Tensors of the same names and shapes, floating ones in float64.
    """
    size = norm(tensors)
    if not math.isfinite(size):
        return {name: torch.zeros_like(_wide(value)) for name, value in tensors.items()}
    # The last bit of a rounded factor could lift the norm above the bound.
    factor = 1.0 if size <= bound else bound / size * (1.0 - 2.0**-50)
    return {
        name: _wide(value) * factor if value.is_floating_point() else torch.zeros_like(value)
        for name, value in tensors.items()
    }


def clipped_to_send(tensors: Params, bound: float) -> dict[str, Tensor]:
    """Returns clipped tensors in the types that they came in: the bound holds after rounding, too.

    Args:
        tensors: Of one participant.
        bound: The largest norm, above 0.
    """
    kinds = [torch.finfo(v.dtype) for v in tensors.values() if v.is_floating_point()]
    # Rounding to the type of the wire may add as much to the norm.
    part = 1.0 - max((kind.eps for kind in kinds), default=0.0)
    # Not so below a type's smallest normal number, where a number may double, nor beyond its range.
    narrow = any(kind.tiny > 1e-30 or kind.max < bound for kind in kinds)
    while True:
        found = clipped(tensors, bound * part)
        found = {name: value.to(tensors[name].dtype) for name, value in found.items()}
        if not narrow or norm(found) <= bound:
            return found
        part /= 2


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.float64) if value.is_floating_point() else value


def _floating(tensors: Params) -> list[Tensor]:
    return [_wide(value.detach()) for value in tensors.values() if value.is_floating_point()]
