"""Gradient projection memory: clients keep every local step off the space of old tasks' inputs.

Saha, Garg and Roy, Gradient projection memory for continual learning, ICLR 2021; trained by clients
and averaged as in FedProTIP (Cha, Chen and Vikalo, TMLR 2026, arXiv 2509.21606), without its
prediction of task ids. Different from both: at a stage's end the basis grows from the exact Gram
matrix of all members' layer inputs at the global model, which is a sum, so that nobody shows inputs
of single clients; the paper decomposes the inputs of 125 examples, and FedProTIP's clients extend
the basis one after another. The rank is the smallest that holds the energy in every stage (the
paper's first basis stops one direction short). The defaults are the paper's on CIFAR-100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedcl.core.client import Model
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.features.layers import Head, guarded_layers, protected_layers
from fedcl.core.features.moments import InputMoments, Inputs, extended_basis, gram_needs
from fedcl.core.features.subspace import bias_of, project_layers
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add
from fedcl.core.statistic import Statistic

__all__ = ["GPM"]


@dataclass(frozen=True)
class State:
    """Server state: the model, and the basis of each guarded layer in float64."""

    params: Params
    basis: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Guarded:
    """What goes down for training: the model, bases in its type, parameters that stay."""

    params: Params
    basis: Mapping[str, Tensor]
    frozen: tuple[str, ...]


@dataclass(frozen=True)
class GPM(Method[State]):
    """Clients project the gradient of each step; the server averages.

    Attributes:
        energy: Share of the layer inputs' energy that the first task's basis must hold (epsilon).
        energy_step: Added to `energy` after each task.
        biases: After the first task, `freeze` keeps all vectors (biases, scales of normalisation)
            as they are, but for the bias of a head that is not guarded, as the paper's code does;
            `project` treats a guarded layer's bias as the weight of a constant input and leaves
            other vectors free; `free` leaves all free.
        head: Whether the last layer is guarded: `auto` means in the domain-incremental scenario.
        masked: Compare only the classes of the present task in the loss.
    """

    energy: float = 0.97
    energy_step: float = 0.003
    biases: Literal["freeze", "project", "free"] = "freeze"
    head: Head = "auto"
    masked: bool = False

    family: ClassVar[str] = "orthogonal"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = "each round: bases down; each stage: bases down, Gram matrices up"
    paper: ClassVar[str] = "Saha et al., ICLR 2021"
    coverage: ClassVar[Coverage] = OWN  # steps are projected after their noise; sums
    client_half: ClassVar[tuple[str, ...]] = ("project",)

    def __post_init__(self) -> None:
        if not 0 <= self.energy <= 1:
            raise ValueError(f"energy must lie in [0, 1], not {self.energy}")
        if self.energy_step < 0:
            raise ValueError(f"energy_step must be at least 0, not {self.energy_step}")

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what bases, Gram matrices and the largest decomposition take."""
        more = self.biases == "project"
        widths = {name: width + more for name, (width, _) in sizes.layers.items()}
        # A basis has as many directions as its layer has inputs at most, and as were seen.
        seen = {name: sizes.examples * rows for name, rows in sizes.rows.items()}
        directions = sum(width * min(width, seen[name]) for name, width in widths.items())
        sent = gram_needs(widths, sizes.rows, sizes.item)
        server = max(sent["server"], sizes.item * directions)
        return Needs(8 * directions, server, sent["client"], sent["reply"], training="projected")

    # Server half.

    def init(self, params: Params) -> State:
        """Starts without any basis."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of clients that step where old tasks have no inputs."""
        basis = {
            name: columns.to(state.params[name].dtype)
            for name, columns in state.basis.items()
            if columns.shape[1]
        }
        frozen = self._frozen(fed) if self.biases == "freeze" and fed.task.index else ()
        loss = CrossEntropy(self.masked)
        if basis or frozen:
            message = Guarded(state.params, basis, frozen)
            total = fed.aggregate(fed.local(loss, project=self.project), message)
        else:
            total = fed.aggregate(fed.local(loss), Model(state.params))
        return replace(state, params=add(state.params, total.mean))

    def end_task(self, state: State, fed: Federation) -> State:
        """Extends each basis by what this task's layer inputs add to it."""
        layers = guarded_layers(fed.model, self.head, fed.task.scenario)
        moments = Statistic(InputMoments(self.biases == "project"), "gram", exact=("norms",))
        question = Inputs(state.params, state.basis, layers)
        found = fed.aggregate(moments, question, clients=fed.members)
        energy = min(1.0, self.energy + self.energy_step * fed.task.index)
        rounding = torch.finfo(next(iter(state.params.values())).dtype).eps
        sums, noise, old = found.sum, found.noise, state.basis
        basis = {
            name: extended_basis(sums, name, old.get(name), energy, "energy", rounding, noise)
            for name in layers
        }
        return replace(state, basis=basis)

    def _frozen(self, fed: Federation) -> tuple[str, ...]:
        """Returns the vectors that stay: all but those of layers that are not guarded."""
        guarded = guarded_layers(fed.model, self.head, fed.task.scenario)
        free = {bias_of(name) for name in protected_layers(fed.model) if name not in guarded}
        named = fed.model.named_parameters()
        return tuple(name for name, value in named if value.ndim < 2 and name not in free)

    # Client half.

    def project(self, gradients: Params, message: Guarded) -> dict[str, Tensor]:
        """Returns the gradients without their part along the bases, and none of what stays."""
        # Under autocast the products would be rounded to eight bits, and as much would leak.
        with torch.autocast(next(iter(gradients.values())).device.type, enabled=False):
            projected = project_layers(gradients, message.basis, self.biases == "project")
        return projected | {name: torch.zeros_like(gradients[name]) for name in message.frozen}
