"""Averages each row of the head over the clients that hold its class, instead of over all.

A client without examples of a class moves that class's row only away from its own data, and the
plain mean then shrinks what the owners learnt. The clients' class flags travel inside the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedcl.core.channel import Aggregate, Sending
from fedcl.core.client import Client, Reply

__all__ = ["HeadOwners"]

_FLAGS = "owners/head"
_ROWS = ("head.weight", "head.bias")


@dataclass(frozen=True)
class HeadOwners:
    """Weighs the rows of `head.weight` and `head.bias` by who holds their class.

    Attributes:
        reads_examples: What goes up says something of single examples.
    """

    reads_examples: ClassVar[bool] = True

    @property
    def hides_replies(self) -> bool:
        """The server still sees single replies."""
        return False

    def init(self) -> None:
        """Has no state."""

    def upload(self, reply: Reply, client: Client, sending: Sending) -> Reply:
        """Drops the rows of classes that the client does not hold, and says which it holds."""
        if "head.weight" not in reply.tensors:
            return reply
        weight = reply.tensors["head.weight"]
        held = torch.bincount(client.data.y, minlength=len(weight)).clamp(max=1).to(weight)
        rows = {name: _by_row(reply.tensors[name], held) for name in _ROWS if name in reply.tensors}
        return replace(reply, tensors={**reply.tensors, **rows, _FLAGS: held})

    def receive(self, total: Aggregate, state: Any, seed: int) -> tuple[Aggregate, Any]:
        """Makes the mean of a row the mean over its owners; a row without any does not move."""
        if _FLAGS not in total.total:
            return total, state
        tensors = dict(total.total)
        held = tensors.pop(_FLAGS)
        scale = torch.where(held > 0, total.weight / held.clamp(min=1e-30), 0.0)
        for name in _ROWS:
            if name in tensors:
                tensors[name] = _by_row(tensors[name], scale)
        return replace(total, total=tensors), state


def _by_row(rows: Tensor, factors: Tensor) -> Tensor:
    return rows * factors.view(-1, *[1] * (rows.dim() - 1))
