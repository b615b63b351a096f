"""Joint training: each stage trains a new model on all stages so far; the upper reference.

Clients keep every example, which no federated continual-learning method may do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from fedcl.core.client import Client, Reply
from fedcl.core.coverage import KEPT, Coverage
from fedcl.core.federation import Federation
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add
from fedcl.core.replay.memory import Rehearsal, RowwiseCrossEntropy, present_rows, with_present
from fedcl.core.task import Examples, join

__all__ = ["Joint"]


@dataclass(frozen=True)
class State:
    """Server state: the present model, and the one that every stage starts from."""

    params: Params
    start: Params


@dataclass(frozen=True)
class Nothing:
    """A message without content."""


@dataclass(frozen=True)
class Joint(Method[State]):
    """Re-initialises the model at each stage and trains it on the examples of all stages so far."""

    family: ClassVar[str] = "reference"
    needs_borders: ClassVar[bool] = True
    paper: ClassVar[str] = "upper reference; a*_j of Chaudhry et al., ECCV 2018"
    coverage: ClassVar[Coverage] = KEPT  # all examples are kept
    client_half: ClassVar[tuple[str, ...]] = ("everything", "keep")

    def needs(self, sizes: Sizes) -> Needs:
        """Returns the first model, and the memory of a client that keeps all that it meets."""
        memory = sizes.stages * sizes.share * sizes.example
        return Needs(state=sizes.params, memory=memory, everyone=True)

    def init(self, params: Params) -> State:
        """Remembers the first parameters as every stage's start."""
        return State(params, params)

    def begin_task(self, state: State, fed: Federation) -> State:
        """Has every member keep its examples of this stage, and starts again."""
        fed.aggregate(self.keep, Nothing(), clients=fed.members)
        return replace(state, params=state.start)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        local = fed.local(RowwiseCrossEntropy(), data=self.everything)
        message = Rehearsal(state.params, fed.task.scenario == "task")
        return replace(state, params=add(state.params, fed.aggregate(local, message).mean))

    def everything(self, client: Client, message: Rehearsal) -> Examples:
        """Trains on the examples of all stages so far."""
        return with_present(client, client.state, message.separate)

    def keep(self, client: Client, message: Nothing) -> Reply:
        """Keeps the examples of the present stage with the earlier ones; nothing goes up."""
        rows: Any = present_rows(client)
        if client.state is not None:
            old = client.state.take(
                torch.nonzero(client.state.extra["stage"] != client.task.index).flatten()
            )
            rows = join([old, rows])
        return Reply({}, state=rows)
