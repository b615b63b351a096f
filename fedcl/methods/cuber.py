"""CUBER: FOT's projection, relaxed where a new task's gradient agrees with an old one's.

Lin, Yang, Fan and Zhang, Beyond not-forgetting: continual learning with backward knowledge
transfer, NeurIPS 2022, from memory and made federated by us. The paper projects each step; here, as
in FOT (Bakman et al., ICLR 2024), clients train plainly and the server projects their mean change.
Each old task j has, for each layer, the space U_j of its inputs and its gradient g_j at its end.
With g the new task's at its beginning, the paper's regimes are: |g U_j U_j^T| at most `overlap`
|g|: U_j is closed (1); else <g, g_j> below `agreement` |g| |g_j|: U_j is closed (2), where the
paper, as TRGP, also learns a scaled weight projection, which is left out; else U_j is open (3), and
its part of the distance to the last stage's weights is pulled back. Ours: exact Gram matrices of
all members; one basis for all tasks, grown as FOT grows it, in whose span the spaces lie, so that
the method is FOT where none is open; closed spaces win where open ones meet them; the pull, an
exact proximal step of the server instead of a term of the loss. Old gradients stay as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedcl.core.channel import Aggregate
from fedcl.core.client import Model
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.features.layers import Head, guarded_layers
from fedcl.core.features.moments import Inputs, LossMoments, gram_needs, grown_basis, own_space
from fedcl.core.features.subspace import (
    agreeing_room,
    layer_matrix,
    map_layers,
    project_out,
    unpack,
)
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add, subtract
from fedcl.core.statistic import Statistic

__all__ = ["CUBER"]


@dataclass(frozen=True)
class Old:
    """An old task: by weight, the space of its inputs (d, k) and the loss gradient (out, d)."""

    spaces: Mapping[str, Tensor]
    gradients: Params


@dataclass(frozen=True)
class State:
    """Server state: model and that of the last stage's end, bases, and what of them is allowed."""

    params: Params
    anchor: Params = field(default_factory=dict)
    basis: Mapping[str, Tensor] = field(default_factory=dict)
    allowed: Mapping[str, Tensor] = field(default_factory=dict)
    old: tuple[Old, ...] = ()


@dataclass(frozen=True)
class CUBER(Method[State]):
    """Clients train as in FedAvg; the server projects, except where tasks agree.

    Attributes:
        energy: Share of the layer inputs' energy that each task's space must hold.
        energy_step: Added to `energy` after each task.
        overlap: Share of the new gradient's norm that must lie in an old space (the paper's
            epsilon_1); 1 allows nothing.
        agreement: Least cosine between new and old gradient (epsilon_2); above 1 allows nothing.
        pull: What lies in allowed spaces is divided by 1 + pull in each round (lambda).
        biases: Guard biases too, as the weight of a constant input.
        head: Whether the last layer is guarded: `auto` means in the domain-incremental scenario.
        masked: Compare only the classes of the present task in the loss.
    """

    energy: float = 0.95
    energy_step: float = 0.0
    overlap: float = 0.5
    agreement: float = 0.0
    pull: float = 1.0
    biases: bool = False
    head: Head = "auto"
    masked: bool = False

    family: ClassVar[str] = "orthogonal"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = "each stage: gradients up twice, Gram matrices up"
    paper: ClassVar[str] = "Lin et al., NeurIPS 2022"
    coverage: ClassVar[Coverage] = OWN  # plain training; moments are sums over examples

    def __post_init__(self) -> None:
        for name, most in (("energy", 1.0), ("overlap", 1.0), ("pull", float("inf"))):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in [0, {most:g}], not {getattr(self, name)}")

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what bases, spaces and gradients of all tasks take, and the moments."""
        widths = {name: width + self.biases for name, (width, _) in sizes.layers.items()}
        sent = gram_needs(widths, sizes.rows, sizes.item)
        gradients = sum(widths[name] * out for name, (_, out) in sizes.layers.items())
        squares = sum(width * width for width in widths.values())
        state = 8 * (sizes.stages * (gradients + squares) + 2 * squares) + sizes.params
        reply, client = sent["reply"] + sizes.item * gradients, sent["client"] + 3 * sizes.params
        return Needs(state, sent["server"] + 3 * 8 * gradients, client, reply)

    def init(self, params: Params) -> State:
        """Starts without old tasks."""
        return State(params)

    def begin_task(self, state: State, fed: Federation) -> State:
        """Asks all members for the new task's gradient, and sees which old spaces it may enter."""
        room, sums = {}, self._moments(state, fed, inputs=False).sum if state.old else {}
        for name in state.basis:
            old = [(task.spaces[name], task.gradients[name]) for task in state.old]
            room[name] = agreeing_room(sums[f"gradient/{name}"], old, self.overlap, self.agreement)
        return replace(state, allowed=room)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change that is allowed, and pulls its part in allowed spaces back."""
        change = fed.aggregate(fed.local(CrossEntropy(self.masked)), Model(state.params)).mean
        before = subtract(state.params, state.anchor or state.params)
        lost = 1.0 - 1.0 / (1.0 + self.pull)

        def step(name: str, matrix: Tensor) -> Tensor:
            kept, room = project_out(matrix, state.basis[name]), state.allowed.get(name)
            if room is None or room.shape[1] == 0:
                return kept
            away = layer_matrix(before, name, self.biases) + matrix
            return kept + ((matrix - lost * away).double() @ room) @ room.T

        change = map_layers(change, state.basis, self.biases, step)
        return replace(state, params=add(state.params, change))

    def end_task(self, state: State, fed: Federation) -> State:
        """Keeps this task's spaces and gradients, and extends each basis as FOT does."""
        found = self._moments(state, fed, inputs=True)
        sums, noise = found.sum, found.noise
        energy = min(1.0, self.energy + self.energy_step * fed.task.index)
        rounding = torch.finfo(next(iter(state.params.values())).dtype).eps
        basis, spaces = {}, {}
        for name in guarded_layers(fed.model, self.head, fed.task.scenario):
            gram = unpack(sums[f"gram/{name}"])
            basis[name] = grown_basis(gram, state.basis.get(name), energy, rounding, noise)
            spaces[name] = own_space(gram, basis[name], energy)
        own = Old(spaces, {name: sums[f"gradient/{name}"] for name in basis})
        return State(state.params, state.params, basis, {}, (*state.old, own))

    def _moments(self, state: State, fed: Federation, inputs: bool) -> Aggregate:
        """Returns sums over all members' examples; of gradients, only directions matter."""
        layers = guarded_layers(fed.model, self.head, fed.task.scenario)
        measure = LossMoments(CrossEntropy(self.masked), self.biases, inputs)
        program, question = Statistic(measure, "moments"), Inputs(state.params, {}, layers)
        return fed.aggregate(program, question, clients=fed.members)
