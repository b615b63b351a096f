"""GLFC: clients weigh examples by gradient, and the server inverts gradients to judge its models.

Dong et al., Federated class-incremental learning, CVPR 2022. THE METHOD IS A PRIVACY ATTACK BY
DESIGN: when a stage begins each client sends, for each class that it has, the gradient of one of
its examples in a LeNet that all share, and the server reconstructs that example's label and image
(`fedcl.core.attacks.inversion`). On these images it judges the model of every round; the stage's
best one is the teacher of the next. Single replies must be seen, so secure aggregation refuses the
method.

Clients keep examples by herding. With s the sigmoid, BCE summed over the classes that the scenario
allows, and r = s(teacher's logits) on classes that it knows, one-hot on others, an example has loss

    (1 - distillation) * w * BCE(s(z), one-hot) + distillation * BCE(s(z), r),

or the first term alone, whole, without a teacher. w = 1 - s(z_y), without a gradient, divided by
its mean over the batch's examples of earlier stages or of the present one, whichever it is; in a
client's first stage w = 1, as in the released code.

Where we differ: the code takes the mean over classes, to which its learning rate of 2 belongs; a
sum fits rates for cross-entropy. Borders are told; there a client infers one from a jump of its
mean entropy by 1.2. Old examples are those of earlier stages: in class-incremental streams, of old
classes. A teacher knows all classes seen before (class-incremental), each earlier head besides the
example's own (task-incremental), or all classes (domain-incremental: r is the teacher's alone). The
example sent is the first of its class by herding; theirs first takes 50 steps down the model's
loss. Replies have a row for each class of the stage, zeros where a client has fewer. The search
starts from zeros in an easier LeNet and gives one image; theirs keeps 20 of its last steps. Images
are of the present stage's classes alone, as in the paper; of models judged alike the last one
counts. A teacher that is the model is not sent with it. Costs count what clients do: the server's
search is in the run's seconds alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedcl.core.attacks.inversion import HISTORY, TOGETHER, numbers
from fedcl.core.client import Client, Reply
from fedcl.core.coverage import Coverage, refused
from fedcl.core.federation import Federation
from fedcl.core.generative.monitor import allowed_now, prototype_gradients, reconstruct, right
from fedcl.core.local import own_state
from fedcl.core.losses.compensation import Compensated, Lesson
from fedcl.core.losses.distillation import Taught, known_heads, with_teacher
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.model import Net
from fedcl.core.params import Params, add
from fedcl.core.replay.herding import herded_memory
from fedcl.core.replay.memory import earlier_rows, with_present
from fedcl.core.task import Examples

__all__ = ["GLFC"]


@dataclass(frozen=True)
class State:
    """Server state: the model, the teacher and its heads; images to judge by, the best model."""

    params: Params
    teacher: Params = field(default_factory=dict)
    heads: Tensor | None = None
    monitor: Examples | None = None
    best: Params = field(default_factory=dict)
    score: float = -1.0


@dataclass(frozen=True)
class Asked:
    """What goes down for gradients: the model, the LeNet's seed, and the rows of a reply."""

    params: Params
    seed: int
    rows: int


@dataclass(frozen=True)
class GLFC(Method[State]):
    """Clients compensate gradients and distil the model that did best on reconstructed images.

    Attributes:
        budget: Bytes of examples, with all that is kept of each, that one client may keep.
        compensation: Weigh examples by their gradients.
        distillation: Share of the teacher in the loss, in [0, 1]; 0 needs none.
        select: Judge models by reconstructed images; else the last model of a stage is the teacher,
            and no gradients are sent.
        images: Images that the server reconstructs in a stage, drawn from all gradients.
        iterations: Evaluations of the gradients, in the search for them.
    """

    budget: int = 200_000
    compensation: bool = True
    distillation: float = 0.5
    select: bool = True
    images: int = 40
    iterations: int = 100

    family: ClassVar[str] = "replay"
    exposure: ClassVar[Literal["mean", "replies"]] = "replies"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = (
        "each stage: a gradient of one example of each class up; from stage 1 on: the teacher down"
    )
    paper: ClassVar[str] = "Dong et al., CVPR 2022"
    coverage: ClassVar[Coverage] = refused(
        "clients send gradients of single examples and keep examples by their features; take "
        'der, or replay with selection = "random"'
    )
    client_half: ClassVar[tuple[str, ...]] = ("gradients", "mixed", "remember", "looked_at")

    def __post_init__(self) -> None:
        if min(self.budget, self.images, self.iterations) < 0:
            raise ValueError("budget, images and iterations must be at least 0")
        if not 0.0 <= self.distillation <= 1.0:
            raise ValueError(f"distillation must lie in [0, 1], not {self.distillation}")

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what the memory, the teacher, gradients and their inversion take."""
        classes = sizes.layers.get("head.weight", (0, 0))[1]
        example = sizes.example + 8  # with its rank
        width = max((d for d, _ in sizes.layers.values()), default=0)
        features = 3 * 8 * sizes.share * width * (self.budget > 0)
        taught, judged = self.distillation > 0, self._selects
        network = sizes.item * numbers(sizes.example // sizes.item, classes)
        reply = judged * classes * network
        kept = min(self.budget // example, sizes.stages * sizes.share)
        return Needs(
            state=(taught + judged) * sizes.params + judged * self.images * sizes.example,
            server=judged * TOGETHER * (2 * HISTORY * sizes.example + 8 * network),
            client=features + taught * (kept + sizes.share) * classes * sizes.item + reply,
            reply=reply,
            memory=kept * example,
        )

    @property
    def _selects(self) -> bool:
        return self.select and self.distillation > 0 and self.images > 0

    # Server half.

    def init(self, params: Params) -> State:
        """Starts without a teacher."""
        return State(params)

    def begin_task(self, state: State, fed: Federation) -> State:
        """Reconstructs one example of each class of each member, to judge the stage's models by."""
        if not self._selects:
            return state
        seed, classes = fed.seed("encoder"), len(state.params["head.weight"])
        asked = Asked(state.params, seed, len(fed.task.classes))
        replies = fed.collect(self.gradients, asked, fed.members)
        monitor = reconstruct(replies, classes, seed, self.images, self.iterations)
        return replace(state, monitor=monitor, best={}, score=-1.0)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort, and remembers the model if it is the best so far."""
        teacher = state.teacher
        if fed.round == 0 and all(torch.equal(state.params[k], v) for k, v in teacher.items()):
            teacher = {}
        local = fed.local(
            Compensated(self.compensation, self.distillation),
            data=self.mixed,
            keep=self.remember if self.budget else own_state,
            passes=self.looked_at,
        )
        message = Lesson(state.params, fed.task.scenario == "task", state.heads, teacher)
        params = add(state.params, fed.aggregate(local, message).mean)
        state = replace(state, params=params)
        if state.monitor is None:
            return state
        allowed = allowed_now(fed.task, len(params["head.weight"]))
        score = right(fed.net(params), state.monitor, allowed)
        return replace(state, best=params, score=score) if score >= state.score else state

    def end_task(self, state: State, fed: Federation) -> State:
        """Takes the best model as the next stage's teacher, or the last one."""
        heads = known_heads(state.heads, fed.task, state.params)
        taught = replace(state, teacher=state.best or state.params, heads=heads)
        return taught if self.distillation else state

    # Client half.

    def gradients(self, client: Client, message: Asked) -> Reply:
        """Sends the gradient of one example of each class."""
        net, classes = Net(client.model, message.params), len(client.task.present)
        sent = prototype_gradients(net, client.data, classes, message.seed, message.rows)
        return Reply(sent, examples=len(client.data))

    def mixed(self, client: Client, message: Lesson) -> Examples:
        """Trains on its own examples and those remembered, with the teacher's answers to all."""
        rows = with_present(client, client.state, message.separate)
        if message.heads is None:
            return rows
        taught = Taught(message.params, message.heads, message.teacher)
        return with_teacher(client.model, taught, rows)

    def remember(self, client: Client, message: Lesson, params: Params) -> Any:
        """Keeps equally many examples of each class, chosen by herding."""
        return herded_memory(client, params, self.budget)

    def looked_at(self, client: Client, message: Lesson) -> int:
        """Counts what the teacher answers, and what herding looks at."""
        rows = len(client.data) + len(earlier_rows(client, client.state) or ())
        return rows * (message.heads is not None) + len(client.data) * (self.budget > 0)
