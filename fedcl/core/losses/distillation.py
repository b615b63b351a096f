"""Distillation: a network is held to what a teacher answered, example by example.

Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, 2015 (arXiv 1503.02531). A
teacher is asked once for each exchange, not in each step: its logits are a column `teacher` of the
examples, so that many clients train at once as ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.client import Client
from fedcl.core.local import Local, masked_logits
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.sgd import Settings, train_one
from fedcl.core.task import ClientTask, Examples, TaskInfo, class_mask

ROWS = 256  # examples that a teacher looks at together


@dataclass(frozen=True)
class Taught:
    """A message to clients that distil.

    Attributes:
        params: The model to start from.
        heads: (heads, classes) bool, what to compare with the teacher: see `known_heads`.
        teacher: The teacher's parameters; empty where they are the model's, and not sent twice.
    """

    params: Params
    heads: Tensor
    teacher: Params = field(default_factory=dict)


def distillation(student: Tensor, teacher: Tensor, allowed: Tensor, temperature: float) -> Tensor:
    """Returns (n,) values T^2 KL(p || q): 0, with no gradient, where the two agree.

    p and q are the softmax of the teacher's and of the student's logits divided by the temperature
    T, over the allowed classes. The gradient is that of the cross-entropy of soft labels; its
    factor T^2 keeps it of a size as T grows. A row without an allowed class gives 0.

    Args:
        student: (n, classes) logits.
        teacher: (n, classes) logits, without a gradient.
        allowed: (classes,) bool, or (n, classes).
        temperature: T.
    """
    old = F.log_softmax(masked_logits(teacher, allowed) / temperature, dim=-1)
    new = F.log_softmax(masked_logits(student, allowed) / temperature, dim=-1)
    return temperature**2 * (old.exp() * (old - new)).sum(-1)


def over_heads(
    student: Tensor,
    teacher: Tensor,
    heads: Tensor,
    temperature: float,
    without: Tensor | None = None,
) -> Tensor:
    """Returns the (n,) sums over heads of `distillation` within each.

    Args:
        student: (n, classes) logits.
        teacher: (n, classes) logits, without a gradient.
        heads: (heads, classes) bool.
        temperature: T.
        without: (classes,) bool or (n, classes): classes to leave out of every head, or None.
    """
    total = student.new_zeros(len(student))
    for head in heads:
        allowed = head if without is None else head & ~without
        total = total + distillation(student, teacher, allowed, temperature)
    return total


@dataclass(frozen=True)
class Distilled:
    """Distillation alone, over the `heads` of the message: labels are not looked at.

    Attributes:
        strength: Its factor.
        temperature: T.
    """

    rowwise: ClassVar[bool] = True

    strength: float = 1.0
    temperature: float = 2.0

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: Taught) -> Tensor:
        """Returns (n,) losses."""
        return self.strength * over_heads(
            net(batch.x), batch.extra["teacher"], message.heads, self.temperature
        )


@torch.no_grad()
def answers(net: Net, x: Tensor) -> Tensor:
    """Returns the (n, classes) logits of (n, ...) inputs, looked at part by part."""
    return torch.cat([net(part) for part in x.split(ROWS)])


def with_teacher(model: nn.Module, message: Taught, data: Examples) -> Examples:
    """Returns the examples with the logits of the message's teacher as a column `teacher`."""
    teacher = Net(model, message.teacher or message.params)
    return replace(data, extra={**data.extra, "teacher": answers(teacher, data.x)})


def soft_mean(logits: Iterable[Tensor], heads: Tensor, temperature: float) -> Tensor:
    """Returns the logits of a teacher that is the mean of several ones' soft answers.

    Over each head, the softmax at the temperature of what is returned is the mean of theirs. They
    are added up in logarithms, so that no probability becomes 0; a sum will do, since the softmax
    knows no constant.

    Args:
        logits: (n, classes) of each teacher, at least one.
        heads: (heads, classes) bool, disjoint.
        temperature: T.
    """
    total: Tensor | None = None
    for own in logits:
        logs = torch.zeros_like(own)
        for head in heads:
            soft = F.log_softmax(masked_logits(own, head) / temperature, dim=-1)
            logs = torch.where(head, soft, logs)
        total = logs if total is None else torch.logaddexp(total, logs)
    assert total is not None, "there is at least one teacher"
    return temperature * total


def distilled(
    model: nn.Module,
    message: Taught,
    data: Examples,
    logits: Iterable[Tensor],
    temperature: float,
    settings: Settings,
    seed: int,
) -> dict[str, Tensor]:
    """Returns the parameters after distillation alone, on the server, by the clients' own loop.

    Args:
        model: The architecture.
        message: Where to start, and the heads to compare.
        data: Rows; labels are not looked at.
        logits: (n, classes) of each teacher; their `soft_mean` is the teacher.
        temperature: T.
        settings: Batch size, learning rate, passes and steps.
        seed: Seed of the batches' order and of dropout.
    """
    data = replace(data, extra={"teacher": soft_mean(logits, message.heads, temperature)})
    stage, everything = torch.zeros((), dtype=torch.int64), message.heads.any(0)
    task = ClientTask(stage, stage, everything, everything, everything)
    client = Client(-1, model, data, task, None, seed)
    return train_one(Local(Distilled(temperature=temperature)), settings, client, message).params


def known_heads(before: Tensor | None, task: TaskInfo, params: Params) -> Tensor:
    """Returns the (heads, classes) bool groups of classes that a model compares after a stage.

    They are one head of all classes in the domain-incremental scenario, and one of all classes seen
    in the class-incremental one. In the task-incremental scenario each stage adds a head of its
    classes, or, where clients have orders of their own, of those that are new to the federation.

    Args:
        before: What it returned for the stage before, or None.
        task: The stage.
        params: The model, whose last layer has as many outputs as there are classes.
    """
    classes, device = len(params["head.weight"]), params["head.weight"].device
    if task.scenario == "domain":
        return torch.ones(1, classes, dtype=torch.bool, device=device)
    if task.scenario == "class":
        return class_mask(task.seen, classes)[None].to(device)
    old = torch.zeros(0, classes, dtype=torch.bool, device=device) if before is None else before
    new = class_mask(task.classes, classes).to(device) & ~old.any(0)
    return torch.cat([old, new[None]]) if bool(new.any()) else old


def check_distillation(strength: float, temperature: float) -> None:
    """Raises ValueError for options that no distillation takes."""
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength must be at least 0 and finite, not {strength}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be above 0 and finite, not {temperature}")
