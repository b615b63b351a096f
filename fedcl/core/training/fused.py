"""Local SGD of a block of clients through a network of block layers: the fast path.

Losses do not mix examples, so that a block's loss is one call on the rows of all clients. Rows,
order and dropout masks are the loop's; results differ from it by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from fedcl.core.block import Block, Plan
from fedcl.core.local import Local, check_losses
from fedcl.core.model import Dropout, Net, dropouts
from fedcl.core.params import Params
from fedcl.core.seeds import torch_generator
from fedcl.core.sgd import Settings, draw_masks, seen
from fedcl.core.task import Examples
from fedcl.core.trained import LowRank, TrainedBlock
from fedcl.core.training.apart import check_apart
from fedcl.core.training.blocklayers import BlockLayer
from fedcl.core.training.blockmodel import BlockModel, block_model_of
from fedcl.core.training.blocknet import SealedNet, flat_task
from fedcl.core.training.blockweights import (
    Outer,
    Step,
    Stepped,
    UsedTwice,
    as_products,
    recurrence,
)


def fusible(local: Local, block: Block, message: Any) -> BlockModel | None:
    """Returns the block's network when this path can train it."""
    # Its layers step one by one inside the backward pass: there is no gradient to project.
    if getattr(local.loss, "mixes", False) or local.project is not None:
        return None
    if block.task is None and not getattr(local.loss, "rowwise", False):
        return None
    return block_model_of(block.model, message.params, block.first.x)


def train_fused(
    local: Local,
    settings: Settings,
    block: Block,
    plan: Plan,
    message: Any,
    net: BlockModel,
    grouped: bool = False,
    starts: Params | None = None,
) -> TrainedBlock:
    """Trains a block of clients.

    Args:
        local: The parts of local training.
        settings: Hyper-parameters.
        block: The clients, with the examples to train on.
        plan: The rows of each step.
        message: What the clients received.
        net: The block's network.
        grouped: Whether a block's convolutions are one with a group for each client.
        starts: (clients, ...) parameters to start from, in the block's order, where these are not
            the message's.

    Raises:
        Unfit: The loss asks for more of the network than this path can give.
        ValueError: The loss mixes examples.
    """
    try:
        return _Training(local, settings, block, plan, message, net, grouped, True, starts).run()
    except UsedTwice:
        # Found out anew for each block: what one block did must not change the bits of the next.
        return _Training(local, settings, block, plan, message, net, grouped, False, starts).run()


class _Training:
    def __init__(
        self,
        local: Local,
        settings: Settings,
        block: Block,
        plan: Plan,
        message: Any,
        net: BlockModel,
        grouped: bool,
        plain: bool,
        starts: Params | None,
    ) -> None:
        self.local, self.settings, self.block, self.plan = local, settings, block, plan
        self.message, self.net, self.grouped, self.starts = message, net, grouped, starts
        self.start = {name: value.detach() for name, value in message.params.items()}
        self.visited: Examples | None = None
        self.free: dict[str, Tensor] = {}
        self.momenta: dict[str, Tensor] = {}
        self.dropouts: list[Dropout] = dropouts(net.net)
        first = next(iter(self.start.values()))
        self.device, self.dtype = first.device, first.dtype
        self.scale, self.factor = recurrence(settings, plan.rows.shape[1])
        self.anchor = torch.zeros((), dtype=self.dtype, device=self.device, requires_grad=True)
        self.plain = plain and local.penalty is None

    def _lay_out(self) -> None:
        """Gives every layer its weights, in the form that costs least."""
        for layer in self.net.layers.values():
            if self.plain and isinstance(layer.layer, nn.Linear) and layer.rows:
                layer.weights = self._weights(layer)
            else:
                layer.own = {
                    kind: self._spread(name).requires_grad_() for kind, name in layer.names.items()
                }
                self.free.update({layer.names[kind]: value for kind, value in layer.own.items()})

    def _weights(self, layer: BlockLayer) -> Outer | Stepped:
        plan, settings, names = self.plan, self.settings, layer.names
        clients, visits = len(plan.order), plan.rows[0].numel()
        weight = self.start[names["weight"]]
        bias = self.start[names["bias"]] if "bias" in names else None
        out, width = weight.shape
        if self.starts is None and layer.rows == 1 and as_products(visits, width, out):
            return Outer(weight, bias, clients, visits, self.scale, self.factor)
        return Stepped(
            self._spread(names["weight"]),
            None if bias is None else self._spread(names["bias"]),
            settings.lr,
            settings.weight_decay,
            settings.momentum,
        )

    def run(self) -> TrainedBlock:
        """Returns the clients after training."""
        plan, block = self.plan, self.block
        totals = torch.zeros(len(block), dtype=torch.float64, device=self.device)
        seeds = [block.seeds[k] for k in plan.order]
        generators = [torch_generator(seed, "dropout") for seed in seeds if self.dropouts]
        width = plan.rows.shape[2]
        rows, weights = plan.rows.to(self.device), plan.weights.to(self.device)
        task, tasked = None, -1
        try:
            check_apart(self.local, block, plan, self.message, "fused", self._together)
            self._lay_out()
            for number, working in enumerate(plan.working):
                if working != tasked:
                    task, tasked = flat_task(block, plan.order[:working], width), working
                assert task is not None
                step = Step(working, number, width, self.anchor, self.grouped)
                self.net.begin(step)
                masks = self._masks(generators[:working], width)
                batch = self._rows(rows, working, number)
                net = SealedNet(Net(self.net.net, None, masks), working * width, block.model)
                losses = self.local.loss(net, batch, task, self.message)
                check_losses(losses, working * width)
                weight = weights[:working, number].reshape(-1)
                step.learning = True
                (losses * weight).sum().backward()
                own = (losses.detach() * weight).view(working, width).sum(1).double()
                totals[:working] += own + self._finish(step)
            return self._trained(totals)
        finally:
            self.net.end()

    def _rows(self, rows: Tensor, working: int, number: int) -> Examples:
        """Returns the examples of a step, as its views show them."""
        batch, draws = self._fetched(rows, working, number), self.plan.draws
        if draws is None:
            return batch
        return seen(batch, draws[:working, number].flatten(0, 1), 0, self.settings)

    def _fetched(self, rows: Tensor, working: int, number: int) -> Examples:
        """Returns the examples of a step; those of all steps are fetched at once if they fit."""
        visits = rows.numel()
        if not self.plan.even or visits > self.block.examples:
            return self.block.data.take(rows[:working, number].reshape(-1))
        if self.visited is None:
            self.visited = self.block.visited(rows.transpose(0, 1).reshape(-1))
        each = visits // rows.shape[1]
        return self.visited.part(number * each, (number + 1) * each)

    def _together(
        self, params: Params, places: Sequence[int], batch: Examples, masks: Sequence[Tensor]
    ) -> Tensor:
        """Returns the losses of some clients' rows, for `check_apart`."""
        self.net.hold(params)
        width = len(batch) // len(places)
        self.net.begin(Step(len(places), 0, width, self.anchor, self.grouped))
        net = SealedNet(Net(self.net.net, None, masks), len(batch), self.block.model)
        task = flat_task(self.block, [self.plan.order[place] for place in places], width)
        losses = self.local.loss(net, batch, task, self.message)
        self.net.end()
        return losses

    def _masks(self, generators: Sequence[torch.Generator], width: int) -> list[Tensor]:
        drawn = [draw_masks(self.dropouts, self.settings, g, self.dtype) for g in generators]
        return [
            torch.stack(own)[:, :width].flatten(0, 1).to(self.device)
            for own in zip(*drawn, strict=True)
        ]

    def _finish(self, step: Step) -> Tensor | float:
        """Takes the step of what is left to do after a backward pass; returns the penalties."""
        settings, working, penalties = self.settings, step.clients, 0.0
        for layer in self.net.layers.values():
            if layer.weights is not None:
                layer.weights.finish(step)
        if not self.free:
            return penalties
        with torch.no_grad():
            values = {name: value.detach()[:working] for name, value in self.free.items()}
            gradients = {
                name: values[name].new_zeros(values[name].shape)
                if value.grad is None
                else value.grad[:working]
                for name, value in self.free.items()
            }
            if self.local.penalty is not None:
                own, penalties = vmap(grad_and_value(self.local.penalty), in_dims=(0, None))(
                    values, self.message
                )
                gradients = {name: g + own[name] for name, g in gradients.items()}
            if settings.weight_decay:
                gradients = {
                    k: g.add(values[k], alpha=settings.weight_decay) for k, g in gradients.items()
                }
            if settings.momentum:
                for name, g in gradients.items():
                    if name not in self.momenta:
                        self.momenta[name] = g.clone()
                    else:
                        kept = self.momenta[name][:working]
                        kept.mul_(settings.momentum).add_(g)
                        gradients[name] = kept
            for name, g in gradients.items():
                values[name].add_(g, alpha=-settings.lr)
                self.free[name].grad = None
        return penalties

    def _trained(self, totals: Tensor) -> TrainedBlock:
        plan = self.plan
        stacked = {name: value.detach() for name, value in self.free.items()}
        low_rank = {}
        steps = [plan.steps[k] for k in plan.order]
        for name, layer in self.net.layers.items():
            weights, at = layer.weights, f"{name}.{{}}" if name else "{}"
            if isinstance(weights, Stepped):
                stacked[at.format("weight")] = weights.weight
                if weights.bias is not None:
                    stacked[at.format("bias")] = weights.bias
            elif isinstance(weights, Outer):
                left = weights.left * self._factors(steps).to(weights.left)[:, :, None]
                scale = self.scale[steps].to(weights.left)
                low_rank[name] = LowRank(scale, left, tuple(weights.right))
        losses = [float("nan")] * len(plan.order)
        for place, (k, total) in enumerate(zip(plan.order, totals.tolist(), strict=True)):
            if steps[place]:
                losses[k] = total / steps[place]
        return TrainedBlock(
            self.start,
            stacked,
            plan.order,
            losses,
            plan.steps,
            plan.visits,
            plan.padded,
            low_rank,
        )

    def _spread(self, name: str) -> Tensor:
        """Returns (clients, ...) copies of what each client starts from."""
        if self.starts is not None:
            places = torch.tensor(self.plan.order, device=self.device)
            return self.starts[name].detach().index_select(0, places)
        value: Tensor = self.start[name]
        return value.expand(len(self.plan.order), *value.shape).clone()

    def _factors(self, steps: Sequence[int]) -> Tensor:
        """Returns the (clients, visits) factors of each client's products after its last step."""
        return self.factor[list(steps)].repeat_interleave(self.plan.rows.shape[2], 1)
