"""Statistics of examples as programs: sums that an engine may take over many clients at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedcl.core.client import Client, Reply
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.seeds import seed_of, uniforms
from fedcl.core.task import ClientTask, Examples

Measure = Callable[[Net, Examples, ClientTask, Any], Params]


@dataclass(frozen=True)
class Statistic:
    """One exchange that adds up what single examples give.

    Gram matrices, Fisher information, prototypes and counts are such sums. A client sends the sum
    over its own examples, with weight 1. Where only the sum over clients is asked for, an engine
    may let clients of one task share a call, since a sum does not know whose rows it is made of.

    Attributes:
        measure: `measure(net, rows, task, message)` -> tensors by name, sums over the rows to each
            of which a row contributes by itself; `net` has the parameters of the message.
        name: Name of the program in records and errors.
        exact: Kinds (the part of a name before `/`) that travel in the type in which they were
            summed; the others travel in the type of the inputs.
        rows: Examples of one call at most.
        draws: Random numbers of each row, for a measure that samples: float64 in [0, 1) in
            `rows.extra["draws"]`, shape (n, draws), functions of the client, the exchange and the
            row alone.
    """

    measure: Measure
    name: str = "statistic"
    exact: tuple[str, ...] = ()
    rows: int = 128
    draws: int = 0

    def __call__(self, client: Client, message: Any) -> Reply:
        """Returns the sums over one client's examples."""
        data = self.drawn(client.data, [len(client.data)], [client.seed])
        sums = self.sums(Net(client.model, message.params), data, client.task, message)
        kind = client.data.x.dtype
        tensors = {name: value.to(self.sent(name, value, kind)) for name, value in sums.items()}
        return Reply(tensors, examples=len(client.data))

    def drawn(self, data: Examples, sizes: Sequence[int], seeds: Sequence[int]) -> Examples:
        """Returns examples of some clients with their random numbers.

        Args:
            data: The examples, client after client.
            sizes: Examples of each.
            seeds: Seed of each in this exchange.
        """
        if not self.draws:
            return data
        found = [
            uniforms(seed_of(seed, "draws"), np.arange(size), self.draws)
            for size, seed in zip(sizes, seeds, strict=True)
        ]
        column = torch.from_numpy(np.concatenate(found)).to(data.y.device)
        return replace(data, extra={**data.extra, "draws": column})

    def sums(self, net: Net, data: Examples, task: ClientTask, message: Any) -> dict[str, Tensor]:
        """Returns the sums over all rows of `data`, made call by call."""
        total: dict[str, Tensor] = {}
        numbers = torch.arange(len(data), device=data.y.device)
        for part in numbers.split(self.rows):
            for name, value in self.measure(net, data.take(part), task, message).items():
                total[name] = total[name] + value if name in total else value
        return total

    def kind(self, name: str) -> str:
        """Returns the kind of payload that a tensor is booked under."""
        return name.split("/")[0] if "/" in name else self.name

    def sent(self, name: str, value: Tensor, inputs: torch.dtype) -> torch.dtype:
        """Returns the type in which a tensor travels."""
        keeps = self.kind(name) in self.exact or not value.is_floating_point()
        return value.dtype if keeps else inputs
