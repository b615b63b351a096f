"""How replies become one: what a file in `aggregations/` offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedcl.core.channel import Aggregate, combine, fold
from fedcl.core.client import Reply
from fedcl.core.engine import BlockResult

Weights = Literal["examples", "equal"]


class Aggregation(Protocol):
    """A rule; the mean is a sum and is taken block by block where clients run.

    Attributes:
        weights: `examples` weighs a reply by its own weight (for training its client's number of
            examples), `equal` by 1.
        needs_replies: Whether the server must see single replies, and not their sum alone.
    """

    @property
    def weights(self) -> Weights:
        """What a reply's weight is."""
        ...

    @property
    def needs_replies(self) -> bool:
        """Whether single replies are compared."""
        ...

    def centre(self, stacked: Tensor) -> Tensor:
        """Returns (...) the middle of (clients, ...) values; asked when `needs_replies`."""
        ...


def aggregate(rule: Aggregation, results: Sequence[BlockResult]) -> Aggregate:
    """Returns what the method sees of the results of an exchange's blocks.

    Under a rule that needs replies the total is the rule's value times the sum of the weights, so
    that `Aggregate.mean` is the rule's value.

    Args:
        rule: The rule.
        results: Blocks in the order of their ids, revealed when the rule needs replies.
    """
    if not rule.needs_replies:
        return combine([result.total for result in results if result.total is not None])
    replies = [reply for result in results for reply in result.replies or ()]
    sums = fold(replies, rule.weights == "equal")
    middle = {name: rule.centre(stack(replies, name)) for name in sums.total}
    total = {name: value * sums.weight for name, value in middle.items()}
    return Aggregate(total, sums.weight, sums.count, sums.metrics)


def stack(replies: Sequence[Reply], name: str) -> Tensor:
    """Returns the (clients, ...) values of one tensor, in float64."""
    return torch.stack([reply.tensors[name].double() for reply in replies])
