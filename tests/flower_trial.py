"""A method whose clients keep models of their own, fail and sleep; nodes find it by its name."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fedcl.core.client import Client, Each, Model, Reply
from fedcl.core.federation import Federation
from fedcl.core.local import change, cross_entropy, own_data
from fedcl.core.method import Method
from fedcl.core.params import Params, add

__all__ = ["Trial"]


@dataclass(frozen=True)
class State:
    """Server state: the global model."""

    params: Params


@dataclass(frozen=True)
class Own:
    """A message for one client."""

    client: int


@dataclass(frozen=True)
class Trial(Method[State]):
    """Averages single replies; each client keeps its own local model and is evaluated with it.

    Attributes:
        fails: Client whose program fails in the second stage.
        sleeps: Client that takes its time in the first round of each stage.
        seconds: How long.
    """

    fails: int = -1
    sleeps: int = -1
    seconds: float = 1.0

    family: ClassVar[str] = "baseline"
    exposure: ClassVar[Any] = "replies"
    client_half: ClassVar[tuple[str, ...]] = ("look", "keep")

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Asks for something first, then trains."""
        if fed.round == 0:
            fed.aggregate(self.look, Each({id: Own(id) for id in fed.cohort}))
        local = fed.local(cross_entropy, data=own_data, keep=self.keep, report=change)
        replies = fed.collect(local, Model(state.params))
        params = state.params
        for reply in replies:
            params = add(params, reply.tensors, 1.0 / len(replies))
        return replace(state, params=params)

    def personal(self, state: State, memory: Any) -> Params:
        """Returns the client's own model, if it has been asked yet."""
        return memory if memory is not None else state.params

    def look(self, client: Client, message: Own) -> Reply:
        """Fails or sleeps where it shall; half of the clients forget their own model."""
        if message.client != client.id:
            raise ValueError(f"it got the message of client {message.client}")
        if client.id == self.fails and int(client.task.index) == 1:
            raise ValueError("no luck today")
        if client.id == self.sleeps:
            time.sleep(self.seconds)
        return Reply({}, state=None) if client.id % 2 else Reply({})

    def keep(self, client: Client, message: Model, params: Params) -> Params:
        """Keeps the local model."""
        return params
