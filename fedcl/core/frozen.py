"""A network inside a model that nobody trains, sends or counts: it is the same for everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_ROWS = 32  # examples that pass together: what lies between layers is large


class Frozen(nn.Module):
    """Hides a network: it has no parameters, buffers or submodules for those who look from outside.

    So clients, messages, methods and checkpoints never meet its weights, which everybody must be
    able to make alike (of a file, say). It follows the model to other devices and types, and is
    copied and pickled with it. It computes in evaluation mode and without gradients, so it can only
    stand before all layers that are trained.
    """

    hidden: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Not by assignment, which would register it.
        self.__dict__["hidden"] = network.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the network's outputs for (n, ...) inputs."""
        with torch.no_grad():
            return torch.cat([self.hidden(part) for part in x.split(_ROWS)])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.hidden._apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def all_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yields a model's modules and those that are hidden in it, for those who count their work."""
    for module in model.modules():
        yield module
        if isinstance(module, Frozen):
            yield from module.hidden.modules()
