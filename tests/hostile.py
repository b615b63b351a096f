"""A method whose client 0 sends what it likes, and what the server got of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedcl.core.channel import Aggregate
from fedcl.core.client import Client, Model, Reply
from fedcl.core.federation import Federation
from fedcl.core.method import Method
from fedcl.core.params import Params

SIZE = 40_000
ATTACKS = ("zero", "nan", "one_nan", "inf", "minus_inf", "huge", "tiny", "large", "random")
RECEIVED: list[Aggregate] = []  # by the server of this process, since somebody emptied it


@dataclass(frozen=True)
class State:
    """The model, which nobody changes."""

    params: Params


@dataclass(frozen=True)
class Hostile(Method[State]):
    """Asks for vectors; client 0 sends a hostile one, or nothing that counts.

    Attributes:
        attack: What client 0 sends; `absent` for zeros.
            `mixed` draws another one for each exchange.
        ask: Whom the server asks.
        size: Numbers of the longest vector.
    """

    client_half: ClassVar[tuple[str, ...]] = ("send",)

    attack: str = "absent"
    ask: Literal["cohort", "members", "some"] = "cohort"
    size: int = SIZE

    def init(self, params: Params) -> State:
        """Keeps the model."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Takes note of the sum that the server gets."""
        clients = {"cohort": None, "members": fed.members, "some": fed.members[:2]}[self.ask]
        RECEIVED.append(fed.aggregate(self.send, Model(state.params), clients))
        return state

    def send(self, client: Client, message: Model) -> Reply:
        """Sends vectors in an order, with a weight and a metric, that depend on the data."""
        generator = torch.Generator().manual_seed(client.id)
        tensors = {
            "b": torch.randn(self.size, generator=generator, dtype=torch.float64),
            "a": torch.randn(7, 3, generator=generator),
            "counter": torch.tensor(len(client.data)),
        }
        if client.id == 0 and self.attack == "mixed":
            tensors = _mixed(client.seed, tensors)
        elif client.id == 0:
            tensors = {name: self._hostile(value) for name, value in tensors.items()}
        return Reply(tensors, 10_000.0 ** (client.id + 1), {"size": float(len(client.data))})

    def _hostile(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value * (0 if self.attack == "absent" else 10**9)
        filled = {"nan": float("nan"), "inf": float("inf"), "minus_inf": -float("inf")}
        filled |= {"huge": 1e30, "tiny": 1e-30, "zero": 0.0, "absent": 0.0}
        if self.attack in filled:
            return torch.full_like(value, filled[self.attack])
        if self.attack == "one_nan":
            return torch.where(torch.arange(value.numel()).view(value.shape) == 1, torch.nan, value)
        return value * (1e6 if self.attack == "large" else 1.0)


def _mixed(seed: int, tensors: Params) -> dict[str, Tensor]:
    """Returns vectors of any size, some with numbers that are none, in any order of their names."""
    random, found = np.random.default_rng(seed), {}
    for name in random.permutation(sorted(tensors)):
        value = tensors[name]
        scale = 10.0 ** random.uniform(-40, 40) * (0.0 if random.random() < 0.1 else 1.0)
        if value.is_floating_point():
            value = (value * random.choice([-1.0, 1.0]) * scale).clone()
            if value.numel() and random.random() < 0.2:
                place = int(random.integers(value.numel()))
                value.view(-1)[place] = float(random.choice([np.nan, np.inf, -np.inf, 3e38]))
        found[str(name)] = value
    return found
