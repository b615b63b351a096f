"""One question to some clients as costs and audits see it, after it was answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from fedcl.core.channel import Aggregate
from fedcl.core.engine import BlockResult, Position, Request, failure


@dataclass(frozen=True)
class Exchange:
    """What the door tells costs and audits of one exchange.

    Attributes:
        position: Where in the run.
        program: Name of the program.
        asked: Clients that were asked.
        answered: Clients that answered.
        down: Bytes to all clients, by kind of payload.
        up: Bytes from all clients, by kind of payload.
        steps: Local optimizer steps of all clients.
        examples: Examples passed through the network by all clients.
        seconds: Wall time.
        total: What the server received as a sum; None when replies were revealed.
        metrics: Weighted means of the clients' metrics.
    """

    position: Position
    program: str
    asked: tuple[int, ...]
    answered: tuple[int, ...]
    down: Mapping[str, int]
    up: Mapping[str, int]
    steps: int
    examples: int
    seconds: float
    total: Aggregate | None
    metrics: Mapping[str, float]


class Audit(Protocol):
    """Who watches: what a file in `audits/` offers. It sees what the server sees, no more."""

    def observe(self, exchange: Exchange) -> None:
        """Looks at one finished exchange."""
        ...

    def report(self) -> Mapping[str, float]:
        """Returns its numbers by name."""
        ...


def check_blocks(request: Request, results: Sequence[BlockResult]) -> None:
    """Raises ClientError when one block's replies cannot be added to another's."""
    first: tuple[int, dict[str, torch.Size]] | None = None
    for result in results:
        if not result.ids:
            continue
        if result.total is not None:
            tensors = result.total.total
        else:
            tensors = result.replies[0].tensors if result.replies else {}
        shapes = {name: value.shape for name, value in tensors.items()}
        first = first or (result.ids[0], shapes)
        if shapes != first[1]:
            reason = f"its reply differs in names or shapes from client {first[0]}'s"
            raise failure(request, result.ids[0], reason)
