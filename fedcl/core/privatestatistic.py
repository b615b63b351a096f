"""Statistics under example-level privacy: each row's part is clipped, each client adds its noise.

A row's part is all that it adds to all tensors of the statistic, taken together as one vector. With
its norm at most C, a row that is there or contributes nothing changes a client's sum by at most C;
the client adds N(0, (z C)^2) to every number before anything leaves it: one step at rate 1. Counts
and norms inside a statistic are noised like all else, so a method must not rely on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedcl.core.client import Client, Reply, Spent
from fedcl.core.clipping import clipped
from fedcl.core.examples import ExampleMechanism
from fedcl.core.model import Net
from fedcl.core.noise import gaussian
from fedcl.core.params import Params
from fedcl.core.statistic import Statistic
from fedcl.core.task import ClientTask, Examples

_KEPT_BELOW = 1.0 - 2.0**-40  # room for the rounding of norms and factors


class Apart(Protocol):
    """A measure that knows the norms of its rows' parts without writing these out."""

    def weighed(
        self,
        net: Net,
        rows: Examples,
        task: ClientTask,
        message: Any,
        factors: Callable[[Tensor], Tensor],
    ) -> Params:
        """Returns the sums over rows of factor times part.

        Args:
            net: The network with the message's parameters.
            rows: Examples.
            task: As the measure gets it.
            message: As the measure gets it.
            factors: (n,) float64 squared norms of the rows' parts -> (n,) float64 factors; a row
                whose factor is 0 must add exact zeros, whatever it holds.
        """
        ...


@dataclass(frozen=True)
class PrivateStatistic:
    """A statistic as a client under example-level privacy answers it.

    Attributes:
        statistic: What is asked.
        promise: Bound and noise.
    """

    statistic: Statistic
    promise: ExampleMechanism

    @property
    def clip(self) -> float:
        """The largest norm of a row's part."""
        return clip_of(self.promise, self.statistic.name)

    def __call__(self, client: Client, message: Any) -> Reply:
        """Returns the noised sums of one client.

        Raises:
            ValueError: The client has no secret key.
        """
        if client.key is None:
            raise ValueError("noise that protects records needs a secret key, and there is none")
        own, scale = self.statistic, self.promise.noise_multiplier * self.clip
        data = own.drawn(client.data, [len(client.data)], [client.seed])
        sums = bounded_sums(
            own, Net(client.model, message.params), data, client.task, message, self.clip
        )
        tensors = {}
        for name, value in sums.items():
            noise = gaussian(client.key, value.shape, scale, "statistic", own.name, name)
            sent = own.sent(name, value, client.data.x.dtype)
            tensors[name] = (value + noise.to(value.device)).to(sent)
        spent = Spent(self.promise.noise_multiplier, 1.0, 1)
        return Reply(tensors, examples=len(client.data), spent=spent)


def clip_of(promise: ExampleMechanism, name: str) -> float:
    """Returns the largest norm of a row's part in the statistic of a name."""
    return float(promise.clips.get(name, promise.clip))


def noise_of(promise: ExampleMechanism, name: str, clients: int) -> float:
    """Returns the standard deviation of the noise in each number of a sum over clients."""
    return promise.noise_multiplier * clip_of(promise, name) * math.sqrt(clients)


def bounded_sums(
    statistic: Statistic,
    net: Net,
    data: Examples,
    task: ClientTask,
    message: Any,
    clip: float,
) -> dict[str, Tensor]:
    """Returns the sums over rows of their parts, each clipped to a norm, in float64.

    A part that holds a NaN or an infinity counts as zeros. What is no floating number is counted as
    one: it would go up without noise otherwise.

    Args:
        statistic: What is measured.
        net: The network with the message's parameters.
        data: All rows of one client, with their draws.
        task: Their masks.
        message: What came down.
        clip: The largest norm of a part.
    """
    total: dict[str, Tensor] = {}

    def add(parts: Mapping[str, Tensor]) -> None:
        for name, value in parts.items():
            total[name] = total[name] + value if name in total else value

    measure = statistic.measure
    apart: Apart | None = measure if hasattr(measure, "weighed") else None
    if apart is not None:

        def factors(squares: Tensor) -> Tensor:
            sizes = squares.double().sqrt()
            found = (clip * _KEPT_BELOW / sizes).clamp(max=1.0)
            return torch.where(torch.isfinite(sizes), found, 0.0)

        numbers = torch.arange(len(data), device=data.y.device)
        for some in numbers.split(statistic.rows):
            add(_wide(apart.weighed(net, data.take(some), task, message, factors)))
        return total
    for row in range(len(data)):
        part = measure(net, data.part(row, row + 1), task, message)
        add(clipped(_wide(part), clip * _KEPT_BELOW))
    if not total:  # no row gives the form, and only that
        part = measure(net, data.part(0, 0), task, message)
        add({name: torch.zeros_like(value) for name, value in _wide(part).items()})
    return total


def _wide(parts: Params) -> dict[str, Tensor]:
    return {name: value.detach().to(torch.float64) for name, value in parts.items()}
