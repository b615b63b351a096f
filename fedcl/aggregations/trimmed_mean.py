"""The trimmed mean: at each coordinate the largest and smallest values are left out.

Yin et al., Byzantine-robust distributed learning: towards optimal statistical rates, ICML 2018.
Flower's FedTrimmedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedcl.aggregations._flower import chosen
from fedcl.aggregations._robust import Robust
from fedcl.core.params import Params

__all__ = ["TrimmedMean"]


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """Leaves out `floor(share * clients)` values on each side of every coordinate; all weigh 1.

    Attributes:
        share: Share of the clients left out on each side, below 0.5; 0 is the mean.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share < 0.5:
            raise ValueError(f"share must lie in [0, 0.5), not {self.share}")

    @property
    def least(self) -> int:
        """Of few replies it leaves out none."""
        return 1

    def combine(self, replies: Sequence[Params]) -> Mapping[str, Tensor]:
        """Returns the trimmed mean of replies, coordinate by coordinate."""
        return chosen("FedTrimmedAvg", replies, beta=self.share)
