"""Ideal secure aggregation: the server sees sums, no single reply, weight or metric.

This is the ideal functionality, not a cryptographic protocol: a trusted third party adds replies up
(`fedcl.core.sealed`), and the server's code gets nothing but the sum. Methods that ask for single
replies are refused, and so are messages of each client's own, by which a server could tell replies
apart in a sum (Pasquini, Francati and Ateniese, Eluding secure aggregation in federated learning
via model inconsistency, CCS 2022). What sums of different clients or rounds give away together is
not hidden: that takes noise.
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
        least: Fewest clients whose sum is handed out; a round with fewer replies is skipped or
            repeated as `training.shortfall` says.
        leaves_tensors: An upload neither reads nor changes a reply's tensors.
    """

    least: int = 2

    leaves_tensors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.least < 2:
            raise ValueError(
                f"least must be at least 2, not {self.least}: the sum of one client is its reply"
            )

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
