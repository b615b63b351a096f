"""Federated averaging: the naive baseline, which trains on each task and forgets the last.

McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS
2017.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from fedcl.core.client import Model
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.optimizer import Moments, check_server, server_needs, server_step
from fedcl.core.params import Params, add

__all__ = ["FedAvg"]


@dataclass(frozen=True)
class State:
    """Server state: the global model and the server optimizer's moments."""

    params: Params
    moments: Moments = field(default_factory=Moments)


@dataclass(frozen=True)
class FedAvg(Method[State]):
    """Averages the changes of the cohort.

    Attributes:
        masked: Compare only the classes of the present task in the loss.
        server: Server optimizer: `mean`, `momentum` (FedAvgM) or `adam` (FedAdam).
        server_lr: Its learning rate.
        server_momentum: Its momentum.
    """

    masked: bool = False
    server: Literal["mean", "momentum", "adam"] = "mean"
    server_lr: float = 1.0
    server_momentum: float = 0.9

    family: ClassVar[str] = "baseline"
    paper: ClassVar[str] = "McMahan et al., AISTATS 2017"
    coverage: ClassVar[Coverage] = OWN  # plain training

    def __post_init__(self) -> None:
        check_server(self.server, self.server_lr, self.server_momentum)

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what the server's optimizer remembers."""
        moments, step = server_needs(self.server, sizes.params // sizes.item)
        return Needs(state=moments, server=step)

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        change = fed.aggregate(fed.local(CrossEntropy(self.masked)), Model(state.params)).mean
        step, moments = server_step(
            change, state.moments, self.server, self.server_lr, self.server_momentum
        )
        return replace(state, params=add(state.params, step), moments=moments)
