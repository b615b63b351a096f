"""What happens on the wire: transforms of replies on their way up, and of their total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fedcl.core.accounting.ledger import Mechanism
from fedcl.core.client import Client, Reply
from fedcl.core.params import Params


@dataclass(frozen=True)
class Aggregate:
    """A weighted sum of replies: all that a method sees of an `aggregate` exchange.

    Attributes:
        total: Sum over clients of weight times tensor.
        weight: Sum of the weights.
        count: Number of clients that answered.
        metrics: Weighted means of the replies' metrics; empty where replies are hidden.
        noise: Standard deviation of the noise in each number of `total` that protects clients: a
            public constant, which a method may use.
    """

    total: Params
    weight: float
    count: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    noise: float = 0.0

    @property
    def sum(self) -> dict[str, Tensor]:
        """The sum of weight times tensor; of the tensors themselves where all weights are 1."""
        return dict(self.total)

    @property
    def mean(self) -> dict[str, Tensor]:
        """The weighted mean; zeros when all weights are zero."""
        scale = 1.0 / self.weight if self.weight > 0 else 0.0
        return {name: value * scale for name, value in self.total.items()}


@dataclass(frozen=True)
class Sending:
    """What a step knows of the exchange in which a reply leaves its client.

    Attributes:
        program: Name of the program that made the reply.
        told: What the step's server half told the clients of this exchange (`tells`), or None.
    """

    program: str = ""
    told: Any = None


class Transform(Protocol):
    """One step of a channel: what a file in `channels/` offers.

    A step that clips may have a property `mechanism` (`fedcl.core.accounting.ledger.Mechanism`):
    the door then charges each release, adds the noise to the sum, and divides means by a public
    constant. Where what it does differs between exchanges it has `mechanism_at(program, state,
    expected)` too. A step whose clients must know its server half's state has `tells(program,
    state, expected)`: what goes down with an exchange. `expected` is the public number of clients
    asked on average. A step that promises a norm for every reply has `bound(sending)`, and
    `keeps_form` where a reply has the same names, shapes and types after it. A step with `least`
    hands out no sum of fewer clients.
    """

    @property
    def hides_replies(self) -> bool:
        """Whether the server sees nothing but sums after it."""
        ...

    def init(self) -> Any:
        """Returns the first state of the server's half."""
        ...

    def upload(self, reply: Reply, client: Client, sending: Sending) -> Reply:
        """Changes one reply where the client runs."""
        ...

    def receive(self, total: Aggregate, state: Any, seed: int) -> tuple[Aggregate, Any]:
        """Changes the total on the server; returns it with the next state."""
        ...


Channel = Sequence[Transform]


def hides_replies(channel: Channel) -> bool:
    """Returns whether any step hides single replies from the server."""
    return any(step.hides_replies for step in channel)


def least_of(channel: Channel) -> int:
    """Returns the fewest clients whose sum a channel hands out; 0 for any number.

    Noise of the server's protects the sum of a few as well, and a sum that is withheld would tell
    their number. Noise that clients bring has to come from enough of them.
    """
    protection = mechanism(channel)
    if protection is not None and protection.shares is None:
        return 0
    return max((int(getattr(step, "least", 0)) for step in channel), default=0)


def mechanism(channel: Channel) -> Mechanism | None:
    """Returns what protects clients in a channel's sums, or None."""
    found = [getattr(step, "mechanism", None) for step in channel]
    return next((one for one in found if one is not None), None)


def mechanism_at(
    channel: Channel, states: Sequence[Any], program: str, expected: int
) -> Mechanism | None:
    """Returns what protects clients in the sum of one exchange, or None.

    Args:
        channel: The steps.
        states: Their server halves' states.
        program: Name of the program whose replies are summed.
        expected: Clients asked on average.
    """
    for step, state in zip(channel, states, strict=True):
        if getattr(step, "mechanism", None) is not None:
            at = getattr(step, "mechanism_at", None)
            return mechanism([step]) if at is None else at(program, state, expected)
    return None


def told(channel: Channel, states: Sequence[Any], program: str, expected: int) -> tuple[Any, ...]:
    """Returns what each step's server half tells the clients of an exchange."""
    return tuple(
        step.tells(program, state, expected) if hasattr(step, "tells") else None
        for step, state in zip(channel, states, strict=True)
    )


def fold(replies: Sequence[Reply], equal: bool) -> Aggregate:
    """Adds the replies of one block in their order, in float64.

    Args:
        replies: Replies in the order of the clients' ids.
        equal: Whether every reply counts as weight 1, whatever its own weight.
    """
    total: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    weight_sum = 0.0
    for reply in replies:
        weight = 1.0 if equal else reply.weight
        weight_sum += weight
        for name, value in reply.tensors.items():
            if name in total:
                total[name].add_(value, alpha=weight)
            else:
                total[name] = value.to(torch.float64) * weight
        if weight > 0:
            for name, number in reply.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + weight * number
    return Aggregate(total, weight_sum, len(replies), metrics)


def combine(blocks: Sequence[Aggregate]) -> Aggregate:
    """Adds the totals of blocks in their order; metrics stay sums until `finish`."""
    total: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    for block in blocks:
        for name, value in block.total.items():
            total[name] = total[name] + value if name in total else value
        for name, number in block.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + number
    return Aggregate(total, sum(b.weight for b in blocks), sum(b.count for b in blocks), metrics)
