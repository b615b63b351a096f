"""Examples that a client remembers.

Each comes with its stage and with the logits that it is compared over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.client import Client
from fedcl.core.local import masked_logits
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.task import ClientTask, Examples, join


@dataclass(frozen=True)
class Rehearsal:
    """A message to clients that rehearse what they remember.

    Attributes:
        params: Model parameters.
        separate: Whether each task keeps its own logits (task-incremental).
    """

    params: Params
    separate: bool


@dataclass(frozen=True)
class RowwiseCrossEntropy:
    """Cross-entropy over the logits that each row allows (column `head`), one value per example."""

    rowwise: ClassVar[bool] = True

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: object) -> Tensor:
        """Returns (n,) losses."""
        return F.cross_entropy(
            masked_logits(net(batch.x), batch.extra["head"]), batch.y, reduction="none"
        )


def present_rows(client: Client) -> Examples:
    """Returns the client's own examples with the columns `stage` (n,) and `head` (n, classes)."""
    n = len(client.data)
    extra = {
        "stage": client.task.index.expand(n).clone(),
        "head": client.task.head.expand(n, -1).clone(),
    }
    return Examples(client.data.x, client.data.y, extra)


def with_present(client: Client, remembered: Examples | None, separate: bool) -> Examples:
    """Returns the client's own examples followed by those it remembers from earlier stages.

    Args:
        client: The client.
        remembered: Rows with the columns of `present_rows`, or None.
        separate: Whether each task keeps its own logits (task-incremental); else all rows are
            compared over the logits of the present stage.
    """
    own = present_rows(client)
    if remembered is None:
        return own
    old = remembered.take(torch.nonzero(remembered.extra["stage"] != client.task.index).flatten())
    if not separate:
        old = Examples(
            old.x, old.y, {**old.extra, "head": client.task.head.expand(len(old), -1).clone()}
        )
    return join([own, old])


def share_budget(rows: Examples, budget: int, order: Tensor) -> Examples:
    """Returns as many rows as fit a budget of bytes, equally many of each stage that has them.

    Args:
        rows: Rows with the column `stage`.
        budget: Bytes of all columns together.
        order: (n,) a permutation: rows early in it are kept first.
    """
    if len(rows) == 0:
        return rows
    room = budget // max(1, rows.nbytes // len(rows))
    stages = rows.extra["stage"][order]
    chosen: list[Tensor] = []
    present = torch.unique(stages).tolist()
    # Small stages first, so that what they leave over goes to the larger ones.
    groups = sorted((order[stages == stage] for stage in present), key=len)
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        quota = min(len(group), room // left)
        chosen.append(group[:quota])
        room -= quota
    return rows.take(torch.cat(chosen).sort().values)
