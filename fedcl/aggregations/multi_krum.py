"""The mean of the replies that Krum finds best (Multi-Krum).

Blanchard, El Mhamdi, Guerraoui and Stainer, Machine learning with adversaries: Byzantine tolerant
gradient descent, NeurIPS 2017. Flower's MultiKrum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedcl.aggregations._flower import chosen
from fedcl.aggregations._robust import Robust
from fedcl.core.params import Params

__all__ = ["MultiKrum"]


@dataclass(frozen=True)
class MultiKrum(Robust):
    """Averages the replies of the least scores, each scored once among all (see `krum`).

    Attributes:
        attackers: f, the most attackers among the n replies of an exchange; n >= 2 f + 3.
        keep: Replies that are averaged; 0 for n - f - 2, as many as a score looks at. With more
            than n - f an attacker must be among them.
    """

    attackers: int = 1
    keep: int = 0

    def __post_init__(self) -> None:
        for name in ("attackers", "keep"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    @property
    def least(self) -> int:
        """2 f + 3 as for Krum, and enough to keep `keep` of them with f left out."""
        return max(2 * self.attackers + 3, self.keep + self.attackers)

    def combine(self, replies: Sequence[Params]) -> Mapping[str, Tensor]:
        """Returns the mean of some of the replies."""
        keep = self.keep or len(replies) - self.attackers - 2
        options = {"num_malicious_nodes": self.attackers, "num_nodes_to_select": keep}
        return chosen("MultiKrum", replies, **options)
