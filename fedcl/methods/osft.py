"""OSFT: the server keeps each layer's strongest singular directions as the last stage left them.

Nayak et al., Sculpting subspaces: constrained full fine-tuning in LLMs for continual learning, 2025
(arXiv 2504.07097), there on one machine, at each step. When a stage ends, W = U S V^T splits into
the k strongest triplets, U_h S_h V_h^T, which are frozen, and the rest U_l S_l V_l^T, which is
trained with dU_l kept orthogonal to U_h, and dV_l to V_h. So U_h^T U_l = 0 and V_h^T V_l = 0 stay
true, and every change E of W that training can make obeys

    U_h^T E = 0  and  E V_h = 0 .                                                            (*)

Conversely, with (*) the low part plus E has its own singular value decomposition in the complements
of U_h and V_h, where U_l S_l V_l^T has room for it. So (*) is all that training can reach, and the
closest such change to a given one is (I - U_h U_h^T) E (I - V_h V_h^T), to which the server reduces
its final step. (*) is linear: a mean of projected changes is the projected mean, all clients may
train freely, and nothing more crosses the wire. The frozen triplets stay singular triplets of W.

Ours: it is once a round, of the aggregate, and in W, not in its factors, whose steps scale
directions by their singular values. k is the smallest that holds a share of the sum of squares of
the singular values; the paper takes it from a layer's importance, the cosine of its input and
output, which needs equal widths and data. Each stage's end decomposes the present W anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor

from fedcl.core.client import Model
from fedcl.core.consolidation.weightspace import project_sides, strongest
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.features.layers import Head, guarded_layers
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.optimizer import Moments, check_server, server_needs, server_step
from fedcl.core.params import Params, add

__all__ = ["OSFT"]


@dataclass(frozen=True)
class State:
    """Server state: model, frozen output and input directions by weight, the moments."""

    params: Params
    left: Mapping[str, Tensor] = field(default_factory=dict)
    right: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Moments = field(default_factory=Moments)


@dataclass(frozen=True)
class OSFT(Method[State]):
    """Clients train as in FedAvg; the server projects its final step.

    Attributes:
        energy: Share of the sum of a weight's squared singular values that is frozen when a stage
            ends; 1 freezes all of a weight that has full rank.
        head: Whether the last layer is guarded: `auto` means in the domain-incremental scenario.
        biases: Guard biases too, as one more column of the weight.
        masked: Compare only the classes of the present task in the loss.
        server: Server optimizer: `mean`, `momentum` or `adam`; its step is what gets projected.
        server_lr: Its learning rate.
        server_momentum: Its momentum.
    """

    energy: float = 0.55
    head: Head = "auto"
    biases: bool = False
    masked: bool = False
    server: Literal["mean", "momentum", "adam"] = "mean"
    server_lr: float = 1.0
    server_momentum: float = 0.9

    family: ClassVar[str] = "orthogonal"
    needs_borders: ClassVar[bool] = True
    paper: ClassVar[str] = "Nayak et al., arXiv 2504.07097"
    coverage: ClassVar[Coverage] = OWN  # plain training; the server projects

    def __post_init__(self) -> None:
        if not 0 <= self.energy <= 1:
            raise ValueError(f"energy must lie in [0, 1], not {self.energy}")
        check_server(self.server, self.server_lr, self.server_momentum)

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what the directions and the largest decomposition take."""
        shapes = [(out, width + self.biases) for width, out in sizes.layers.values()]
        factors = [(out + width) * min(out, width) for out, width in shapes]
        moments, step = server_needs(self.server, sizes.params // sizes.item)
        # The weight and LAPACK's copy, its factors, and its work on squares of the shorter side.
        work = [
            2 * out * width + 2 * factor + 4 * min(out, width) ** 2
            for (out, width), factor in zip(shapes, factors, strict=True)
        ]
        return Needs(
            state=8 * sum(factors) + moments,
            # Until all layers are decomposed the last stage's directions are there too.
            server=max(step, 8 * (sum(factors) + max(work, default=0))),
        )

    def init(self, params: Params) -> State:
        """Starts with nothing frozen."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the server optimizer's step without its part along frozen directions."""
        change = fed.aggregate(fed.local(CrossEntropy(self.masked)), Model(state.params)).mean
        step, moments = server_step(
            change, state.moments, self.server, self.server_lr, self.server_momentum
        )
        step = project_sides(step, state.left, state.right, self.biases)
        return replace(state, params=add(state.params, step), moments=moments)

    def end_task(self, state: State, fed: Federation) -> State:
        """Freezes the strongest singular directions of the present weights."""
        names = guarded_layers(fed.model, self.head, fed.task.scenario)
        left, right = {}, {}
        for name in names:
            left[name], right[name] = strongest(state.params, name, self.energy, self.biases)
        return replace(state, left=left, right=right)
