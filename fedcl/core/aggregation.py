"""How replies become one: what a file in `aggregations/` offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from torch import Tensor

from fedcl.core.channel import Aggregate, combine, fold
from fedcl.core.params import Params
from fedcl.core.request import BlockResult

Weights = Literal["examples", "equal"]


class Aggregation(Protocol):
    """A rule; the mean is a sum and is taken block by block where clients run.

    Attributes:
        weights: `examples` weighs a reply by its own weight (for training its client's number of
            examples), `equal` by 1.
        needs_replies: Whether the server must see single replies, and not their sum alone.
        least: Replies below which the rule promises nothing; an exchange with fewer counts as one
            with too few answers.
    """

    @property
    def weights(self) -> Weights:
        """What a reply's weight is."""
        ...

    @property
    def needs_replies(self) -> bool:
        """Whether single replies are compared."""
        ...

    @property
    def least(self) -> int:
        """Replies that it needs."""
        ...

    def combine(self, replies: Sequence[Params]) -> Mapping[str, Tensor]:
        """Returns the one reply that stands for all; asked when `needs_replies`.

        Args:
            replies: At least one, all of the same names, shapes and types.
        """
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
    counted = fold([replace(reply, tensors={}) for reply in replies], rule.weights == "equal")
    if not replies:
        return counted
    one = rule.combine([reply.tensors for reply in replies])
    total = {name: value.double() * counted.weight for name, value in one.items()}
    return replace(counted, total=total)
