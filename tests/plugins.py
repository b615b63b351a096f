"""Plug-ins of other people (`name = "tests.plugins:Peek"`), each for one corner of the house."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedcl.core.channel import Aggregate, Sending
from fedcl.core.client import Client, Model, Reply
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method
from fedcl.core.model import Net
from fedcl.core.params import Params, add, copy
from fedcl.core.task import ClientTask, Examples


@dataclass(frozen=True)
class State:
    """The global model."""

    params: Params


class Averaging(Method[State]):
    """What the plug-ins here have in common: FedAvg."""

    family: ClassVar[str] = "test"

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        change = fed.aggregate(fed.local(CrossEntropy()), Model(state.params)).mean
        return replace(state, params=add(state.params, change))


@dataclass(frozen=True)
class Peek(Averaging):
    """Looks at single replies, and takes their unweighted mean."""

    exposure: ClassVar[Literal["mean", "replies"]] = "replies"

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean of the replies."""
        replies = fed.collect(fed.local(CrossEntropy()), Model(state.params))
        params = dict(state.params)
        for reply in replies:
            params = add(params, reply.tensors, 1 / len(replies))
        return replace(state, params=params)


@dataclass(frozen=True)
class Liar(Peek):
    """Looks at single replies, though it says that it does not."""

    exposure: ClassVar[Literal["mean", "replies"]] = "mean"


@dataclass(frozen=True)
class Twice(Averaging):
    """Asks the same twice in a round and takes the mean of both changes."""

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean of two mean changes."""
        params = dict(state.params)
        for _ in range(2):
            change = fed.aggregate(fed.local(CrossEntropy()), Model(state.params)).mean
            params = add(params, change, 0.5)
        return replace(state, params=params)


@dataclass(frozen=True)
class Failing(Averaging):
    """One client's program fails.

    Attributes:
        client: Which client.
        stage: At the end of which stage.
    """

    client: int = 3
    stage: int = 1

    needs_borders: ClassVar[bool] = True
    client_half: ClassVar[tuple[str, ...]] = ("fail",)

    def end_task(self, state: State, fed: Federation) -> State:
        """Asks all members."""
        if fed.task.index == self.stage:
            fed.aggregate(self.fail, Model(state.params), clients=fed.members)
        return state

    def fail(self, client: Client, message: Model) -> Reply:
        """Fails for one client."""
        if client.id == self.client:
            raise ArithmeticError("the cat sat on the keyboard")
        return Reply({})


@dataclass(frozen=True)
class BrokenLoss(Averaging):
    """Its loss fails, on all clients."""

    client_half: ClassVar[tuple[str, ...]] = ("broken",)

    def round(self, state: State, fed: Federation) -> State:
        """Trains with the broken loss."""
        fed.aggregate(fed.local(self.broken), Model(state.params))
        return state

    def broken(self, net: Net, batch: Examples, task: ClientTask, message: object) -> Tensor:
        """Has a matrix of the wrong shape."""
        return net(batch.x[:, :, :2]).sum(1)


@dataclass(frozen=True)
class Personal(Averaging):
    """Each client is evaluated with the model that it last trained."""

    client_half: ClassVar[tuple[str, ...]] = ("own",)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change, while each client keeps its local model."""
        local = fed.local(CrossEntropy(), keep=self.own)
        change = fed.aggregate(local, Model(state.params)).mean
        return replace(state, params=add(state.params, change))

    def own(self, client: Client, message: Model, params: Params) -> Params:
        """Keeps the local model."""
        return copy(params)

    def personal(self, state: State, memory: Mapping[str, Tensor] | None) -> Params:
        """Returns the client's own model, the global one before it has any."""
        return state.params if memory is None else memory


@dataclass(frozen=True)
class Growing:
    """A channel with a state: the n-th sum that it receives counts n times."""

    @property
    def hides_replies(self) -> bool:
        """Hides nothing."""
        return False

    def init(self) -> int:
        """Has received nothing."""
        return 0

    def upload(self, reply: Reply, client: Client, sending: Sending) -> Reply:
        """Changes nothing."""
        return reply

    def receive(self, total: Aggregate, state: Any, seed: int) -> tuple[Aggregate, Any]:
        """Multiplies by how many sums came so far."""
        count = state + 1
        grown = {name: value * count for name, value in total.total.items()}
        return replace(total, total=grown), count


class ScaledNet(nn.Module):
    """A linear model times a parameter that belongs to no layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)
        self.scale = nn.Parameter(torch.ones(classes))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.head(x.flatten(1)) * self.scale
        return scaled


@dataclass(frozen=True)
class Scaled:
    """A model without a form for several clients at once."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return ScaledNet(math.prod(shape), classes)
