"""FedProx: local training is pulled towards the global model that it began with.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, Federated optimization in heterogeneous networks,
MLSys 2020 (arXiv 1812.06127). In every round each client minimises, with w the model received,

    its loss + mu / 2 * ||theta - w||^2 ,

by as many local steps as the trainer says. What it claims is steadier convergence where clients
differ or do unequal work; it says nothing about earlier tasks, since w moves on with every round.
The paper lets slow devices do fewer epochs; here all do as many, so that its gain for those is not
shown, and the cohort is drawn uniformly and its changes weighted as `aggregation.weights` says,
where the paper draws clients by their share of the examples and averages plainly.

A step of size lr moves theta by -lr (g + mu (theta - w)): from lr * mu = 2 on it diverges. A method
does not know lr: choose mu below 1 / lr.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from fedcl.core.client import Model
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy, Proximal
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.optimizer import Moments, check_server, server_needs, server_step
from fedcl.core.params import Params, add

__all__ = ["FedProx"]


@dataclass(frozen=True)
class State:
    """Server state: the global model and the server optimizer's moments."""

    params: Params
    moments: Moments = field(default_factory=Moments)


@dataclass(frozen=True)
class FedProx(Method[State]):
    """Clients train with a penalty on the distance to the model that they received.

    Attributes:
        mu: The factor of the penalty; below 1 / lr (see above).
        masked: Compare only the classes of the present task in the loss.
        server: Server optimizer: `mean`, `momentum` or `adam`.
        server_lr: Its learning rate.
        server_momentum: Its momentum.
    """

    mu: float = 0.01
    masked: bool = False
    server: Literal["mean", "momentum", "adam"] = "mean"
    server_lr: float = 1.0
    server_momentum: float = 0.9

    family: ClassVar[str] = "regularisation"
    paper: ClassVar[str] = "Li et al., MLSys 2020"
    coverage: ClassVar[Coverage] = OWN  # the penalty sees parameters alone

    def __post_init__(self) -> None:
        if not 0 <= self.mu < float("inf"):
            raise ValueError(f"mu must be at least 0 and finite, not {self.mu}")
        check_server(self.server, self.server_lr, self.server_momentum)

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what the server's optimizer remembers; the pull is in local training."""
        moments, step = server_needs(self.server, sizes.params // sizes.item)
        return Needs(state=moments, server=step, training="penalty" if self.mu else "plain")

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort, which trained with the proximal term."""
        penalty = Proximal(self.mu) if self.mu else None
        local = fed.local(CrossEntropy(self.masked), penalty=penalty)
        change = fed.aggregate(local, Model(state.params)).mean
        step, moments = server_step(
            change, state.moments, self.server, self.server_lr, self.server_momentum
        )
        return replace(state, params=add(state.params, step), moments=moments)
