"""Methods that ask for one thing each round, and keep what the server got of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fedcl.core.channel import Aggregate
from fedcl.core.client import Client, Model, Reply, Spent
from fedcl.core.coverage import KEPT, OWN, UNDECLARED, Coverage
from fedcl.core.features.layers import guarded_layers
from fedcl.core.features.moments import InputMoments, Inputs
from fedcl.core.federation import Federation
from fedcl.core.local import cross_entropy
from fedcl.core.method import Method
from fedcl.core.params import Params
from fedcl.core.statistic import Statistic
from fedcl.core.task import Examples

RECEIVED: list[Aggregate] = []  # by the server of this process, since somebody emptied it
LAYERS = ("fc1.weight", "head.weight")


@dataclass(frozen=True)
class State:
    """The model, which nobody changes."""

    params: Params


@dataclass(frozen=True)
class Asking(Method[State]):
    """Asks the cohort.

    Attributes:
        what: For what: plain `training` or a `statistic`; training on data of its `own` choice, or
            that lets clients `remember`; for the `mean` input, with a claim that it was protected.
        declared: What it says of itself.
    """

    client_half: ClassVar[tuple[str, ...]] = ("chosen", "keep", "mean")

    what: Literal["training", "statistic", "own", "remember", "mean"] = "training"
    declared: Literal["nothing", "own", "kept"] = "nothing"

    def records(self) -> Coverage:
        """Says what it was told to say."""
        return {"nothing": UNDECLARED, "own": OWN, "kept": KEPT}[self.declared]

    def init(self, params: Params) -> State:
        """Keeps the model."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Takes note of the sum that the server gets."""
        message: Any = Model(state.params)
        program: Any = fed.local(cross_entropy)
        if self.what == "statistic":
            program = Statistic(InputMoments(), "gram", exact=("gram", "norms"))
            message = Inputs(state.params, {}, guarded_layers(fed.model, "protect", "domain"))
        elif self.what == "own":
            program = fed.local(cross_entropy, data=self.chosen)
        elif self.what == "remember":
            program = fed.local(cross_entropy, keep=self.keep)
        elif self.what == "mean":
            program = self.mean
        RECEIVED.append(fed.aggregate(program, message))
        return state

    def chosen(self, client: Client, message: Model) -> Examples:
        """Trains on what it likes."""
        return client.data.part(0, len(client.data) // 2)

    def keep(self, client: Client, message: Model, params: Params) -> Examples:
        """Keeps all examples."""
        return client.data

    def mean(self, client: Client, message: Model) -> Reply:
        """Sends the mean input, and says that noise hides it."""
        return Reply({"x": client.data.x.mean(0)}, spent=Spent(1000.0, 1.0, 1))
