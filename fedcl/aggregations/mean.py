"""The weighted mean: federated averaging's own rule, a sum that may be taken where clients run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedcl.core.aggregation import Weights

__all__ = ["Mean"]


@dataclass(frozen=True)
class Mean:
    """Adds weighted replies.

    Attributes:
        weights: `examples` weighs a reply by its client's number of own examples, `equal` (FOT's
            protocol) by 1.
    """

    weights: Weights = "examples"

    @property
    def needs_replies(self) -> bool:
        """A sum is enough."""
        return False

    def centre(self, stacked: Tensor) -> Tensor:
        """Returns the mean of (clients, ...) values."""
        return stacked.mean(0)
