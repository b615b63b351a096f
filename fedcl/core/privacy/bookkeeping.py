"""Sums of clipped gradients of single examples, without a gradient of each example.

One pass forward and one back give every layer's inputs and the gradients at its outputs; from both
follow the norm of each example's gradient and the sum of all gradients with a factor each (Bu,
Wang, Zha and Karypis, Differentially private optimization on large model at small cost, ICML 2023,
arXiv 2210.00038: book-keeping). A model with other layers is computed by `torch.func.vmap`, some
examples at a time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from fedcl.core.params import Params
from fedcl.core.privacy.examplelayers import KNOWN, chosen, part_of

# Losses of the rows at some places, one each, with some parameters: a function of each row alone.
Losses = Callable[[Params, Tensor], Tensor]
# `check` looks whether book-keeping is right for a model and a loss, the others trust the answer.
Path = Literal["check", "books", "vmap"]

_ROUNDINGS = 64.0  # how many roundings of a norm and of a sum the clip leaves room for
_HELD = 2**22  # numbers of written-out gradients that are held at once


@dataclass(frozen=True)
class ClippedSum:
    """What examples give together.

    Attributes:
        total: Sum of the clipped gradients, by name.
        norms: (n,) float64 norms before clipping; NaN or infinite where a gradient is not finite.
        path: How it was computed; `check` where there was nothing to look at.
    """

    total: dict[str, Tensor]
    norms: Tensor
    path: Path


def factors(norms: Tensor, clip: float, dtype: torch.dtype) -> Tensor:
    """Returns the (n,) float64 factors that bound gradients by `clip`: 0 for what is not finite.

    Args:
        norms: (n,) float64 norms of single examples.
        clip: The largest norm, above 0.
        dtype: Type in which gradients are computed, whose roundings are left room for.
    """
    room = 1.0 - _ROUNDINGS * torch.finfo(dtype).eps
    least = torch.finfo(torch.float64).tiny  # a norm of 0 is within any bound
    scale = (clip * room / norms.clamp(min=least)).clamp(max=1.0)
    return torch.where(norms.isfinite(), scale, torch.zeros_like(norms))


def clipped_sum(
    model: nn.Module, params: Params, losses: Losses, rows: int, clip: float, path: Path = "check"
) -> ClippedSum:
    """Returns the sum of the clipped gradients of single examples.

    Args:
        model: The architecture.
        params: Parameters to differentiate by, as `losses` hands them to the model.
        losses: See `Losses`.
        rows: How many rows there are; 0 gives zeros.
        clip: The largest norm of one example's gradient over all parameters.
        path: How; a path that an earlier call with this model and loss returned saves the check.

    Raises:
        ValueError: The model has batch statistics, so that no example has a gradient of its own.
    """
    check_separable(model)
    if not rows:
        first = next(iter(params.values()))
        nothing = torch.zeros(0, dtype=torch.float64, device=first.device)
        return ClippedSum({k: torch.zeros_like(v) for k, v in params.items()}, nothing, path)
    if path == "books" or (path == "check" and keeps_books(model)):
        found = _booked(model, params, losses, rows, clip, path)
        if found is not None:
            return found
    return _written_out(params, losses, rows, clip)


def check_separable(model: nn.Module) -> None:
    """Raises ValueError for layers whose statistics mix examples."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"layer {name!r} is a {type(module).__name__}, which mixes examples, so that none "
                "has a gradient of its own: use GroupNorm for example-level privacy"
            )


def keeps_books(model: nn.Module) -> bool:
    """Returns whether every parameter belongs to one layer, of a kind that is known."""
    owners: Counter[int] = Counter()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not isinstance(module, KNOWN):
            return False
        owners.update(map(id, own))
    return all(count == 1 for count in owners.values())


@dataclass
class _Call:
    """A layer at work: its parameters' names by those in the layer, what went in and came out."""

    layer: nn.Module
    names: dict[str, str]
    inputs: Tensor
    output: Tensor


@contextmanager
def _listening(model: nn.Module, params: Params) -> Iterator[list[_Call]]:
    """Yields the list of calls of layers that have parameters of `params`, as they happen."""
    names = {id(value): name for name, value in params.items()}
    calls: list[_Call] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        # A teacher has other parameters, which stand in the module while it answers.
        own = {k: names[id(v)] for k, v in module.named_parameters(recurse=False) if id(v) in names}
        if not own:
            return None
        calls.append(_Call(module, own, inputs[0].detach(), output))
        return output.clone()  # what comes next may work in place

    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, KNOWN)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _booked(
    model: nn.Module, params: Params, losses: Losses, rows: int, clip: float, path: Path
) -> ClippedSum | None:
    """Returns the sum by book-keeping, or None where the losses do not go through the layers."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    places = torch.arange(rows, device=next(iter(params.values())).device)
    with torch.enable_grad():
        with _listening(model, leaves) as calls:
            found = losses(leaves, places)
        once = len({call.layer for call in calls}) == len(calls) > 0
        if not once or any(len(call.output) != rows for call in calls):
            return None
        signals = torch.autograd.grad(
            found.sum(),
            [call.output for call in calls],
            retain_graph=path == "check",
            allow_unused=True,
            materialize_grads=True,
        )
    with torch.no_grad():
        parts = [
            part_of(call.layer, frozenset(call.names), call.inputs, signal)
            for call, signal in zip(calls, signals, strict=True)
        ]
        norms = torch.stack([part.squares for part in parts]).sum(0).sqrt()
    if path == "check" and not _agree(found, leaves, norms):
        return None
    with torch.no_grad():
        scale = factors(norms, clip, found.dtype)
        total = {name: torch.zeros_like(value) for name, value in params.items()}
        for call, part in zip(calls, parts, strict=True):
            sums = part.weighted(scale, 1)
            total |= {whole: sums[own][0].to(total[whole]) for own, whole in call.names.items()}
    return ClippedSum(total, norms, "books" if bool((norms > 0).any()) else path)


def _agree(losses: Tensor, leaves: Params, norms: Tensor) -> bool:
    """Returns whether the norms of some examples are those that differentiation gives.

    They are not where a loss uses parameters around their layers, or a layer does not see the
    examples first.
    """
    for row in {0, len(losses) // 2, len(losses) - 1}:
        own = torch.autograd.grad(
            losses[row],
            list(leaves.values()),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        size = math.sqrt(sum(float(part.double().square().sum()) for part in own))
        booked, near = float(norms[row]), 1e4 * torch.finfo(losses.dtype).eps
        if math.isfinite(size) and not abs(booked - size) <= near * size:
            return False
    return True


def _written_out(params: Params, losses: Losses, rows: int, clip: float) -> ClippedSum:
    """Returns the sum of gradients that are written out for some examples at a time."""
    own = {name: value.detach() for name, value in params.items()}
    places = torch.arange(rows, device=next(iter(own.values())).device)

    def one(values: dict[str, Tensor], place: Tensor) -> Tensor:
        return losses(values, place[None])[0]

    each = vmap(grad(one), in_dims=(None, 0))
    total = {name: torch.zeros_like(value) for name, value in own.items()}
    norms = []
    with torch.no_grad():
        for part in places.split(max(1, _HELD // sum(v.numel() for v in own.values()))):
            found = each(own, part)
            squares = [v.flatten(1).double().square().sum(1) for v in found.values()]
            norms.append(torch.stack(squares).sum(0).sqrt())
            scale = factors(norms[-1], clip, next(iter(own.values())).dtype)
            for name, value in found.items():
                total[name] += chosen(value, scale).sum(0)
    return ClippedSum(total, torch.cat(norms), "vmap")
