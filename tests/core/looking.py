"""A method whose clients show which public data they have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from fedcl.core.client import Client, Model, Reply
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method
from fedcl.core.params import Params, add
from fedcl.core.task import Examples


@dataclass(frozen=True)
class State:
    """The global model, and how many public rows a client had when it was last asked."""

    params: Params
    rows: int = -1


@dataclass(frozen=True)
class Looking(Method[State]):
    """Trains on public data; the server compares what each client shows with what it has itself."""

    family: ClassVar[str] = "test"
    exposure: ClassVar[Literal["mean", "replies"]] = "replies"
    client_half: ClassVar[tuple[str, ...]] = ("shown", "trained_on")

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort.

        Raises:
            ValueError: A client has other public data than the server.
        """
        own = fed.task.public
        for reply in fed.collect(self.shown, Model(state.params)):
            found = reply.tensors
            if own is None and len(found["public/y"]):
                raise ValueError("a client has public data, and the server has none")
            if own is not None and not (
                torch.equal(found["public/x"], own.x) and torch.equal(found["public/y"], own.y)
            ):
                raise ValueError("a client has other public data than the server")
        local = fed.local(CrossEntropy(), data=self.trained_on)
        change = fed.aggregate(local, Model(state.params)).mean
        rows = 0 if own is None else len(own)
        return replace(state, params=add(state.params, change), rows=rows)

    def shown(self, client: Client, message: Model) -> Reply:
        """Sends its public data, or no rows."""
        nothing = torch.zeros(0, dtype=torch.int64, device=client.data.y.device)
        found = client.data.take(nothing) if client.public is None else client.public
        return Reply({"public/x": found.x, "public/y": found.y})

    def trained_on(self, client: Client, message: Model) -> Examples:
        """Trains on all public data as they lie, or on its own where there are none."""
        return client.data if client.public is None else client.public
