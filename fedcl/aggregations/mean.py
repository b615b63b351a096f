"""The weighted mean: federated averaging's own rule, a sum that may be taken where clients run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcl.core.aggregation import Weights
from fedcl.core.params import Params

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

    @property
    def least(self) -> int:
        """One reply is its own mean."""
        return 1

    def combine(self, replies: Sequence[Params]) -> Mapping[str, Tensor]:
        """Returns the mean of replies that weigh the same."""
        return {
            name: torch.stack([reply[name].double() for reply in replies]).mean(0)
            for name in replies[0]
        }
