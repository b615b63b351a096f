"""Whether a loss keeps examples apart, as it must where it meets padding or several clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedcl.core.block import Block, Plan
from fedcl.core.local import Local, check_losses
from fedcl.core.model import Net, dropouts
from fedcl.core.params import Params
from fedcl.core.seeds import torch_generator
from fedcl.core.task import Examples
from fedcl.core.training.blockmodel import strange_params

Together = Callable[[Params, Sequence[int], Examples, Sequence[Tensor]], Tensor]

_CHECKED: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()


def check_apart(
    local: Local, block: Block, plan: Plan, message: Any, how: str, together: Together
) -> None:
    """Looks, once for each model and program, at the last steps of two clients.

    They get weights of their own: where all have the same ones, or where the head is zero, a breach
    may be invisible.

    Args:
        local: The parts of local training.
        block: The clients, with the examples to train on.
        plan: The rows of each step.
        message: What the clients received.
        how: Which path asks; each looks by itself.
        together: (2, ...) parameters, the places in the plan of two clients, their rows with
            padding, one after the other, and dropout masks of these -> losses.

    Raises:
        ValueError: The loss gives an example another value among others than alone.
    """
    known = _CHECKED.setdefault(block.model, set())
    key = hash((how, local.key))
    working = plan.working[0] if plan.working else 0
    if not working or key in known:
        return
    last = [plan.steps[k] - 1 for k in plan.order[:working]]
    sizes = [int(plan.weights[place, step].count_nonzero()) for place, step in enumerate(last)]
    places = (0, min(range(working), key=sizes.__getitem__))
    width, device = plan.rows.shape[2], block.data.x.device
    params = strange_params(message.params, 2)
    dtype = next(iter(params.values())).dtype
    generator = torch_generator("trial")
    masks = [layer.draw(2 * width, generator, dtype).to(device) for layer in dropouts(block.model)]
    rows = torch.cat([plan.rows[place, last[place]] for place in places]).to(device)
    batch = block.data.take(rows)
    with torch.enable_grad():  # a loss may ask for gradients by itself
        losses = together(params, places, batch, masks)
        check_losses(losses, 2 * width)
        for number, place in enumerate(places):
            own = slice(number * width, number * width + sizes[place])
            net = Net(
                block.model,
                {name: value[number] for name, value in params.items()},
                [mask[own] for mask in masks],
            )
            task = block.tasks[plan.order[place]]
            alone = local.loss(net, batch.part(own.start, own.stop), task, message)
            if not torch.allclose(
                alone.detach(), losses[own].detach(), rtol=1e-2, atol=1e-2, equal_nan=True
            ):
                raise ValueError(
                    "the loss of an example depends on the other examples of its batch: let each "
                    "value depend on its own example alone, or give the loss `mixes = True`"
                )
    known.add(key)
