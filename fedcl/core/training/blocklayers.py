"""Layers that hold the weights of several clients and take their rows one after the other.

A network made of them is called once for a whole block: everything that has no weights (activation,
pooling, loss) sees one long batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.training.blockweights import Step, Weights


class BlockLayer(nn.Module):
    """A layer whose `own` parameters have a first dimension of clients while a block trains.

    Attributes:
        layer: The layer that it stands for.
        names: Names of its parameters in the model, by their names in the layer.
        rows: Rows that it takes of each example, or 0 when it is not called exactly once.
        own: (clients, ...) parameters by their names in the layer, in training by autograd.
        weights: What stands in their place in training that steps inside the backward pass.
        step: Where training is.
    """

    def __init__(self, layer: Any, names: Mapping[str, str]) -> None:
        super().__init__()
        self.layer, self.names, self.rows = layer, names, 0
        self.own: dict[str, Tensor] = {}
        self.weights: Weights | None = None
        self.step: Step | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs of all clients' rows."""
        assert self.step is not None
        if self.weights is not None:
            return self.weights.apply(x, self.step)
        n = self.step.clients
        own = {name: value if len(value) == n else value[:n] for name, value in self.own.items()}
        if self.step.grouped and isinstance(self.layer, nn.Conv2d):
            return _grouped(self.layer, x, n, **own)
        return _CALLS[type(self.layer)](self.layer, x, n, **own)

    def reset(self) -> None:
        """Drops what belonged to one block."""
        self.own, self.weights, self.step = {}, None, None


def has_block_form(layer: nn.Module) -> bool:
    """Whether a layer can be a `BlockLayer`."""
    odd = ("max_norm", "scale_grad_by_freq", "sparse")
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(layer) in _CALLS and not any(getattr(layer, name, None) for name in odd + hooks)


def _linear(
    layer: nn.Linear, x: Tensor, clients: int, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    rows = x.reshape(clients, -1, layer.in_features)
    y = torch.bmm(rows, weight.transpose(1, 2))
    if bias is not None:
        y = y + bias[:, None]
    return y.view(*x.shape[:-1], layer.out_features)


def _embedding(layer: nn.Embedding, x: Tensor, clients: int, weight: Tensor) -> Tensor:
    low, high = (int(end) for end in x.aminmax()) if x.numel() else (0, 0)
    if not 0 <= low <= high < layer.num_embeddings:
        # It would read another client's.
        raise IndexError(f"rows {low} to {high} of an embedding that has {layer.num_embeddings}")
    first = torch.arange(clients, device=x.device) * layer.num_embeddings
    rows = x.reshape(clients, -1) + first[:, None]
    found = F.embedding(rows, weight.reshape(-1, layer.embedding_dim))
    found = found.view(*x.shape, layer.embedding_dim)
    if layer.padding_idx is None:
        return found
    return torch.where((x == layer.padding_idx)[..., None], found.detach(), found)


def _norm(
    layer: nn.GroupNorm | nn.LayerNorm,
    x: Tensor,
    clients: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    if isinstance(layer, nn.GroupNorm):
        y = F.group_norm(x, layer.num_groups, eps=layer.eps)
        shape = [clients, 1, x.shape[1], *[1] * (x.dim() - 2)]
    else:
        y = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        shape = [clients, *[1] * (x.dim() - len(layer.normalized_shape)), *layer.normalized_shape]
    if weight is None:
        return y
    y = y.reshape(clients, -1, *x.shape[1:]) * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return y.reshape(x.shape)


def _convolution(
    layer: nn.Conv2d, x: Tensor, clients: int, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    x, padding = _padded(layer, x)
    stride = layer.stride
    if layer.kernel_size == (1, 1) and not any(padding):
        # A single point sees no others. With steps between points the backward pass of PyTorch 2.13
        # writes beyond its memory on some processors, for few channels that come last.
        x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
    y: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, layer, stride, padding
    )
    return y


def _padded(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Returns the inputs, and the zeros that the convolution itself must still add."""
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return x, layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), (0, 0)


def _grouped(
    layer: nn.Conv2d, x: Tensor, clients: int, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """One convolution with a group for each client: few large kernels, as a GPU likes it."""
    x, padding = _padded(layer, x)
    side = x.reshape(clients, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
    y = F.conv2d(
        side,
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        layer.stride,
        padding,
        layer.dilation,
        clients * layer.groups,
    )
    y = y.view(len(y), clients, -1, *y.shape[2:])
    return y.transpose(0, 1).flatten(0, 1)


class _Convolution(torch.autograd.Function):
    """One convolution after the other, channels last: on a CPU faster than one in groups."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer: nn.Conv2d,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.stride, ctx.padding, ctx.biased = layer, stride, padding, bias is not None
        parts = [
            F.conv2d(
                rows,
                weight[k],
                None if bias is None else bias[k],
                stride,
                padding,
                layer.dilation,
                layer.groups,
            )
            for k, rows in enumerate(x.chunk(len(weight)))
        ]
        return torch.cat(parts).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        layer, clients = ctx.layer, len(weight)
        dy = dy.contiguous(memory_format=torch.channels_last)
        parts = [
            torch.ops.aten.convolution_backward(
                change,
                rows,
                weight[k],
                [weight.shape[1]],
                ctx.stride,
                ctx.padding,
                layer.dilation,
                False,
                [0, 0],
                layer.groups,
                [ctx.needs_input_grad[0], True, ctx.biased],
            )
            for k, (change, rows) in enumerate(
                zip(dy.chunk(clients), x.chunk(clients), strict=True)
            )
        ]
        dx = torch.cat([part[0] for part in parts]) if ctx.needs_input_grad[0] else None
        dw = torch.stack([part[1] for part in parts])
        db = torch.stack([part[2] for part in parts]) if ctx.biased else None
        return dx, dw, db, None, None, None


_CALLS: Mapping[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.GroupNorm: _norm,
    nn.LayerNorm: _norm,
    nn.Conv2d: _convolution,
}
