"""Cross-entropy in which old and new classes, and old and new examples, count differently.

Task-aware temperature scaling (Qi et al., FedCBDR, NeurIPS 2025).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.local import masked_logits
from fedcl.core.model import Net
from fedcl.core.task import ClientTask, Examples


@dataclass(frozen=True)
class TemperedCrossEntropy:
    """Divides logits by a temperature before the softmax, but in a client's first stage.

    Attributes:
        old: Temperature of classes that are not of the present task.
        new: Temperature of the present task's classes.
        rowwise: The masks of a task may come one for each row; see `fedcl.core.training.fused`.
    """

    rowwise: ClassVar[bool] = True

    old: float
    new: float

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: object) -> Tensor:
        """Returns (n,) losses; rows have the columns `head` (n, classes) and `weight` (n,)."""
        logits = net(batch.x)
        heat = torch.where(task.present, logits.new_tensor(self.new), logits.new_tensor(self.old))
        heat = torch.where(task.index[..., None] == 0, torch.ones_like(heat), heat)
        logits = masked_logits(logits / heat, batch.extra["head"])
        return F.cross_entropy(logits, batch.y, reduction="none") * batch.extra["weight"]


def weighed(
    rows: Examples, task: ClientTask, old: float, new: float, separate: bool, most: float = 1e9
) -> Examples:
    """Returns rows with the column `weight` (n,): all 1 in a client's first stage.

    Args:
        rows: Rows with the column `stage`.
        task: The client's task: rows of its stage are new.
        old: Weight of the others.
        new: Weight of new ones.
        separate: Whether the mean over all rows shall be the sum of two means, over the old ones
            and over the new ones: weights are divided by the share of rows of their kind.
        most: Bound of that division: the one remembered row of a client with a thousand new ones
            would weigh a thousand, and one step on it would throw the model away.
    """
    weight = torch.ones(len(rows), dtype=rows.x.dtype, device=rows.x.device)
    fresh = rows.extra["stage"] == task.index
    for kind, own in ((~fresh, old), (fresh, new)) if int(task.index) else ():
        share = min(most, len(rows) / max(1, int(kind.sum()))) if separate else 1.0
        weight[kind] = own * share
    return replace(rows, extra={**rows.extra, "weight": weight})
