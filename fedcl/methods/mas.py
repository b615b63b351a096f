"""MAS: each parameter is pulled to its last value as hard as the outputs depend on it.

Aljundi, Babiloni, Elhoseiny, Rohrbach and Tuytelaars, Memory aware synapses: learning what (not) to
forget, ECCV 2018 (the global form). A parameter's importance is the mean over examples of
|d ||f(x)||^2 / d theta_i|, with f(x) the logits: no label is looked at. Federated: at a stage's end
all members send sums over their examples, at the global model; the server divides by the number of
all examples and adds the stages up. From stage 1 on each client minimises, with theta* the global
model at the last stage's end,

    its loss + strength / 2 * sum_i importance_i (theta_i - theta*_i)^2 .

The paper's lambda is strength / 2. f(x) is here what training compares: logits of classes that the
scenario leaves out count as 0. The gradients are those of single examples, as in the paper's
formula; code that takes the size of a batch's gradient measures something smaller.

A step of size lr moves a parameter by -lr strength importance_i (theta_i - theta*_i): beyond 1 / lr
it overshoots, beyond 2 / lr it diverges. `cap` is ours: no factor strength * importance_i is
larger. A method does not know lr: choose cap below 1 / lr.
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
    OutputSensitivity,
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

__all__ = ["MAS"]


@dataclass(frozen=True)
class MAS(Method[Consolidated]):
    """Clients train with a penalty that the outputs' sensitivity on old tasks weighs.

    Attributes:
        strength: The factor of the penalty.
        cap: What no parameter's factor, strength included, exceeds; below 1 / lr (see above). A
            huge one is none.
        head: Whether the last layer is pulled too: `auto` means in the domain-incremental scenario.
            It may be elsewhere: rows of classes that training does not compare have no gradient,
            hence no importance.
        masked: Compare only the classes of the present task, and take only their logits.
        server: Server optimizer: `mean`, `momentum` or `adam`.
        server_lr: Its learning rate.
        server_momentum: Its momentum.
    """

    strength: float = 0.1
    cap: float = 2.0
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
    paper: ClassVar[str] = "Aljundi et al., ECCV 2018"
    coverage: ClassVar[Coverage] = OWN  # plain training; each example has a gradient of its own

    def __post_init__(self) -> None:
        check_pull(self.strength, self.cap)
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
        """Adds this stage's sensitivities, and takes the present model as the anchor."""
        names = guarded_parameters(fed.model, self.head, fed.task.scenario) if self.strength else ()
        measure = OutputSensitivity(self.masked)
        statistic = Statistic(measure, "sensitivity", exact=("count",), rows=ROWS)
        return consolidated(state, fed, statistic, names)
