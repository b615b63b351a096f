"""The Grid that Flower hands to a ServerApp, on its way to the engine that asks through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedcl.flower.server.status import Status

if TYPE_CHECKING:
    from flwr.serverapp import Grid


@dataclass(frozen=True)
class Handed:
    """What a ServerApp hands over.

    Attributes:
        grid: Flower's grid.
        live: Whether nodes are devices that come and go; else they are Flower's own simulation.
        status: Where others may see what the run is doing.
    """

    grid: Grid
    live: bool
    status: Status


_handed: ContextVar[Handed | None] = ContextVar("handed", default=None)


@contextmanager
def hand(own: Handed) -> Iterator[None]:
    """Hands a grid to the engines that are opened inside, in this thread."""
    token = _handed.set(own)
    try:
        yield
    finally:
        _handed.reset(token)


def handed() -> Handed | None:
    """Returns what was handed over, or None."""
    return _handed.get()
