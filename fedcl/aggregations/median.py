"""The median of every coordinate, for an even number of clients the mean of the middle two.

Yin et al., Byzantine-robust distributed learning: towards optimal statistical rates, ICML 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedcl.core.aggregation import Weights

__all__ = ["Median"]


@dataclass(frozen=True)
class Median:
    """Takes the middle of each coordinate; all clients weigh 1."""

    @property
    def weights(self) -> Weights:
        """A robust rule cannot believe weights."""
        return "equal"

    @property
    def needs_replies(self) -> bool:
        """It compares single replies."""
        return True

    def centre(self, stacked: Tensor) -> Tensor:
        """Returns the median of (clients, ...) values."""
        ordered, n = stacked.sort(0).values, len(stacked)
        return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
