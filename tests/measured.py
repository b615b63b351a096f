"""A method whose clients send vectors of known lengths, and an audit that keeps what it sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import torch

from fedcl.core.audit import Subject
from fedcl.core.channel import Aggregate
from fedcl.core.client import Client, Model, Reply
from fedcl.core.federation import Federation
from fedcl.core.method import Method
from fedcl.core.params import Params
from fedcl.core.request import Request
from fedcl.core.watch import Finding, Release, Watch

RECEIVED: list[Aggregate] = []  # by the server of this process, since somebody emptied it
RELEASED: list[Release] = []
SENT: list[Mapping[int, Reply]] = []


def size_of(client: int, clients: int, median: float, spread: float) -> float:
    """Returns a length: those of all clients are the quantiles of a log-normal distribution."""
    return median * math.exp(spread * NormalDist().inv_cdf((client + 0.5) / clients))


@dataclass(frozen=True)
class State:
    """The model, which nobody changes."""

    params: Params


@dataclass(frozen=True)
class Measured(Method[State]):
    """Asks for vectors of known lengths in each round, and for others as a stage ends.

    Attributes:
        clients: How many there are.
        median: Of the lengths.
        spread: Standard deviation of their logarithms.
        numbers: In a vector.
        broken: Whether client 0 sends NaN.
    """

    client_half: ClassVar[tuple[str, ...]] = ("send", "sum")

    clients: int = 5
    median: float = 1.0
    spread: float = 0.5
    numbers: int = 20
    broken: bool = False

    def init(self, params: Params) -> State:
        """Keeps the model."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Takes note of the sum that the server gets."""
        RECEIVED.append(fed.aggregate(self.send, Model(state.params)))
        return state

    def end_task(self, state: State, fed: Federation) -> State:
        """Asks everybody for a statistic, which is a hundred times as long."""
        fed.aggregate(self.sum, Model(state.params), clients=fed.members)
        return state

    def send(self, client: Client, message: Model) -> Reply:
        """Sends a vector of the client's length in its own direction."""
        generator = torch.Generator().manual_seed(client.id)
        line = torch.randn(self.numbers, generator=generator, dtype=torch.float64)
        size = size_of(client.id, self.clients, self.median, self.spread)
        if self.broken and client.id == 0:
            size = math.nan
        return Reply({"line": line * (size / line.norm())})

    def sum(self, client: Client, message: Model) -> Reply:
        """Sends a vector a hundred times as long."""
        return Reply({"line": 100 * self.send(client, message).tensors["line"]})


@dataclass(frozen=True)
class Kept:
    """Keeps every release and, if asked to, every reply."""

    replies: bool = False

    def open(self, subject: Subject) -> Watch:
        """Begins to watch a run."""
        RECEIVED.clear()
        RELEASED.clear()
        SENT.clear()
        return _Kept(self.replies)


@dataclass
class _Kept(Watch):
    replies: bool

    def wants(self, request: Request) -> bool:
        return self.replies

    def sent(self, request: Request, replies: Mapping[int, Reply]) -> None:
        SENT.append(dict(replies))

    def released(self, release: Release) -> None:
        RELEASED.append(release)

    def finish(self, params: Params) -> Finding:
        return Finding()
