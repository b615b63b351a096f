"""Local SGD of a block of clients by `torch.func.vmap`: any model, any loss that can be batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedcl.core.block import Block, Plan
from fedcl.core.data.augment import viewed
from fedcl.core.local import Local, check_losses
from fedcl.core.model import Net, dropouts
from fedcl.core.params import Params
from fedcl.core.seeds import torch_generator
from fedcl.core.sgd import Settings, draw_masks, projected
from fedcl.core.task import ClientTask, Examples
from fedcl.core.trained import TrainedBlock
from fedcl.core.training.apart import Together, check_apart

_COMPILED: dict[Any, Callable[..., Any]] = {}


@torch.no_grad()  # `grad` sees only what is inside it: a model's own parameters are constants
def train_vmapped(
    local: Local,
    settings: Settings,
    block: Block,
    plan: Plan,
    message: Any,
    compiled: bool = False,
) -> TrainedBlock:
    """Trains a block of clients as one batched computation.

    Args:
        local: The parts of local training.
        settings: Hyper-parameters.
        block: The clients, with the examples to train on.
        plan: The rows of each step.
        message: What the clients received.
        compiled: Whether `torch.compile` makes one program of a step: half a minute for each shape.
    """
    start = {name: value.detach() for name, value in message.params.items()}
    first = next(iter(start.values()))
    dtype, device = first.dtype, first.device
    clients, _, width = plan.rows.shape
    params = {k: v.expand(clients, *v.shape).clone() for k, v in start.items()}
    momenta: dict[str, Tensor] = {}
    layers = dropouts(block.model)
    generators = [torch_generator(block.seeds[k], "dropout") for k in plan.order if layers]
    blank = [torch.ones((settings.batch_size, *layer.shape), dtype=dtype) for layer in layers]
    tasks = {
        f.name: torch.stack([getattr(block.tasks[k], f.name) for k in plan.order])
        for f in fields(ClientTask)
    }
    if plan.padded and not getattr(local.loss, "mixes", False):
        check_apart(local, block, plan, message, "vmap", _together(local, block, plan, message))
    step = _step_function(local, block, message, compiled)
    rows, weights = plan.rows.to(device), plan.weights.to(device)
    totals = torch.zeros(clients, dtype=torch.float64, device=device)
    for number, working in enumerate(plan.working):
        # Clients that have finished stand last; a compiled step has one shape and keeps them.
        n = clients if compiled else working
        drawn = [
            draw_masks(layers, settings, generator, dtype) if place < working else blank
            for place, generator in enumerate(generators[:n])
        ]
        masks = [torch.stack(own)[:, :width].to(device) for own in zip(*drawn, strict=True)]
        chosen = rows[:n, number]
        data = block.data
        x = data.x[chosen]
        if plan.draws is not None:
            shown = plan.draws[:n, number].flatten(0, 1).to(device)
            x = viewed(x.flatten(0, 1), shown, settings.augment, settings.padding).view(x.shape)
        batch = x, data.y[chosen], {k: v[chosen] for k, v in data.extra.items()}
        own = {k: v[:n] for k, v in params.items()}
        task = {k: v[:n] for k, v in tasks.items()}
        gradients, losses = step(own, batch, weights[:n, number], task, masks)
        gradients = {name: value[:working] for name, value in gradients.items()}
        if settings.weight_decay:
            decay = settings.weight_decay
            gradients = {k: g.add(own[k][:working], alpha=decay) for k, g in gradients.items()}
        if local.project is not None:
            own_step = partial(projected, local.project)
            gradients = vmap(own_step, in_dims=(0, None))(gradients, message)
        for name, value in own.items():
            gradient = gradients[name]
            if settings.momentum:
                if name in momenta:
                    gradient = momenta[name][:working].mul_(settings.momentum).add_(gradient)
                else:
                    momenta[name] = gradient.clone()
            value[:working].add_(gradient, alpha=-settings.lr)
        totals[:working] += losses[:working].double()
    losses_by_client = [float("nan")] * clients
    for k, total in zip(plan.order, totals.tolist(), strict=True):
        if plan.steps[k]:
            losses_by_client[k] = total / plan.steps[k]
    return TrainedBlock(
        start, params, plan.order, losses_by_client, plan.steps, plan.visits, plan.padded
    )


def _together(local: Local, block: Block, plan: Plan, message: Any) -> Together:
    """Returns what gives the losses of some clients' rows with their padding."""

    def losses(
        params: Params, places: Sequence[int], batch: Examples, masks: Sequence[Tensor]
    ) -> Tensor:
        width, found = len(batch) // len(places), []
        for number, place in enumerate(places):
            own = slice(number * width, (number + 1) * width)
            net = Net(
                block.model,
                {name: value[number] for name, value in params.items()},
                [mask[own] for mask in masks],
            )
            task = block.tasks[plan.order[place]]
            found.append(local.loss(net, batch.part(own.start, own.stop), task, message))
        return torch.cat(found)

    return losses


def _step_function(
    local: Local, block: Block, message: Any, compiled: bool
) -> Callable[..., tuple[dict[str, Tensor], Tensor]]:
    model = block.model

    def objective(
        params: dict[str, Tensor],
        batch: tuple[Tensor, Tensor, dict[str, Tensor]],
        weight: Tensor,
        task: dict[str, Tensor],
        masks: list[Tensor],
        message: Any,
    ) -> Tensor:
        losses = local.loss(
            Net(model, params, masks), Examples(*batch), ClientTask(**task), message
        )
        check_losses(losses, len(weight))
        value = (losses * weight).sum()
        return value if local.penalty is None else value + local.penalty(params, message)

    batched: Callable[..., Any] = vmap(grad_and_value(objective), in_dims=(0, 0, 0, 0, 0, None))
    if compiled:
        key = (id(model), local.key)
        if key not in _COMPILED:
            _COMPILED[key] = torch.compile(batched, dynamic=False)
        batched = _COMPILED[key]
    return lambda *arguments: batched(*arguments, message)
