"""Walks the tensors inside messages, replies and memories, which are nested plain values and frozen dataclasses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

V = TypeVar("V")


def move(value: V, device: torch.device) -> V:
    """Returns the same value with every tensor in it on `device`; nothing is copied when all are there."""
    if isinstance(value, Tensor):
        return value.to(device)  # type: ignore[return-value]
    if all(tensor.device == device for tensor in tensors(value)):
        return value
    if isinstance(value, tuple | list):
        return type(value)(move(part, device) for part in value)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {key: move(part, device) for key, part in value.items()}  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: move(getattr(value, f.name), device) for f in fields(value)}
        )
    return value


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
    """Returns the bytes of a message by kind of payload: its fields' names, with `params` called `model`."""
    if is_dataclass(message) and not isinstance(message, type):
        parts = {
            ("model" if f.name == "params" else f.name): nbytes(getattr(message, f.name))
            for f in fields(message)
        }
        return {kind: size for kind, size in parts.items() if size}
    size = nbytes(message)
    return {"message": size} if size else {}
