"""What fedcl asks of a model.

A head over all classes, no mixing of examples, dropout that is a function of position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedcl.core.params import Params


class Architecture(Protocol):
    """What a file in `models/` offers: a frozen dataclass of options."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Returns a network from (n, *shape) to (n, classes) logits, whose last layer is `head`."""
        ...


class Dropout(nn.Module):
    """Dropout whose mask comes from outside, so that looped and batched runs drop the same units.

    Without a mask (evaluation) it is the identity. A mask of 0 and 1/(1 - rate) is drawn by `draw`
    from a generator that depends on the client and the step alone.
    """

    def __init__(self, rate: float, shape: Sequence[int]) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a dropout rate lies in [0, 1), not {rate}")
        self.rate, self.shape = rate, tuple(shape)
        self.mask: Tensor | None = None

    def draw(self, rows: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Returns a (rows, *shape) mask."""
        keep = torch.rand((rows, *self.shape), generator=generator) >= self.rate
        return keep.to(dtype) / (1.0 - self.rate)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x times the mask, if there is one."""
        if self.mask is None:
            return x
        if self.mask.shape[0] != x.shape[0]:
            raise ValueError(
                f"a dropout mask for {self.mask.shape[0]} rows met {x.shape[0]} rows: in a "
                "training loss, call the network once on the batch, or on other rows through "
                "net.at(params)"
            )
        return x * self.mask


def dropouts(model: nn.Module) -> list[Dropout]:
    """Returns the model's dropout layers that drop anything, in the order of their registration."""
    return [
        module for module in model.modules() if isinstance(module, Dropout) and module.rate > 0.0
    ]


@dataclass(frozen=True)
class Net:
    """A model with parameters and, while training, dropout masks: what a loss calls.

    Attributes:
        model: The module; its own parameters are used when `params` is None.
        params: Parameters to use instead.
        masks: One mask for each layer of `dropouts(model)`, or empty for none.
    """

    model: nn.Module
    params: Params | None = None
    masks: Sequence[Tensor] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the (n, classes) logits of (n, ...) inputs."""
        with _masked(self.model, self.masks):
            if self.params is None:
                return self.model(x)  # type: ignore[no-any-return]
            return functional_call(self.model, dict(self.params), (x,))  # type: ignore[no-any-return]

    def at(self, params: Params) -> Net:
        """Returns the architecture with other parameters and without dropout, e.g. a teacher."""
        return Net(self.model, params)


@contextmanager
def _masked(model: nn.Module, masks: Sequence[Tensor]) -> Iterator[None]:
    layers = dropouts(model) if masks else []
    for layer, mask in zip(layers, masks, strict=True):
        layer.mask = mask
    try:
        yield
    finally:
        # A mask must not outlive its step: under vmap it would be a dead batched tensor.
        for layer in layers:
            layer.mask = None


def check_model(model: nn.Module) -> None:
    """Raises ValueError for layers that mix examples or draw at random by themselves."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"layer {name!r} is a {type(module).__name__}: its statistics mix examples and "
                "cannot be averaged over clients or batched; use GroupNorm instead"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd):
            raise ValueError(
                f"layer {name!r} is a {type(module).__name__}: its draws would depend on the "
                "engine; use fedcl.core.model.Dropout, whose mask is a function of position"
            )
        if isinstance(module, nn.Embedding) and (
            module.scale_grad_by_freq or module.max_norm is not None or module.sparse
        ):
            raise ValueError(
                f"layer {name!r} is an Embedding with scale_grad_by_freq, which mixes examples, "
                "max_norm, which changes parameters outside training, or sparse gradients: use a "
                "plain one"
            )
        if isinstance(module, nn.RReLU) or (
            isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0
        ):
            raise ValueError(
                f"layer {name!r} is a {type(module).__name__} that draws at random by itself: its "
                "draws would depend on the engine; set its dropout to 0 or use another layer"
            )
    for name, _ in model.named_buffers():
        raise ValueError(
            f"buffer {name!r}: only parameters are averaged over clients; make it one or drop it"
        )
