"""Ideal secure aggregation: the server sees sums, no single reply, weight or metric.

This is the simulator's switch for what a method may see, not a cryptographic protocol: it says what
would be hidden if one were run. Methods that ask for single replies are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fedcl.core.channel import Aggregate, Sending
from fedcl.core.client import Client, Reply

__all__ = ["SecureAggregation"]


@dataclass(frozen=True)
class SecureAggregation:
    """Hides single replies; the sum is exact.

    Attributes:
        leaves_tensors: An upload neither reads nor changes a reply's tensors.
    """

    leaves_tensors: ClassVar[bool] = True

    @property
    def hides_replies(self) -> bool:
        """The server sees nothing but sums."""
        return True

    def init(self) -> None:
        """Has no state."""

    def upload(self, reply: Reply, client: Client, sending: Sending) -> Reply:
        """Drops the client's metrics, which would travel in the clear."""
        return replace(reply, metrics={})

    def receive(self, total: Aggregate, state: Any, seed: int) -> tuple[Aggregate, Any]:
        """Changes nothing: the sum is what the protocol delivers."""
        return total, state
