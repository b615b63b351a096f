"""The mean of the values closest to the median, of the replies that Krum finds best (Bulyan).

El Mhamdi, Guerraoui and Rouault, The hidden vulnerability of distributed learning in Byzantium,
ICML 2018. Flower's Bulyan, which scores all replies once; the paper scores those that are left
again after each that it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedcl.aggregations._flower import chosen
from fedcl.aggregations._robust import Robust
from fedcl.core.params import Params

__all__ = ["Bulyan"]


@dataclass(frozen=True)
class Bulyan(Robust):
    """Averages, coordinate by coordinate, the n - 4 f values closest to the median of n - 2 f.

    Attributes:
        attackers: f, the most attackers among the n replies of an exchange; n >= 4 f + 3.
    """

    attackers: int = 1

    def __post_init__(self) -> None:
        if self.attackers < 0:
            raise ValueError(f"attackers must be at least 0, not {self.attackers}")

    @property
    def least(self) -> int:
        """4 f + 3: honest values are then the majority at each coordinate of those selected."""
        return 4 * self.attackers + 3

    def combine(self, replies: Sequence[Params]) -> Mapping[str, Tensor]:
        """Returns the mean of selected values."""
        return chosen("Bulyan", replies, num_malicious_nodes=self.attackers)
