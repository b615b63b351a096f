"""EWC: each parameter is pulled to its last value as hard as old tasks' answers depend on it.

Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017, in its online
form: Schwarz et al., Progress and compress, ICML 2018. At a stage's end all members send, at the
global model, their sums of squared gradients of single examples' log-likelihood; with F their sum
over the number of all examples, importance <- decay * importance + F, and from then on each client
minimises, with theta* the global model at the last stage's end,

    its loss + strength / 2 * sum_i importance_i (theta_i - theta*_i)^2 .

Schwarz et al. keep a running sum with decay < 1; 1 is the plain sum, as in Kirkpatrick et al., who
keep one theta* for each task instead of the last. `empirical` takes the examples' own labels, as
federated code does (and most other code); the papers' Fisher information takes labels drawn from
the model's prediction: `sampled`.

A step of size lr moves a parameter by -lr strength importance_i (theta_i - theta*_i): beyond 1 / lr
it overshoots, beyond 2 / lr it diverges, and importances spread over many powers of ten. `cap` is
ours: no factor strength * importance_i is larger. A method does not know lr: choose cap below
1 / lr. What is capped moves within max |g_i| / cap of its anchor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fedcl.core.consolidation.elastic import (
    check_pull,
    consolidated,
    guarded_parameters,
    pulled_change,
)
from fedcl.core.consolidation.importance import (
    ROWS,
    Consolidated,
    SquaredGradients,
    importance_needs,
)
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.features.layers import Head
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.optimizer import check_server, server_needs, server_step
from fedcl.core.params import Params, add
from fedcl.core.statistic import Statistic

__all__ = ["EWC"]


@dataclass(frozen=True)
class EWC(Method[Consolidated]):
    """Clients train with a penalty that the Fisher information of old tasks weighs.

    Attributes:
        strength: The factor of the penalty.
        cap: What no parameter's factor, strength included, exceeds; below 1 / lr (see above). A
            huge one is none.
        decay: How much of the importance stays when a stage's is added.
        fisher: Labels of the Fisher information: `empirical` or `sampled` (see above).
        head: Whether the last layer is pulled too: `auto` means in the domain-incremental scenario.
            It may be elsewhere: rows of classes that training does not compare have no gradient,
            hence no importance.
        masked: Compare only the classes of the present task in the loss.
        server: Server optimizer: `mean`, `momentum` or `adam`.
        server_lr: Its learning rate.
        server_momentum: Its momentum.
    """

    strength: float = 100.0
    cap: float = 2.0
    decay: float = 1.0
    fisher: Literal["empirical", "sampled"] = "empirical"
    head: Head = "protect"
    masked: bool = False
    server: Literal["mean", "momentum", "adam"] = "mean"
    server_lr: float = 1.0
    server_momentum: float = 0.9

    family: ClassVar[str] = "regularisation"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = (
        "each stage: importances up; each round from stage 1 on: the last stage's model and "
        "importances down"
    )
    paper: ClassVar[str] = "Kirkpatrick et al., PNAS 2017"
    coverage: ClassVar[Coverage] = OWN  # plain training; each example has a gradient of its own

    def __post_init__(self) -> None:
        check_pull(self.strength, self.cap)
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], not {self.decay}")
        check_server(self.server, self.server_lr, self.server_momentum)

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what importances, their measurement and the server's optimizer take."""
        moments, step = server_needs(self.server, sizes.params // sizes.item)
        if not self.strength:
            return Needs(state=moments, server=step)
        more = importance_needs(sizes.params, sizes.item, sizes.layers, sizes.rows)
        return Needs(
            state=moments + more["state"],
            server=max(step, more["server"]),
            client=more["client"],
            reply=more["reply"],
            training="penalty",
        )

    def init(self, params: Params) -> Consolidated:
        """Starts without an anchor."""
        return Consolidated(params)

    def round(self, state: Consolidated, fed: Federation) -> Consolidated:
        """Adds the mean change of the cohort, which is pulled if there is an anchor."""
        loss = CrossEntropy(self.masked)
        change = pulled_change(state, fed, loss, self.strength, self.cap)
        step, moments = server_step(
            change, state.moments, self.server, self.server_lr, self.server_momentum
        )
        return replace(state, params=add(state.params, step), moments=moments)

    def end_task(self, state: Consolidated, fed: Federation) -> Consolidated:
        """Adds this stage's Fisher information, and takes the present model as the anchor."""
        names = guarded_parameters(fed.model, self.head, fed.task.scenario) if self.strength else ()
        draws = int(self.fisher == "sampled")
        measure = SquaredGradients(self.fisher, self.masked)
        statistic = Statistic(measure, "fisher", exact=("count",), rows=ROWS, draws=draws)
        return consolidated(state, fed, statistic, names, self.decay)
