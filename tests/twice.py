"""A method that asks one cohort two times in a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedcl.core.client import Client, Model, Reply
from fedcl.core.federation import Federation
from fedcl.core.method import Method
from fedcl.core.params import Params


@dataclass(frozen=True)
class State:
    """The model, which nobody changes."""

    params: Params


@dataclass(frozen=True)
class Twice(Method[State]):
    """Asks twice, and learns nothing."""

    client_half: ClassVar[tuple[str, ...]] = ("send",)

    def init(self, params: Params) -> State:
        """Keeps the model."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Asks the cohort for the same thing two times."""
        for _ in range(2):
            fed.aggregate(self.send, Model(state.params))
        return state

    def send(self, client: Client, message: Model) -> Reply:
        """Sends one number."""
        return Reply({"one": torch.ones(1)})
