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
from fedcl.core.replay.selection import by_key, by_stage
from fedcl.core.seeds import torch_generator
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
    heeds_message: ClassVar[bool] = False

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


def earlier_rows(client: Client, remembered: Examples | None) -> Examples | None:
    """Returns what a client remembers of other stages than the present one; None for nothing.

    What it remembers of the present stage is part of its share, and no example counts twice.

    Args:
        client: The client.
        remembered: Rows with the column `stage`, or None.
    """
    if remembered is None:
        return None
    old = torch.nonzero(remembered.extra["stage"] != client.task.index).flatten()
    return remembered.take(old)


def with_present(client: Client, remembered: Examples | None, separate: bool) -> Examples:
    """Returns the client's own examples followed by those it remembers from earlier stages.

    Args:
        client: The client.
        remembered: Rows with the columns of `present_rows`, or None.
        separate: Whether each task keeps its own logits (task-incremental); else all rows are
            compared over the logits of the present stage.
    """
    own, old = present_rows(client), earlier_rows(client, remembered)
    if old is None:
        return own
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
    return rows.take(by_stage(rows, budget, order)) if len(rows) else rows


@dataclass(frozen=True)
class Reservoir:
    """A uniform sample of all examples that a client has met.

    Attributes:
        rows: The sample, with the columns of `present_rows` and `key` (n,), what it was drawn by.
        stage: The last of the client's stages that it was drawn from. A client meets the same
            examples in each round of a stage, and each of them has one chance.
    """

    rows: Examples
    stage: int


def draw(
    client: Client, reservoir: Reservoir | None, fresh: Examples, budget: int
) -> Reservoir | None:
    """Returns the reservoir of a client after a visit to a stage; None without room.

    It is the same object where it has been drawn from the stage already.

    Args:
        client: The client; its seed gives the keys.
        reservoir: What it has drawn by now, or None.
        fresh: The examples of the present stage, with the columns of `present_rows` and all others
            that the reservoir has, but `key`.
        budget: Bytes of all columns of the rows together; the stage's number stands besides.
    """
    if reservoir is not None and reservoir.stage == int(client.task.index):
        return reservoir
    keys = torch.rand(
        len(fresh), generator=torch_generator(client.seed, "reservoir"), dtype=torch.float64
    )
    rows = Examples(fresh.x, fresh.y, {**fresh.extra, "key": keys.to(fresh.y.device)})
    if reservoir is not None:
        rows = join([reservoir.rows, rows])
    rows = rows.take(by_key(rows, budget))
    return Reservoir(rows, int(client.task.index)) if len(rows) else None
