"""What a loss sees of a block of clients: one network, one batch, one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from fedcl.core.block import Block, Plan
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.task import ClientTask


class Unfit(Exception):
    """A loss does with the network what one network for a whole block cannot do."""


class BlockNet(Net):
    """A network of block layers as a loss sees it; `at` gives the architecture itself."""

    def __init__(
        self, model: nn.Module, blocks: nn.Module, masks: Sequence[Tensor], rows: int
    ) -> None:
        self._architecture, self._blocks, self._rows = model, blocks, rows
        object.__setattr__(self, "masks", masks)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the (rows, classes) logits of the block's rows."""
        if len(x) != self._rows:
            raise Unfit("it calls the network on other rows than its batch")
        return Net(self._blocks, None, self.masks)(x)

    def at(self, params: Params) -> Net:
        """Returns the architecture with other parameters and without dropout, e.g. a teacher."""
        return Net(self._architecture, params)

    @property
    def model(self) -> nn.Module:
        """Is not there: the layers hold the weights of many."""
        raise Unfit("it looks at the network's layers")

    @property
    def params(self) -> Params:
        """Are not there: each client has its own."""
        raise Unfit("it looks at the network's parameters")


def flat_task(block: Block, plan: Plan, places: Sequence[int]) -> ClientTask:
    """Returns the task that a loss over the rows of some clients gets.

    It is the common one, or, for a loss that compares masks row by row (it says `rowwise`), each
    client's repeated for each of its rows.
    """
    if block.task is not None:
        return block.task
    chosen = [block.tasks[plan.order[place]] for place in places]
    width = plan.rows.shape[2]
    stacked = {
        f.name: torch.stack([getattr(task, f.name) for task in chosen]).repeat_interleave(width, 0)
        for f in fields(ClientTask)
    }
    return ClientTask(**stacked)
