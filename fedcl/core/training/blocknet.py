"""What a loss sees of a block of clients: one network, one batch, one task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

import torch
from torch import Tensor, nn

from fedcl.core.block import Block
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.task import ClientTask
from fedcl.core.training.blocklayers import BlockLayer
from fedcl.core.training.blockmodel import BlockModel


class Unfit(Exception):
    """A loss does with the network what sealed layers, or those of a whole block, cannot give."""


class SealedNet(Net):
    """A network that a loss can only call, on all rows of its batch.

    `at` gives the architecture itself.
    """

    def __init__(self, inner: Net, rows: int, architecture: nn.Module | None = None) -> None:
        self._inner, self._rows = inner, rows
        self._architecture = inner.model if architecture is None else architecture
        object.__setattr__(self, "masks", inner.masks)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the (rows, classes) logits of the batch."""
        if len(x) != self._rows:
            raise Unfit("it calls the network on other rows than its batch")
        return self._inner(x)

    def at(self, params: Params) -> Net:
        """Returns the architecture with other parameters and without dropout, e.g. a teacher."""
        return Net(self._architecture, params)

    @property
    def model(self) -> nn.Module:
        """Is not there: its layers may hold the weights of many."""
        raise Unfit("it looks at the network's layers")

    @property
    def params(self) -> Params:
        """Are not there: each client may have its own."""
        raise Unfit("it looks at the network's parameters")


def flat_task(block: Block, clients: Sequence[int], width: int) -> ClientTask:
    """Returns the task that a loss over the rows of some clients gets.

    It is the common one, or, for a loss that compares masks row by row (it says `rowwise`), each
    client's repeated for each of its rows.

    Args:
        block: The clients.
        clients: Places in the block of those whose rows they are, in the order of the rows.
        width: Rows of each.
    """
    if block.task is not None:
        return block.task
    chosen = [block.tasks[k] for k in clients]
    stacked = {
        f.name: torch.stack([getattr(task, f.name) for task in chosen]).repeat_interleave(width, 0)
        for f in fields(ClientTask)
    }
    return ClientTask(**stacked)


@contextmanager
def listening(net: BlockModel, rows: int) -> Iterator[list[tuple[BlockLayer, Tensor, Tensor]]]:
    """Yields the list of calls of layers with parameters: layer, inputs and outputs.

    Raises:
        Unfit: Inside, a layer is called twice, or does not see the rows first.
    """
    calls: list[tuple[BlockLayer, Tensor, Tensor]] = []

    def keep(layer: BlockLayer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if len(output) != rows or any(known is layer for known, _, _ in calls):
            raise Unfit("it calls a layer twice, or not on the examples one after the other")
        own = output if output.requires_grad else output.detach().requires_grad_()
        calls.append((layer, inputs[0].detach(), own))
        return own.clone()  # what comes next may work in place

    handles = [layer.register_forward_hook(keep) for layer in net.layers.values() if layer.names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
