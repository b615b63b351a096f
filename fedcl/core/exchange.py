"""One question to some clients as costs and audits see it, after it was answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fedcl.core.channel import Aggregate, combine
from fedcl.core.client import Each
from fedcl.core.request import BlockResult, Position, Request, failure
from fedcl.core.tree import bytes_by_kind


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
        padded: Further rows that blocks of uneven clients computed and threw away.
        seconds: Wall time.
        total: What the server received as a sum; None when replies were revealed.
        metrics: Weighted means of the clients' metrics.
        rejected: Clients whose replies were left out, and why.
    """

    position: Position
    program: str
    asked: tuple[int, ...]
    answered: tuple[int, ...]
    down: Mapping[str, int]
    up: Mapping[str, int]
    steps: int
    examples: int
    padded: int
    seconds: float
    total: Aggregate | None
    metrics: Mapping[str, float]
    rejected: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        position: Position,
        program: str,
        message: Any,
        asked: tuple[int, ...],
        results: Sequence[BlockResult],
        seconds: float,
        total: Aggregate | None,
    ) -> Exchange:
        """Returns what is told of blocks of answers; see the attributes.

        Args:
            position: Where in the run.
            program: Name of the program.
            message: What went down.
            asked: Clients that were asked.
            results: Of the blocks.
            seconds: Wall time.
            total: What the server received as a sum, or None.
        """
        up: Counter[str] = Counter()
        for result in results:
            up.update(result.uploaded)
        return cls(
            position=position,
            program=program,
            asked=asked,
            answered=tuple(id for result in results for id in result.ids),
            down=sent_down(message, asked),
            up=dict(up),
            steps=sum(result.steps for result in results),
            examples=sum(result.examples for result in results),
            padded=sum(result.padded for result in results),
            seconds=seconds,
            total=total,
            metrics=total.metrics if total is not None else {},
            rejected={id: why for result in results for id, why in result.rejected.items()},
        )


def add_block(request: Request, results: list[BlockResult], result: BlockResult) -> None:
    """Adds a block's result to those before it, whose sum the first one holds.

    Sums are added and memories left behind at once, so that a large cohort needs no more room than
    a small one.

    Raises:
        ClientError: The block's replies cannot be added to the others.
    """
    first = next((earlier for earlier in results if earlier.ids), None)
    summed = results[0].total if results else None
    if (
        first is not None
        and result.ids
        and _form(result) != _form(first if summed is None else results[0])
    ):
        reason = f"its reply differs in names or shapes from client {first.ids[0]}'s"
        raise failure(request, result.ids[0], reason)
    if summed is not None and result.total is not None:
        results[0] = replace(results[0], total=combine([summed, result.total]))
        result = replace(result, total=None)
    results.append(replace(result, memories={}))


def _form(result: BlockResult) -> dict[str, torch.Size]:
    if result.total is not None:
        tensors = result.total.total
    else:
        tensors = result.replies[0].tensors if result.replies else {}
    return {name: value.shape for name, value in tensors.items()}


def sent_down(message: Any, asked: Sequence[int]) -> dict[str, int]:
    """Returns the bytes of a message to all clients, by kind of payload."""
    if not isinstance(message, Each):
        return {kind: size * len(asked) for kind, size in bytes_by_kind(message).items()}
    total: Counter[str] = Counter()
    for id in asked:
        total.update(bytes_by_kind(message.messages[id]))
    return dict(total)
