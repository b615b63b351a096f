"""Binary cross-entropy that compensates examples by gradient, and holds relations to a teacher.

Dong et al., Federated class-incremental learning (GLFC), CVPR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.task import ClientTask, Examples


@dataclass(frozen=True)
class Lesson:
    """What goes down in a round.

    Attributes:
        params: The model to start from.
        separate: Whether each task keeps its own logits (task-incremental).
        heads: (heads, classes) bool, what the teacher knows, or None without a teacher.
        teacher: The teacher's parameters; empty where they are the model's, and not sent twice.
    """

    params: Params
    separate: bool
    heads: Tensor | None = None
    teacher: Params = field(default_factory=dict)


@dataclass(frozen=True)
class Compensated:
    """BCE with the label, weighted, and BCE with the relations: the teacher's where it knows them.

    Without a teacher it is the first of them, whole. Rows have the columns `head` (n, classes),
    `stage` (n,), and with a teacher `teacher` (n, classes), its logits.

    Attributes:
        compensation: Whether examples are weighted, but in a client's first stage.
        distillation: Share of the relations in the loss, in [0, 1].
    """

    rowwise: ClassVar[bool] = True

    compensation: bool
    distillation: float

    @property
    def mixes(self) -> bool:
        """Whether an example's loss depends on the others of its batch."""
        return self.compensation

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: Lesson) -> Tensor:
        """Returns (n,) losses."""
        logits, head = net(batch.x), batch.extra["head"]
        hot = (batch.y[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits)
        losses = binary_entropy(logits, hot, head)
        if self.compensation:
            right = logits.detach().gather(1, batch.y[:, None])[:, 0]
            weights = compensation(right, batch.extra["stage"] != task.index)
            losses = losses * torch.where(task.index == 0, torch.ones_like(weights), weights)
        if message.heads is None:
            return losses
        known = message.heads.any(0)
        relations = torch.where(known, batch.extra["teacher"].sigmoid(), hot)
        held = binary_entropy(logits, relations, head | known)
        return (1.0 - self.distillation) * losses + self.distillation * held


def binary_entropy(logits: Tensor, targets: Tensor, allowed: Tensor) -> Tensor:
    """Returns the (n,) sums over allowed classes of the binary cross-entropy of the logits.

    Args:
        logits: (n, classes).
        targets: (n, classes) probabilities.
        allowed: (n, classes) bool.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.masked_fill(~allowed, 0.0).sum(1)


def compensation(right: Tensor, old: Tensor) -> Tensor:
    """Returns the (n,) weights of examples: 1 - sigmoid(logit), of mean 1 within each kind.

    It is the size of the gradient of the binary cross-entropy for the logit of the label.

    Args:
        right: (n,) logits of the labels.
        old: (n,) bool: one kind, the other examples being another.
    """
    size = (-right).sigmoid()
    total = torch.zeros_like(size)
    for kind in (old, ~old):
        own = size * kind
        mean = own.sum() / kind.sum().clamp(min=1)
        # Where all are learnt to the last bit there is no gradient left to share out.
        total = total + own / mean.clamp(min=torch.finfo(size.dtype).tiny)
    return total
