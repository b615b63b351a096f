"""Kronecker-anchored aggregation: the server pulls weights back where old tasks would feel it.

Ours. Clients train as in FedAvg. At a stage's end two sums over the members' examples, taken at the
global model, give each layer's Fisher information as a Kronecker product (Martens and Grosse, ICML
2015). In later rounds the server takes the averaged model to the minimiser of the distance to it
plus the quadratic that the Fisher information of all old stages defines around the last stage's
model: a proximal step of online structured Laplace (Ritter, Botev and Barber, NeurIPS 2018), done
once a round on the server instead of in every local step. FOT (Bakman et al., ICLR 2024) is its
hard limit: S the identity, the eigenvalues of A cut to 0 or infinity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from fedcl.core.client import Model
from fedcl.core.consolidation.kronecker import Fisher, KroneckerMoments, anchor_layers, extended
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.features.layers import Head, guarded_layers
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add
from fedcl.core.statistic import Statistic

__all__ = ["Kron"]

_ROWS = 128  # examples whose layer inputs and signals are looked at together


@dataclass(frozen=True)
class State:
    """Server state: model, the model at the last stage's end, Fisher information of each layer."""

    params: Params
    anchor: Params = field(default_factory=dict)
    fishers: Mapping[str, Fisher] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What goes down for the moments: the global model, which layers, whether of all classes."""

    params: Params
    layers: tuple[str, ...]
    every_class: bool


@dataclass(frozen=True)
class Kron(Method[State]):
    """Clients train plainly; the server divides each change by what old tasks would feel of it.

    Attributes:
        mu: Strength of the pull in each round.
        schedule: `constant`, or `mean`: mu divided by the number of finished stages, since the
            product of two sums over t stages weighs t times what the sum of t products does.
        inputs: The factor A: `moments` of the layer inputs, or the `identity`.
        outputs: The factor S: of the model's `fisher` information, of the `empirical` one (with the
            examples' own labels), or the `identity`. `auto` is the identity in class-incremental
            streams, where later classes will use what present ones do not feel; else `fisher`.
        head: Whether the last layer is anchored; `auto` means in the domain-incremental scenario.
        statistics_clients: All `members` of the stage, or the last round's `cohort`.
        masked: Compare only the classes of the present task in the loss.
    """

    mu: float = 1.0
    schedule: Literal["constant", "mean"] = "constant"
    inputs: Literal["moments", "identity"] = "moments"
    outputs: Literal["auto", "fisher", "empirical", "identity"] = "auto"
    head: Head = "protect"
    statistics_clients: Literal["members", "cohort"] = "members"
    masked: bool = False

    family: ClassVar[str] = "orthogonal"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = "each stage: second moments of layer inputs and output gradients up"
    paper: ClassVar[str] = "fedcl's own"
    coverage: ClassVar[Coverage] = OWN  # plain training; moments are sums over examples

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise ValueError(f"mu must be at least 0, not {self.mu}")

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what factors, moments and the largest decomposition take."""
        widths = [d + 1 for d, _ in sizes.layers.values()]
        heights = [out for _, out in sizes.layers.values()]
        sides = [
            *(widths if self.inputs == "moments" else ()),
            *(heights if self.outputs != "identity" else ()),
        ]
        squares = sum(side * side for side in sides)
        largest = max((side * side for side in (*widths, *heights)), default=0)
        values = [sizes.rows[name] * (d + 1 + 2 * out) for name, (d, out) in sizes.layers.items()]
        return Needs(
            state=8 * squares + sizes.params,
            # Sums of a block, of those before, and of all; the matrix, a copy, its eigenvectors and
            # twice that for LAPACK.
            server=3 * 4 * squares + 5 * 8 * largest,
            client=_ROWS * (sizes.item * sum(values) + 2 * 8 * max(values, default=0))
            + 2 * 4 * squares
            + 2 * 8 * largest,
            reply=squares // 2 * sizes.item,
        )

    # Server half.

    def init(self, params: Params) -> State:
        """Starts without any anchor."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change, then takes the proximal step."""
        change = fed.aggregate(fed.local(CrossEntropy(self.masked)), Model(state.params)).mean
        params = add(state.params, change)
        mu = self.mu / max(1, fed.task.index) if self.schedule == "mean" else self.mu
        return replace(state, params=anchor_layers(params, state.anchor, state.fishers, mu))

    def end_task(self, state: State, fed: Federation) -> State:
        """Adds this stage's moments to the Fisher information, and anchors the model anew."""
        layers = guarded_layers(fed.model, self.head, fed.task.scenario)
        later = fed.task.scenario == "class"  # classes will come that nobody has met yet
        outputs = self.outputs
        if outputs == "auto":
            outputs = "identity" if later else "fisher"
        measure = KroneckerMoments(self.inputs == "moments", outputs)
        clients = fed.members if self.statistics_clients == "members" else None
        question = Question(state.params, layers, later)
        sums = fed.aggregate(
            Statistic(measure, "moments", exact=("count",), rows=_ROWS, draws=1),
            question,
            clients=clients,
        )
        fishers = {
            name: extended(state.fishers.get(name), sums.sum, name, sums.noise) for name in layers
        }
        return replace(state, anchor=state.params, fishers=fishers)
