"""Walks the tensors inside messages, replies and memories: nested plain values and dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

V = TypeVar("V")


def move(value: V, device: torch.device) -> V:
    """Returns the value with every tensor on `device`; the value itself when all are there."""
    return _change(value, lambda x: x.device == device, lambda x: x.to(device))


def settle(value: V, device: torch.device) -> V:
    """Returns the value with every tensor on `device`, row by row from an aligned address.

    Matrix products and sums give other bits for another layout or alignment. A tensor just computed
    and one that came from a wire, a file or NumPy differ in both. What is about to be computed with
    is settled first, so that results depend on values alone; what lies well already is not copied.
    """

    def settled(x: Tensor) -> bool:
        return x.device == device and _lies_well(x)

    def lay(x: Tensor) -> Tensor:
        x = x.to(device)
        return x if _lies_well(x) else x.clone(memory_format=torch.contiguous_format)

    return _change(value, settled, lay)


def _change(value: V, fits: Callable[[Tensor], bool], change: Callable[[Tensor], Tensor]) -> V:
    """Returns a value with `change` applied to the tensors in it, or itself when all fit."""
    changed: Any = value
    if isinstance(value, Tensor):
        changed = value if fits(value) else change(value)
    elif all(fits(tensor) for tensor in tensors(value)):
        pass
    elif isinstance(value, tuple | list):
        changed = type(value)(_change(part, fits, change) for part in value)
    elif isinstance(value, Mapping):
        changed = {key: _change(part, fits, change) for key, part in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _change(getattr(value, f.name), fits, change) for f in fields(value)}
        changed = replace(value, **parts)
    return changed  # type: ignore[no-any-return]


def _lies_well(tensor: Tensor) -> bool:
    """Whether a tensor lies as PyTorch lays out a fresh one (CPU memory on 64-byte borders)."""
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if stride != step:
            return False
        step *= max(size, 1)
    return tensor.device.type != "cpu" or tensor.data_ptr() % 64 == 0


def tensors(value: Any) -> Iterator[Tensor]:
    """Yields every tensor in a value, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from tensors(getattr(value, f.name))


def nbytes(value: Any) -> int:
    """Returns the bytes of every tensor in a value as they would travel."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(value))


def bytes_by_kind(message: Any) -> dict[str, int]:
    """Returns a message's bytes by kind of payload: its fields, with `params` called `model`."""
    if is_dataclass(message) and not isinstance(message, type):
        parts = {
            ("model" if f.name == "params" else f.name): nbytes(getattr(message, f.name))
            for f in fields(message)
        }
        return {kind: size for kind, size in parts.items() if size}
    size = nbytes(message)
    return {"message": size} if size else {}
