"""The median of every coordinate, for an even number of clients the mean of the middle two.

Yin et al., Byzantine-robust distributed learning: towards optimal statistical rates, ICML 2018.
Flower's FedMedian.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedcl.aggregations._flower import chosen
from fedcl.aggregations._robust import Robust
from fedcl.core.params import Params

__all__ = ["Median"]


@dataclass(frozen=True)
class Median(Robust):
    """Takes the middle of each coordinate; all clients weigh 1."""

    @property
    def least(self) -> int:
        """One reply is its own median."""
        return 1

    def combine(self, replies: Sequence[Params]) -> Mapping[str, Tensor]:
        """Returns the median of replies, coordinate by coordinate."""
        return chosen("FedMedian", replies)
