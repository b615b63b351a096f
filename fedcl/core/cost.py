"""How much a model computes for one example: what placement and predictions are made of."""

from __future__ import annotations

from math import prod

import torch
from torch import nn

from fedcl.core.frozen import all_modules

SPEED = 2e10  # floating-point operations a second of one processor while it trains, about


def forward_flops(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Returns the floating-point operations of one example's matrix products, forward only.

    A multiplication and an addition count as two. Training takes about three times as many: the
    gradients of inputs and of weights cost as much as the outputs.

    Args:
        model: The architecture.
        shape: Shape of one input.
    """
    found = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal found
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        # Each output is one row of the weight times one layer input.
        found += 2 * output[0].numel() * prod(weight.shape[1:])

    handles = [
        module.register_forward_hook(count)
        for module in all_modules(model)
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    first = next(model.parameters())
    try:
        with torch.no_grad():
            model(torch.zeros(1, *shape, dtype=first.dtype, device=first.device))
    finally:
        for handle in handles:
            handle.remove()
    return found
