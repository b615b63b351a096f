"""A generator that clients carry: what they draw from it of old classes, and rehearse by (MFCL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.client import Client
from fedcl.core.features.layers import head_answers, head_inputs
from fedcl.core.generative.generator import Generator
from fedcl.core.generative.objective import allowed_of
from fedcl.core.local import masked_logits
from fedcl.core.losses.distillation import answers
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.seeds import seed_of
from fedcl.core.task import ClientTask, Examples, join


@dataclass(frozen=True)
class Carried:
    """What goes down once a stage, and what a client remembers.

    Attributes:
        generator: The generator's architecture.
        drawing: Its parameters.
        teacher: The parameters of the network that it was trained against.
        heads: (heads, classes) bool, what that network compares: see `known_heads`.
        classes: What to draw.
    """

    generator: Generator
    drawing: Params
    teacher: Params
    heads: Tensor
    classes: tuple[int, ...]

    def draw(self, n: int, seed: int) -> Examples:
        """Returns n images with labels, equally many of each class or one more."""
        return self.generator.sample(self.drawing, self.classes, n, seed)


def rows_drawn(client: Client, heads: Tensor, ratio: float) -> int:
    """Returns how many images a client draws: `ratio` for each own example, at least one.

    Args:
        client: Remembers a `Carried`; one of other heads is out of date, and draws none.
        heads: (heads, classes) bool, what the present teacher compares.
        ratio: Images for each own example.
    """
    if client.state is None or not torch.equal(client.state.heads, heads):
        return 0
    return max(1, round(ratio * len(client.data)))


def beside_drawn(client: Client, heads: Tensor, ratio: float) -> Examples:
    """Returns a client's own examples and those that it draws, anew in each exchange.

    Columns are `allowed` (n, classes), what a row's label is compared with: a drawn one's head in
    the task-incremental scenario, else the present head; `own`, 0 for drawn rows, and so that a
    mean over all rows is one over own rows; `teacher`, the (n, classes) logits of the carried
    network, and `carried`, whether there is one: without, both are 0.

    Args:
        client: Remembers a `Carried`; see `rows_drawn`.
        heads: (heads, classes) bool, what the present teacher compares.
        ratio: Images for each own example.
    """
    own, head = client.data, client.task.head
    count = rows_drawn(client, heads, ratio)
    rows = _columns(own, head.expand(len(own), -1), (len(own) + count) / max(1, len(own)))
    if not count:
        return _with_teacher(rows, own.x.new_zeros((len(own), len(head))), 0.0)
    drawn = client.state.draw(count, seed_of(client.seed, "draw"))
    drawn = Examples(drawn.x.to(own.x), drawn.y.to(own.y.device))
    # Where the present head holds all that is known, old classes are compared with it, too.
    together = bool((heads.any(0) & ~head).logical_not().all())
    allowed = head.expand(count, -1) if together else allowed_of(heads, drawn.y)
    both = join([rows, _columns(drawn, allowed, 0.0)])
    return _with_teacher(both, answers(Net(client.model, client.state.teacher), both.x), 1.0)


def _columns(rows: Examples, allowed: Tensor, own: float) -> Examples:
    columns = {"allowed": allowed.clone(), "own": rows.x.new_full((len(rows),), own)}
    return Examples(rows.x, rows.y, columns)


def _with_teacher(rows: Examples, logits: Tensor, carried: float) -> Examples:
    there = rows.x.new_full((len(rows),), carried)
    return Examples(rows.x, rows.y, {**rows.extra, "teacher": logits, "carried": there})


@dataclass(frozen=True)
class Held:
    """What goes down in each round from stage 1 on.

    Attributes:
        params: The model.
        heads: (heads, classes) bool, what f_old compares.
        head: The last layer of f_old.
    """

    params: Params
    heads: Tensor
    head: Params


@dataclass(frozen=True)
class BalancedFeatures:
    """Own classes for all layers, all classes for the last one, old features for those below it.

    Attributes:
        masked: Compare only the classes of the present task in the first term.
        balance: Factor of the second term.
        strength: Factor of the third.
    """

    rowwise: ClassVar[bool] = True

    masked: bool
    balance: float
    strength: float

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: Held) -> Tensor:
        """Returns (n,) losses."""
        features = head_inputs(net, batch.x)
        present = masked_logits(
            head_answers(net, features), task.present if self.masked else task.head
        )
        own = F.cross_entropy(present, batch.y, reduction="none")
        every = masked_logits(head_answers(net, features.detach()), batch.extra["allowed"])
        even = F.cross_entropy(every, batch.y, reduction="none")
        through_old = F.linear(features, message.head["head.weight"], message.head.get("head.bias"))
        old = message.heads.any(0)
        away = (through_old - batch.extra["teacher"]).square().masked_fill(~old, 0.0)
        held = batch.extra["carried"] * away.sum(1) / old.sum()
        return batch.extra["own"] * own + self.balance * even + self.strength * held
