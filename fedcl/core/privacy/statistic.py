"""Statistics under example-level privacy: each row's part is clipped, each client adds its noise.

A row's part is all that it adds to all tensors of the statistic, taken together as one vector. With
its norm at most C, a row that is there or contributes nothing changes a client's sum by at most C;
the client adds N(0, (z C)^2) to every number before anything leaves it: one step at rate 1. Counts
and norms inside a statistic are noised like all else, so a method must not rely on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedcl.core.client import Client, Reply, Spent
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.privacy.clipping import clipped
from fedcl.core.privacy.examples import ExampleMechanism
from fedcl.core.privacy.noise import gaussian
from fedcl.core.privacy.rowparts import weighed
from fedcl.core.statistic import Statistic
from fedcl.core.task import ClientTask, Examples

_KEPT_BELOW = 1.0 - 2.0**-40  # room for the rounding of norms and factors


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


def noise_in(promise: ExampleMechanism | None, program: object, clients: int) -> float:
    """Returns the standard deviation of the noise in each number of a statistic over clients.

    Args:
        promise: What the trainer promises, or None: then there is none.
        program: What clients ran; of training no such number is known, and 0 is told.
        clients: How many answered.
    """
    if promise is None or not isinstance(program, Statistic):
        return 0.0
    return promise.noise_multiplier * clip_of(promise, program.name) * math.sqrt(clients)


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
    one: it would go up without noise otherwise. Names and shapes do not depend on the data.

    Args:
        statistic: What is measured.
        net: The network with the message's parameters.
        data: All rows of one client, with their draws.
        task: Their masks.
        message: What came down.
        clip: The largest norm of a part.
    """
    form = _form(statistic, net, data, task, message)
    total = {name: torch.zeros_like(value) for name, value in form.items()}

    def factors(squares: Tensor) -> Tensor:
        sizes = squares.sqrt()
        found = (clip * _KEPT_BELOW / sizes).clamp(max=1.0)
        return torch.where(torch.isfinite(sizes), found, 0.0)

    def add(parts: Mapping[str, Tensor]) -> None:
        for name, value in parts.items():
            if name in form and value.shape == form[name].shape:
                total[name] += value

    for some in torch.arange(len(data), device=data.y.device).split(statistic.rows):
        rows = data.take(some)
        sums = weighed(statistic.measure, net, rows, task, message, factors)
        if sums is not None:
            add(_wide(sums))
            continue
        for row in range(len(rows)):
            part = statistic.measure(net, rows.part(row, row + 1), task, message)
            add(clipped(_wide(part), clip * _KEPT_BELOW))
    return total


def _form(
    statistic: Statistic, net: Net, data: Examples, task: ClientTask, message: Any
) -> dict[str, Tensor]:
    """Returns tensors of the names and shapes that a reply has, whatever the data hold.

    They are those of a made-up row: a name that only some rows bring would tell of them.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, *data.x.shape[1:]), generator=generator).to(data.x)
    extra = {name: column.new_zeros((1, *column.shape[1:])) for name, column in data.extra.items()}
    made_up = Examples(x, data.y.new_zeros(1), extra)
    return _wide(statistic.measure(net, made_up, task, message))


def _wide(parts: Params) -> dict[str, Tensor]:
    return {name: value.detach().to(torch.float64) for name, value in parts.items()}
