"""The one reply whose nearest neighbours are nearest (Krum), and nothing of the others.

Blanchard, El Mhamdi, Guerraoui and Stainer, Machine learning with adversaries: Byzantine tolerant
gradient descent, NeurIPS 2017. Flower's Krum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedcl.aggregations._flower import chosen
from fedcl.aggregations._robust import Robust
from fedcl.core.params import Params

__all__ = ["Krum"]


@dataclass(frozen=True)
class Krum(Robust):
    """Takes the reply u_i with the least sum of |u_i - u_j|² over its n - f - 2 nearest u_j.

    Attributes:
        attackers: f, the most attackers among the n replies of an exchange; n >= 2 f + 3.
    """

    attackers: int = 1

    def __post_init__(self) -> None:
        if self.attackers < 0:
            raise ValueError(f"attackers must be at least 0, not {self.attackers}")

    @property
    def least(self) -> int:
        """2 f + 3: with fewer, attackers could be each other's nearest."""
        return 2 * self.attackers + 3

    def combine(self, replies: Sequence[Params]) -> Mapping[str, Tensor]:
        """Returns one of the replies."""
        return chosen("Krum", replies, num_malicious_nodes=self.attackers)
