"""L2: local training is pulled towards the model that the last stage ended with.

Smith, Tian, Halbe, Hsu and Kira, A closer look at rehearsal-free continual learning, CVPR workshops
2023 (arXiv 2203.17269): the plain L2 penalty in parameter space that the paper compares EWC with.
From stage 1 on each client minimises, with theta* the global model at the last stage's end,

    its loss + strength / 2 * ||theta - theta*||^2 .

The paper trains one network on one machine; here the penalty is in every client's steps, and the
server averages as ever. A step of size lr moves theta by -lr (g + strength (theta - theta*)). So
from theta* on, with lr * strength <= 1, theta stays within max ||g|| / strength of theta*, averages
too; from lr * strength = 2 on the steps overshoot and diverge. A method does not know lr: choose
strength below 1 / lr.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedcl.core.client import Model
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.features.layers import Head, guarded_layers, protected_layers
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.optimizer import Moments, check_server, server_needs, server_step
from fedcl.core.params import Params, add

__all__ = ["L2"]


@dataclass(frozen=True)
class State:
    """Server state: model, the last stage's one, the server optimizer's moments."""

    params: Params
    anchor: Params = field(default_factory=dict)
    moments: Moments = field(default_factory=Moments)


@dataclass(frozen=True)
class Anchored:
    """What goes down from stage 1 on: the model, and where its parameters are pulled to."""

    params: Params
    anchor: Params


@dataclass(frozen=True)
class Pull:
    """Half of `strength` times the squared distance to the message's anchor."""

    strength: float

    def __call__(self, params: Params, message: Anchored) -> Tensor:
        """Returns a scalar that touches no data."""
        squares = [(params[name] - old).square().sum() for name, old in message.anchor.items()]
        return 0.5 * self.strength * torch.stack(squares).sum()


@dataclass(frozen=True)
class L2(Method[State]):
    """Clients train with a penalty on the distance to the last stage's model.

    Attributes:
        strength: The factor of the penalty; below 1 / lr (see above).
        head: Whether the last layer, weight and bias, is pulled too: `auto` means in the
            domain-incremental scenario. Elsewhere a new task's rows are untrained when the last
            stage ends, and a pull there would hold them back.
        masked: Compare only the classes of the present task in the loss.
        server: Server optimizer: `mean`, `momentum` or `adam`.
        server_lr: Its learning rate.
        server_momentum: Its momentum.
    """

    strength: float = 0.03
    head: Head = "auto"
    masked: bool = False
    server: Literal["mean", "momentum", "adam"] = "mean"
    server_lr: float = 1.0
    server_momentum: float = 0.9

    family: ClassVar[str] = "regularisation"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = "each round from stage 1 on: the last stage's model down"
    paper: ClassVar[str] = "Smith et al., CVPR workshops 2023"
    coverage: ClassVar[Coverage] = OWN  # the penalty sees parameters alone

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise ValueError(f"strength must be at least 0 and finite, not {self.strength}")
        check_server(self.server, self.server_lr, self.server_momentum)

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what the anchor and the server's optimizer take."""
        moments, step = server_needs(self.server, sizes.params // sizes.item)
        anchor = sizes.params if self.strength else 0
        return Needs(
            state=moments + anchor, server=step, training="penalty" if self.strength else "plain"
        )

    def init(self, params: Params) -> State:
        """Starts without an anchor."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort, which trained with the pull if there is an anchor."""
        loss = CrossEntropy(self.masked)
        if state.anchor:
            local = fed.local(loss, penalty=Pull(self.strength))
            change = fed.aggregate(local, Anchored(state.params, state.anchor)).mean
        else:
            change = fed.aggregate(fed.local(loss), Model(state.params)).mean
        step, moments = server_step(
            change, state.moments, self.server, self.server_lr, self.server_momentum
        )
        return replace(state, params=add(state.params, step), moments=moments)

    def end_task(self, state: State, fed: Federation) -> State:
        """Takes the present model as the anchor; no penalty needs none."""
        if not self.strength:
            return state
        guarded = guarded_layers(fed.model, self.head, fed.task.scenario)
        weights = protected_layers(fed.model).keys() - set(guarded)
        free = {_layer(weight) for weight in weights}
        anchor = {name: value for name, value in state.params.items() if _layer(name) not in free}
        return replace(state, anchor=anchor)


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]
