"""FedLwF: clients learn new classes while held to the last stage's answers to their own new data.

Li and Hoiem, Learning without forgetting, PAMI 2018 (arXiv 1606.09282), run by every client in
local training, as federated papers use it for comparison. From stage 1 on, with the global model at
the last stage's end as the teacher, each client minimises on its present examples

    cross-entropy over the present classes + strength * T^2 KL(teacher || student),

the second term over the old classes at temperature T. Li and Hoiem write it as a cross-entropy of
soft labels without T^2: the same gradient for strength / T^2. Old classes are those that the
federation has seen before, less the client's present ones (class-incremental); each earlier stage's
head by itself, and their sum (task-incremental); all classes (domain-incremental). New classes'
outputs are not warmed up first, as there.

The teacher is what every client gets in a stage's first round, so a client that keeps it has no
extra wire, which is how papers count. Here clients keep nothing: it goes down again in every later
round of the stage, and these bytes are booked.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from fedcl.core.client import Client, Model
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy, masked_logits
from fedcl.core.losses.distillation import (
    Taught,
    check_distillation,
    known_heads,
    over_heads,
    with_teacher,
)
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.model import Net
from fedcl.core.params import Params, add
from fedcl.core.task import ClientTask, Examples

__all__ = ["LwF"]


@dataclass(frozen=True)
class State:
    """Server state: the model, the teacher, and the heads that it knows."""

    params: Params
    teacher: Params = field(default_factory=dict)
    heads: Tensor | None = None


@dataclass(frozen=True)
class WithoutForgetting:
    """Cross-entropy plus distillation over old classes, one value per example."""

    rowwise: ClassVar[bool] = True

    masked: bool
    strength: float
    temperature: float
    apart: bool  # whether present classes are none of the old ones

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: Taught) -> Tensor:
        """Returns (n,) losses."""
        logits = net(batch.x)
        allowed = task.present if self.masked else task.head
        own = F.cross_entropy(masked_logits(logits, allowed), batch.y, reduction="none")
        without = task.present if self.apart else None
        teacher = batch.extra["teacher"]
        old = over_heads(logits, teacher, message.heads, self.temperature, without)
        return own + self.strength * old


@dataclass(frozen=True)
class LwF(Method[State]):
    """Clients distil the last stage's model on their present examples while they learn them.

    Attributes:
        strength: Factor of the distillation; 0 makes it FedAvg.
        temperature: T.
        masked: Compare only the classes of the present task in the cross-entropy.
    """

    strength: float = 1.0
    temperature: float = 2.0
    masked: bool = True

    family: ClassVar[str] = "distillation"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = "rounds of stage 1 on, but each stage's first: the teacher down"
    paper: ClassVar[str] = "Li and Hoiem, PAMI 2018"
    coverage: ClassVar[Coverage] = OWN  # a released teacher answers each example by itself
    client_half: ClassVar[tuple[str, ...]] = ("taught", "looked_at")

    def __post_init__(self) -> None:
        check_distillation(self.strength, self.temperature)

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what the teacher and its answers take."""
        if not self.strength:
            return Needs()
        _, classes = sizes.layers.get("head.weight", (0, 0))
        # Each stage of a task-incremental stream adds a head.
        return Needs(
            state=sizes.params + sizes.stages * classes,
            client=sizes.share * classes * sizes.item,
        )

    def init(self, params: Params) -> State:
        """Starts without a teacher."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort, which was taught if there is a teacher."""
        if state.heads is None:
            local, message = fed.local(CrossEntropy(self.masked)), Model(state.params)
            change = fed.aggregate(local, message).mean
        else:
            apart = fed.task.scenario != "domain"
            loss = WithoutForgetting(self.masked, self.strength, self.temperature, apart)
            taught = fed.local(loss, data=self.taught, passes=self.looked_at)
            teacher = state.teacher if fed.round else {}
            change = fed.aggregate(taught, Taught(state.params, state.heads, teacher)).mean
        return replace(state, params=add(state.params, change))

    def end_task(self, state: State, fed: Federation) -> State:
        """Takes the present model as the teacher; no distillation needs none."""
        if not self.strength:
            return state
        heads = known_heads(state.heads, fed.task, state.params)
        return replace(state, teacher=state.params, heads=heads)

    # Client half.

    def taught(self, client: Client, message: Taught) -> Examples:
        """Trains on the client's own examples, with the teacher's answers to them."""
        return with_teacher(client.model, message, client.data)

    def looked_at(self, client: Client, message: Taught) -> int:
        """Counts the examples that the teacher answers."""
        return len(client.data)
