"""CFeD: some clients learn, others review with unlabelled public data, and the server distils.

Ma, Xie, Wang, Chen and Shou, Continual federated learning based on knowledge distillation, IJCAI
2022. From stage 1 on a share of each cohort trains on its new data. The others distil the model at
the stage's beginning on public data. The server averages all of them, and then distils the mean
soft answer of all local models into the average, on public data of its own.

Public labels are never looked at. Reviewers all have every second public row, the server has the
rest; in the paper each party has a shard of its own. Distillation is T^2 KL over all classes seen
(domain-incremental: all classes; task-incremental: over each head by itself, for reviewers those of
earlier stages). Clients weigh as in FedAvg, reviewers too, by their own examples.

The released code differs: the two groups are drawn independently; each public row has the answer of
one local model in turn, or of the last global one, instead of their mean; the server distils in
stage 0 too; Adam trains everyone, on .1 KL without T^2, a factor that Adam divides out again. Here
clients have the config's trainer and the server plain SGD. Costs count what clients do: the
server's work is in the run's seconds alone. Without public data it is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedcl.core.channel import fold
from fedcl.core.client import Client, Model
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.losses.distillation import (
    Distilled,
    Taught,
    answers,
    check_distillation,
    distilled,
    known_heads,
    with_teacher,
)
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add
from fedcl.core.seeds import torch_generator
from fedcl.core.sgd import Settings
from fedcl.core.task import Examples

__all__ = ["CFeD"]


@dataclass(frozen=True)
class State:
    """Server state: the model, the one at the last stage's end, and the heads that it knows."""

    params: Params
    teacher: Params = field(default_factory=dict)
    heads: Tensor | None = None


@dataclass(frozen=True)
class CFeD(Method[State]):
    """Divides each cohort into learners and reviewers, and distils their models on the server.

    Attributes:
        learners: Share of the cohort that learns, at least one client; the others review.
        strength: Factor of the reviewers' loss.
        temperature: T, of clients and server.
        steps: Steps of the server's distillation in each round; 0 leaves the average.
        lr: Their learning rate.
        batch: Public rows of such a step.
        masked: Compare only the classes of the present task in the learners' loss.
    """

    learners: float = 0.6
    strength: float = 0.1
    temperature: float = 2.0
    steps: int = 20
    lr: float = 0.05
    batch: int = 32
    masked: bool = False

    family: ClassVar[str] = "distillation"
    exposure: ClassVar[Literal["mean", "replies"]] = "replies"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = "rounds of stage 1 on, but each stage's first: teacher to reviewers"
    paper: ClassVar[str] = "Ma et al., IJCAI 2022"
    coverage: ClassVar[Coverage] = OWN  # learners train plainly, reviewers on public rows
    client_half: ClassVar[tuple[str, ...]] = ("review", "looked_at")

    def __post_init__(self) -> None:
        if not 0 < self.learners <= 1:
            raise ValueError(f"learners must be a share in (0, 1], not {self.learners}")
        check_distillation(self.strength, self.temperature)
        if self.steps < 0 or self.batch < 1 or not self.lr > 0:
            raise ValueError("steps must be at least 0, batch at least 1 and lr above 0")

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what the teacher, and on the server sums and a local model at work take."""
        _, classes = sizes.layers.get("head.weight", (0, 0))
        server = 16 * sizes.params // sizes.item + 4 * sizes.params
        return Needs(state=sizes.params + sizes.stages * classes, server=server)

    def init(self, params: Params) -> State:
        """Starts without a teacher."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Averages learners and reviewers, and distils; stage 0 is FedAvg's."""
        learn, message = fed.local(CrossEntropy(self.masked)), Model(state.params)
        if state.heads is None or fed.task.public is None:
            return replace(state, params=add(state.params, fed.aggregate(learn, message).mean))
        order = torch.randperm(len(fed.cohort), generator=torch_generator(fed.seed("learners")))
        ids = [fed.cohort[place] for place in order.tolist()]
        count = max(1, round(self.learners * len(ids)))
        replies = fed.collect(learn, message, clients=ids[:count])
        heads = known_heads(state.heads, fed.task, state.params)
        if ids[count:]:
            loss = Distilled(self.strength, self.temperature)
            review = fed.local(loss, data=self.review, passes=self.looked_at, name="review")
            known = state.heads if fed.task.scenario == "task" else heads
            taught = Taught(state.params, known, state.teacher if fed.round else {})
            replies += fed.collect(review, taught, clients=ids[count:])
        params = add(state.params, fold(replies, equal=False).mean)
        rows = half(fed.task.public, 1)
        if self.steps and len(rows):
            logits = (answers(fed.net(add(state.params, r.tensors)), rows.x) for r in replies)
            settings = Settings(self.steps, self.batch, self.lr, steps=self.steps)
            start, seed = Taught(params, heads), fed.seed("distil")
            params = distilled(fed.model, start, rows, logits, self.temperature, settings, seed)
        return replace(state, params=params)

    def end_task(self, state: State, fed: Federation) -> State:
        """Takes the present model as the teacher of the next stage."""
        return replace(
            state, teacher=state.params, heads=known_heads(state.heads, fed.task, state.params)
        )

    # Client half.

    def review(self, client: Client, message: Taught) -> Examples:
        """Trains on the reviewers' public rows, with the teacher's answers to them."""
        return with_teacher(client.model, message, half(client.public, 0))

    def looked_at(self, client: Client, message: Taught) -> int:
        """Counts the examples that the teacher answers."""
        return len(half(client.public, 0))


def half(public: Examples | None, first: int) -> Examples:
    """Returns every second public row: the reviewers' from 0, the server's from 1."""
    assert public is not None, "reviewers are asked where there are public data"
    return public.take(torch.arange(first, len(public), 2, device=public.y.device))
