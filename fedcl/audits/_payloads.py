"""What a reply holds: its kinds of payload, and which of its tensors see whole inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedcl.core.local import Local
from fedcl.core.params import Params
from fedcl.core.request import Request

# What says how much there is beside a payload, and is no payload to invert.
BESIDE = ("client", "count", "counts", "norms", "shape")


def kinds(tensors: Params, request: Request) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors of a reply by the kind of payload that they are booked under."""
    bare = "model" if isinstance(request.program, Local) else request.name
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, slash, rest = name.partition("/")
        found.setdefault(kind if slash else bare, {})[rest if slash else name] = value
    return found


def first_layer(model: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Returns the name of the linear layer that gets whole inputs, or None."""
    first = next(model.parameters())
    x = torch.arange(1.0, 1.0 + math.prod(shape), dtype=first.dtype, device=first.device)
    found: list[str] = []
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and layer.in_features == x.numel():

            def look(_: object, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if inputs[0].numel() == x.numel() and torch.equal(inputs[0].flatten(), x):
                    found.append(name)

            handles.append(layer.register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            model(x.view(1, *shape))
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
