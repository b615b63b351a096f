"""Example-level private SGD of a block of clients: one pass for all of them, noise for each.

Batches, masks and noise are those of `fedcl.core.privacy.sgd`, functions of each client's key, so
that both differ by rounding alone. The rows that are in stand client after client, padded to the
widest batch; one pass through block layers gives every row's norm, and the sums of each client's
rows with a factor each follow layer by layer. Padding has the factor 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from fedcl.core.block import Batching, Block
from fedcl.core.local import Local, check_losses, own_data
from fedcl.core.model import Net, dropouts
from fedcl.core.privacy.bookkeeping import factors
from fedcl.core.privacy.draws import PrivateSettings, coins, hide, row_masks, secret_key
from fedcl.core.privacy.examplelayers import part_of
from fedcl.core.privacy.examplepath import path_of
from fedcl.core.privacy.sgd import check_digits, train_private
from fedcl.core.sgd import projected
from fedcl.core.trained import BlockReply, TrainedBlock
from fedcl.core.training.blockmodel import BlockModel, block_model_of
from fedcl.core.training.blocknet import SealedNet, Unfit, flat_task, listening
from fedcl.core.training.blockweights import Step
from fedcl.core.training.together import answer_of, training_rows


def train_private_block(
    local: Local, settings: PrivateSettings, block: Block, message: Any, batching: Batching
) -> BlockReply:
    """Trains the clients of a block, lets them remember, and returns what they may report.

    Args:
        local: The parts of local training.
        settings: Hyper-parameters.
        block: The clients.
        message: What they received.
        batching: The path asked for.

    Raises:
        ExposureError: The clients have no keys, or numbers are not exact enough.
        ValueError: The path cannot train this model with this loss.
    """
    path = batching.path
    if path in ("vmap", "compiled"):
        raise ValueError(f'engine.path = "{path}" is not for private training: use "auto"')
    if not block.keys:
        secret_key(None)
    rows = training_rows(local, block, message)
    check_digits(next(iter(message.params.values())).device)
    trained = None
    if path != "loop":
        net, reason = _network(local, rows, message)
        if net is not None:
            try:
                trained = _Training(local, settings, rows, message, net, path).run()
            except Unfit as unfit:
                reason = f"not with this loss: {unfit}"
        if trained is None and path != "auto":
            raise ValueError(f'engine.path = "{path}": {reason}; use "auto" or "loop"')
    if trained is None:
        trained = _one_by_one(local, settings, rows, message)
    spent = [settings.spent(local, size) for size in rows.sizes]
    return answer_of(local, block, message, trained, [{}] * len(block), spent)


def _network(local: Local, block: Block, message: Any) -> tuple[BlockModel | None, str]:
    """Returns the block's network when it can train it, else None and why not."""
    if block.task is None and not getattr(local.loss, "rowwise", False):
        return None, "its clients have tasks of their own, and the loss is not `rowwise`"
    if path_of(local, block.model, block.first, message) != "books":
        return None, "book-keeping is not right for this model with this loss"
    net = block_model_of(block.model, message.params, block.first.x)
    return net, "it trains linear, convolution, embedding and normalisation layers"


class _Training:
    def __init__(
        self,
        local: Local,
        settings: PrivateSettings,
        block: Block,
        message: Any,
        net: BlockModel,
        path: str,
    ) -> None:
        self.local, self.settings, self.block, self.message = local, settings, block, message
        self.net, self.layers = net, dropouts(net.net)
        self.steps = tuple(settings.steps(size) for size in block.sizes)
        # Those still at work in a step are the first ones: who has finished costs nothing.
        self.order = sorted(range(len(block)), key=lambda k: -self.steps[k])
        self.start = {name: value.detach() for name, value in message.params.items()}
        self.values = {
            name: value.expand(len(block), *value.shape).clone()
            for name, value in self.start.items()
        }
        first = next(iter(self.start.values()))
        self.device, self.dtype = first.device, first.dtype
        self.grouped = path == "grouped" or (path == "auto" and first.is_cuda)
        self.anchor = torch.zeros((), dtype=self.dtype, device=self.device)
        self.momenta: dict[str, Tensor] = {}
        self.padded = 0

    def run(self) -> TrainedBlock:
        """Returns the clients after training."""
        block, settings = self.block, self.settings
        batches = [coins(block.keys[k], block.sizes[k], settings) for k in self.order]
        try:
            self.net.hold(self.values)
            for number in range(max(self.steps, default=0)):
                working = sum(1 for own in self.steps if own > number)
                chosen = [next(batch) for batch in batches[:working]]
                gradients = self._sums(number, chosen)
                with torch.no_grad():
                    self._hide(number, gradients)
                    self._descend(working, gradients)
        finally:
            self.net.end()
        return TrainedBlock(
            self.start,
            self.values,
            tuple(self.order),
            [float("nan")] * len(block),
            self.steps,
            tuple(settings.visits(size) for size in block.sizes),
            self.padded,
        )

    def _sums(self, number: int, chosen: Sequence[Tensor]) -> dict[str, Tensor]:
        """Returns the (working, ...) sums of the clipped gradients of the rows that are in."""
        working, width = len(chosen), max(len(rows) for rows in chosen)
        totals = {k: v.new_zeros((working, *v.shape)) for k, v in self.start.items()}
        if not width:
            return totals
        self.padded += working * width - sum(len(rows) for rows in chosen)
        own = torch.zeros((working, width), dtype=torch.int64)
        present = torch.zeros((working, width), dtype=torch.float64)
        for place, rows in enumerate(chosen):
            own[place, : len(rows)], present[place, : len(rows)] = rows, 1.0
        starts = torch.tensor([self.block.starts[k] for k in self.order[:working]])
        rows = (own + starts[:, None]).flatten()
        batch = self.block.data.take(rows.to(self.device))
        self.net.begin(Step(working, number, width, self.anchor, self.grouped))
        net = SealedNet(
            Net(self.net.net, None, self._masks(number, own)), working * width, self.block.model
        )
        task = flat_task(self.block, self.order[:working], width)
        with torch.enable_grad(), listening(self.net, working * width) as calls:
            losses = self.local.loss(net, batch, task, self.message)
            check_losses(losses, working * width)
            if not losses.requires_grad:
                return totals
            signals = torch.autograd.grad(
                losses.sum(),
                [output for _, _, output in calls],
                allow_unused=True,
                materialize_grads=True,
            )
        with torch.no_grad():
            parts = [
                part_of(layer.layer, frozenset(layer.names), inputs, signal)
                for (layer, inputs, _), signal in zip(calls, signals, strict=True)
            ]
            norms = torch.stack([part.squares for part in parts]).sum(0).sqrt()
            scale = factors(norms, self.settings.clip, self.dtype) * present.flatten().to(norms)
            for (layer, _, _), part in zip(calls, parts, strict=True):
                sums = part.weighted(scale, working)
                totals |= {name: sums[kind].to(self.dtype) for kind, name in layer.names.items()}
        return totals

    def _masks(self, number: int, rows: Tensor) -> list[Tensor]:
        if not self.layers:
            return []
        seeds = [self.block.seeds[k] for k in self.order]
        drawn = [
            row_masks(self.layers, seed, number, own, self.dtype)
            for seed, own in zip(seeds, rows, strict=False)
        ]
        return [torch.cat(own).to(self.device) for own in zip(*drawn, strict=True)]

    def _hide(self, number: int, totals: dict[str, Tensor]) -> None:
        """Puts each client's noise on its sums, and divides by its expected batch, in place."""
        block = self.block
        for name, total in totals.items():
            for own, k in zip(total, self.order, strict=False):
                hide(own, block.keys[k], number, name, block.sizes[k], self.settings)

    def _descend(self, working: int, gradients: dict[str, Tensor]) -> None:
        """Takes the step in place: what follows the noise touches no data."""
        local, settings, momenta = self.local, self.settings, self.momenta
        values = {name: value[:working] for name, value in self.values.items()}
        if local.penalty is not None:
            pulls = vmap(grad(local.penalty), in_dims=(0, None))(values, self.message)
            for name, gradient in gradients.items():
                gradient.add_(pulls[name])
        if settings.weight_decay:
            for name, gradient in gradients.items():
                gradient.add_(values[name], alpha=settings.weight_decay)
        if local.project is not None:
            project = partial(projected, local.project)
            gradients = vmap(project, in_dims=(0, None))(gradients, self.message)
        for name, gradient in gradients.items():
            if settings.momentum:
                if name in momenta:
                    gradient = momenta[name][:working].mul_(settings.momentum).add_(gradient)
                else:
                    momenta[name] = gradient.clone()
            values[name].add_(gradient, alpha=-settings.lr)


def _one_by_one(
    local: Local, settings: PrivateSettings, block: Block, message: Any
) -> TrainedBlock:
    own = replace(local, data=own_data)
    alone = [
        train_private(own, settings, block.client(k), message).params for k in range(len(block))
    ]
    return TrainedBlock(
        {name: value.detach() for name, value in message.params.items()},
        {name: torch.stack([params[name] for params in alone]) for name in message.params},
        tuple(range(len(block))),
        [float("nan")] * len(block),
        tuple(settings.steps(size) for size in block.sizes),
        tuple(settings.visits(size) for size in block.sizes),
    )
