"""Blocks of clients of several runs trained as one, each with the parameters of its own run.

What is sent, clipped, noised, summed and remembered stays each run's own, so that results differ
from those of one run after the other by rounding alone. Joined are blocks of plain SGD through
block layers (`fedcl.core.training.fused`) whose losses heed no message; all others train alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedcl.core.block import Batching, Block, Here, make_plan
from fedcl.core.local import Local, Trainer
from fedcl.core.sgd import Settings, visits
from fedcl.core.task import join
from fedcl.core.trained import BlockReply, TrainedBlock
from fedcl.core.training.blocknet import Unfit
from fedcl.core.training.fused import fusible, train_fused
from fedcl.core.training.together import answer_of, training_rows

NUMBERS = 2**24  # parameters of one computation: more would not fit a cache anyway


@dataclass
class Asked:
    """A block that waits to be trained.

    Attributes:
        trainer: Its run's trainer.
        local: The parts of local training.
        block: The clients.
        message: What they received.
        batching: How the run batches.
        answer: What came of it.
        error: Why nothing came of it.
    """

    trainer: Trainer
    local: Local
    block: Block
    message: Any
    batching: Batching
    answer: BlockReply | None = None
    error: Exception | None = None

    def alone(self) -> None:
        """Trains the block as its run would by itself."""
        try:
            self.answer = self.trainer.block(self.local, self.block, self.message, self.batching)
        except Exception as error:
            self.error = error

    @property
    def settings(self) -> Settings | None:
        """The settings of plain SGD whose loss heeds no message; None where it must be alone."""
        local, settings = self.local, getattr(self.trainer, "settings", None)
        plain = local.penalty is None and local.project is None and not self.trainer.private
        heedless = getattr(local.loss, "heeds_message", True) is False
        # What is no parameter of the message may differ from run to run.
        own = {name for name, _ in self.block.model.named_parameters()} - set(self.message.params)
        bare = not own and not any(True for _ in self.block.model.buffers())
        fused = self.batching.path in ("auto", "fused")
        device = next(iter(self.message.params.values())).device.type
        if not (plain and heedless and bare and fused) or torch.is_autocast_enabled(device):
            return None
        known = isinstance(settings, Settings) and settings.augment == "none"
        return settings if known else None


def alike(first: Asked, other: Asked) -> bool:
    """Whether two blocks may be one: the same step, and shapes that fit."""
    settings = first.settings
    shapes = [
        [(name, value.shape, value.dtype) for name, value in one.message.params.items()]
        for one in (first, other)
    ]
    return (
        settings is not None
        and settings == other.settings
        and first.local.loss == other.local.loss
        and type(first.block.model) is type(other.block.model)
        and shapes[0] == shapes[1]
    )


def train_jointly(parts: Sequence[Asked]) -> bool:
    """Trains the blocks of several runs at once; returns whether that could be done."""
    try:
        answers = _trained(parts)
    except Exception:  # whose fault it is shows when each trains alone
        return False
    if answers is None:
        return False
    for part, answer in zip(parts, answers, strict=True):
        part.answer = answer
    return True


def _trained(parts: Sequence[Asked]) -> list[BlockReply] | None:
    settings, first = parts[0].settings, parts[0]
    assert settings is not None
    rows = [training_rows(part.local, part.block, part.message) for part in parts]
    if any(own.data.extra.keys() != rows[0].data.extra.keys() for own in rows):
        return None
    block = Block(
        tuple(range(sum(len(own) for own in rows))),
        first.block.model,
        Here(join([own.data for own in rows])),
        tuple(size for own in rows for size in own.sizes),
        tuple(task for own in rows for task in own.tasks),
        tuple(state for own in rows for state in own.states),
        tuple(seed for own in rows for seed in own.seeds),
    )
    net = fusible(first.local, block, first.message)
    if net is None:
        return None
    params = first.message.params
    starts = {
        name: torch.cat(
            [
                part.message.params[name].detach().expand(len(part.block), *value.shape)
                for part in parts
            ]
        )
        for name, value in params.items()
    }
    passes = [settings.visit(size) for size in block.sizes]
    order = [
        visits(size, settings, seed) for size, seed in zip(block.sizes, block.seeds, strict=True)
    ]
    dtype = next(iter(params.values())).dtype
    plan = make_plan(order, passes, block.starts, settings.batch_size, dtype)
    try:
        trained = train_fused(first.local, settings, block, plan, first.message, net, starts=starts)
    except Unfit:
        return None
    answers, at = [], 0
    for part in parts:
        own = _part(trained, part, at)
        metrics = [{"loss": loss} for loss in own.losses]
        answers.append(answer_of(part.local, part.block, part.message, own, metrics))
        at += len(part.block)
    return answers


def _part(trained: TrainedBlock, part: Asked, at: int) -> TrainedBlock:
    """Returns one run's clients, who begin at a place of the block of all."""
    end = at + len(part.block)
    places = [place for place, k in enumerate(trained.order) if at <= k < end]
    return TrainedBlock(
        {name: value.detach() for name, value in part.message.params.items()},
        {name: value[places] for name, value in trained.stacked.items()},
        tuple(trained.order[place] - at for place in places),
        trained.losses[at:end],
        trained.steps[at:end],
        trained.visits[at:end],
    )
