"""PRD: features are learnt by contrast, and prototypes of old classes keep their relations to data.

Asadi, Davari, Mudur, Aljundi and Belilovsky, Prototype-sample relation distillation: towards
replay-free continual learning, ICML 2023 (arXiv 2303.14771), there on one machine. Each class has a
prototype p_c, here row c of the head's weight; an input belongs to the class whose prototype has
the largest cosine with its features h. A batch is learnt by

    contrastive * supervised contrast of the features
    + prototype * mean of 1 - cos(h, p_y), whose gradient stops at the features
    + distillation * divergence of old prototypes' relations to the batch from the teacher's ,

the teacher being the last stage's model with its own prototypes. We read the abstract and the
authors' first code. Its relations are a softmax over the prototypes of each old task for each
example; `classes` has one over all old ones. `samples` is nearer to the abstract's words: one over
the batch's examples for each prototype. Ours: prototypes are averaged with the model; relations are
cosines (there: features of any length); the features are contrasted without a projection head, and
in two views only if local training has `view_batch = 2` (the teacher sees the example itself). With
one, an example that is alone with its class in its batch teaches no contrast.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedcl.core.client import Client, Model
from fedcl.core.coverage import Coverage, refused
from fedcl.core.features.analytic import ROWS
from fedcl.core.features.layers import head_inputs
from fedcl.core.federation import Federation
from fedcl.core.local import masked_logits
from fedcl.core.losses.prototypes import Over, contrast, cosines, head_rows, relation_distillation
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.model import Net
from fedcl.core.params import Params, add
from fedcl.core.task import ClientTask, Examples

__all__ = ["PRD"]


@dataclass(frozen=True)
class State:
    """Server state: the model, the last stage's one, and the classes that it had learnt."""

    params: Params
    teacher: Params = field(default_factory=dict)
    learnt: tuple[int, ...] = ()


@dataclass(frozen=True)
class Taught:
    """What goes down from stage 1 on: the model, the teacher, the classes that it knows."""

    params: Params
    teacher: Params
    learnt: tuple[int, ...]


@dataclass(frozen=True)
class PRD(Method[State]):
    """Clients contrast their examples and keep the relations of old prototypes to them.

    Attributes:
        contrastive: Weight of the contrastive loss.
        prototype: Weight of the pull of each prototype to the features of its class.
        distillation: Weight of the relation distillation; 0 needs no teacher.
        temperature: Of the contrastive loss.
        relation_temperature: Of the relations.
        relation: What a relation is a distribution over: old `classes`, or the batch's `samples`.
        stop: Whether features do not feel the pull of the prototypes.
    """

    contrastive: float = 1.0
    prototype: float = 2.0
    distillation: float = 4.0
    temperature: float = 0.1
    relation_temperature: float = 0.1
    relation: Over = "classes"
    stop: bool = True

    family: ClassVar[str] = "distillation"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = "each round from stage 1 on: the last stage's model down"
    paper: ClassVar[str] = "Asadi et al., ICML 2023"
    coverage: ClassVar[Coverage] = refused(
        "its loss contrasts the examples of a batch with each other; take lwf, which distils each "
        "by itself"
    )
    client_half: ClassVar[tuple[str, ...]] = ("losses", "taught", "looked")

    def __post_init__(self) -> None:
        if not min(self.contrastive, self.prototype, self.distillation) >= 0:
            raise ValueError("contrastive, prototype and distillation must be at least 0")
        if not min(self.temperature, self.relation_temperature) > 0:
            raise ValueError("temperature and relation_temperature must be above 0")

    def needs(self, sizes: Sizes) -> Needs:
        """Returns the teacher's bytes, and those of its answers to a client's examples."""
        classes = sizes.layers.get("head.weight", (0, 0))[1]
        return Needs(state=sizes.params, client=2 * sizes.share * classes * sizes.item)

    def init(self, params: Params) -> State:
        """Starts without a teacher."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        if state.teacher:
            local = fed.local(self.losses, data=self.taught, passes=self.looked)
            message = Taught(state.params, state.teacher, state.learnt)
            change = fed.aggregate(local, message).mean
        else:
            change = fed.aggregate(fed.local(self.losses), Model(state.params)).mean
        return replace(state, params=add(state.params, change))

    def end_task(self, state: State, fed: Federation) -> State:
        """Takes the present model as the teacher of all classes seen so far."""
        taught = replace(state, teacher=state.params, learnt=fed.task.seen)
        return taught if self.distillation else state

    def predict(self, state: State, net: Net, x: Tensor, allowed: Tensor) -> Tensor:
        """Returns cosines with the prototypes over the temperature: the nearest one wins."""
        near = cosines(head_inputs(net, x), head_rows(net))
        return masked_logits(near / self.temperature, allowed)

    def losses(
        self, net: Net, batch: Examples, task: ClientTask, message: Model | Taught
    ) -> Tensor:
        """Returns (n,) values whose mean is the loss of the batch."""
        features, rows = head_inputs(net, batch.x), head_rows(net)
        near = cosines(features.detach() if self.stop else features, rows)
        losses = self.prototype * (1.0 - near.gather(1, batch.y[:, None])[:, 0])
        losses = losses + self.contrastive * contrast(features, batch.y, self.temperature)
        if not isinstance(message, Taught):
            return losses
        old = list(message.learnt)
        new, wanted = cosines(features, rows)[:, old], batch.extra["taught"][:, old]
        distilled = relation_distillation(new, wanted, self.relation_temperature, self.relation)
        return losses + self.distillation * distilled

    losses.mixes = True  # type: ignore[attr-defined]

    def taught(self, client: Client, message: Taught) -> Examples:
        """Adds the teacher's cosines to the client's examples, worked out once an exchange."""
        net, data = Net(client.model, message.teacher), client.data
        with torch.no_grad():
            found = [cosines(head_inputs(net, x), head_rows(net)) for x in data.x.split(ROWS)]
        return replace(data, extra={**data.extra, "taught": torch.cat(found)})

    def looked(self, client: Client, message: Taught) -> int:
        """Counts the examples that the teacher looked at."""
        return len(client.data)
