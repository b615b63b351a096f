"""Local training of a block of clients by the path that its model and its loss allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fedcl.core.block import Batching, Block, block_of, make_plan
from fedcl.core.client import Spent
from fedcl.core.data.augment import view_draws
from fedcl.core.local import Local, no_passes, own_data, own_state
from fedcl.core.sgd import Settings, train_one, visits
from fedcl.core.trained import BlockReply, TrainedBlock
from fedcl.core.training.blocknet import Unfit
from fedcl.core.training.fused import fusible, train_fused
from fedcl.core.training.vmapped import train_vmapped


def train_block(
    local: Local, settings: Settings, block: Block, message: Any, batching: Batching
) -> BlockReply:
    """Trains the clients of a block, lets them remember, and returns what they may report.

    Args:
        local: The parts of local training.
        settings: Hyper-parameters.
        block: The clients.
        message: What they received.
        batching: The path asked for.

    Raises:
        ValueError: The path cannot train this model with this loss.
    """
    trained = _train(local, settings, training_rows(local, block, message), message, batching)
    return answer_of(local, block, message, trained, [{"loss": loss} for loss in trained.losses])


def training_rows(local: Local, block: Block, message: Any) -> Block:
    """Returns the block with the examples to train on, such as its own and remembered ones."""
    if local.data is own_data:
        return block
    chosen = [block.client(k) for k in range(len(block))]
    return block_of([replace(c, data=local.data(c, message)) for c in chosen])


def answer_of(
    local: Local,
    block: Block,
    message: Any,
    trained: TrainedBlock,
    metrics: Sequence[Mapping[str, float]],
    spent: Sequence[Spent] = (),
) -> BlockReply:
    """Lets the clients of a trained block remember, and returns what they may report.

    Args:
        local: The parts of local training.
        block: The clients.
        message: What they received.
        trained: The clients after training.
        metrics: What each tells.
        spent: What protects each one's records.
    """
    states: list[Any] = []
    if local.keep is not own_state:
        states = [
            local.keep(block.client(k), message, trained.params(k)) for k in range(len(block))
        ]
    counted = local.passes is not no_passes
    return BlockReply(
        trained,
        [float(size) for size in block.sizes],
        metrics,
        states,
        [local.passes(block.client(k), message) for k in range(len(block))] if counted else (),
        spent,
    )


def _train(
    local: Local, settings: Settings, block: Block, message: Any, batching: Batching
) -> TrainedBlock:
    path = batching.path
    rows = [
        visits(size, settings, seed) for size, seed in zip(block.sizes, block.seeds, strict=True)
    ]
    first = next(iter(message.params.values()))
    draws = None
    if settings.augment != "none":
        draws = [view_draws(len(own), seed) for own, seed in zip(rows, block.seeds, strict=True)]
    passes = [settings.visit(size) for size in block.sizes]
    plan = make_plan(rows, passes, block.starts, settings.batch_size, first.dtype, draws)
    # Weights that step inside the backward pass are not for autocast.
    reduced = torch.is_autocast_enabled(first.device.type)
    if path in ("fused", "grouped") or (path == "auto" and not reduced):
        net = fusible(local, block, message)
        grouped = path == "grouped" or (path == "auto" and first.is_cuda)
        reason = (
            "it trains linear, convolution, embedding and normalisation layers with a loss that "
            "keeps examples apart and follows the gradient as it is"
        )
        if net is not None:
            try:
                return train_fused(local, settings, block, plan, message, net, grouped)
            except Unfit as unfit:
                reason = f"not with this loss: {unfit}"
        if path != "auto":
            raise ValueError(f'engine.path = "{path}": {reason}; use "auto" or "vmap"')
    # A loss that mixes examples must not meet padding.
    if path == "loop" or (getattr(local.loss, "mixes", False) and not plan.even):
        return _one_by_one(local, settings, block, message)
    return train_vmapped(local, settings, block, plan, message, path == "compiled")


def _one_by_one(local: Local, settings: Settings, block: Block, message: Any) -> TrainedBlock:
    own = replace(local, data=own_data)
    alone = [train_one(own, settings, block.client(k), message) for k in range(len(block))]
    return TrainedBlock(
        {name: value.detach() for name, value in message.params.items()},
        {name: torch.stack([one.params[name] for one in alone]) for name in message.params},
        tuple(range(len(block))),
        [one.loss for one in alone],
        tuple(one.steps for one in alone),
        tuple(one.examples for one in alone),
    )
