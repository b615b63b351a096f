"""Layer by layer: how large each example's gradient is, and the sum of all with a factor each.

Of a layer are known its inputs and the gradients at its outputs, both with the examples first. For
sequences and convolutions the squared norm is that of a product of two matrices, computed either
from their Gram matrices or from the product itself, whichever is smaller (Bu, Mao and Xu, Scalable
and efficient training of large convolutional neural networks with differential privacy, NeurIPS
2022, arXiv 2205.10683). Squares are added up in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KNOWN = (nn.Linear, nn.Conv2d, nn.Embedding, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Part:
    """A layer's part in the gradients of single examples.

    Attributes:
        squares: (n,) float64 squared norms over the parameters asked for.
        weighted: Returns the sums of the gradients times the examples' factors (n,) for each of so
            many groups of neighbours, all of one size: (groups, ...) tensors by the parameter's
            name in the layer. An example of factor 0 adds nothing, whatever it holds.
    """

    squares: Tensor
    weighted: Callable[[Tensor, int], dict[str, Tensor]]


def part_of(layer: nn.Module, names: frozenset[str], inputs: Tensor, signals: Tensor) -> Part:
    """Returns a layer's part in the gradients of single examples.

    Args:
        layer: One of `KNOWN`.
        names: The parameters asked for: `weight`, `bias` or both.
        inputs: (n, ...) inputs of the layer.
        signals: (n, ...) gradients of each example's loss at the layer's outputs.

    Raises:
        TypeError: The layer is of another kind.
    """
    if isinstance(layer, nn.Embedding):
        return _embedding(layer, inputs.flatten(1), signals.flatten(1, -2))
    if isinstance(layer, nn.Linear) and signals.ndim == 2:
        return _rows(names, inputs, signals)
    if isinstance(layer, nn.Linear):
        a, d = inputs.flatten(1, -2), signals.flatten(1, -2)
        return _products(layer, names, a[:, None].mT, d[:, None].mT)
    if isinstance(layer, nn.Conv2d):
        d = signals.flatten(2).unflatten(1, (layer.groups, -1))
        return _products(layer, names, _columns(layer, inputs), d)
    if isinstance(layer, nn.GroupNorm):
        normal = F.group_norm(inputs, layer.num_groups, eps=layer.eps)
        return _scales(names, (normal * signals).flatten(2).sum(2), signals.flatten(2).sum(2))
    if isinstance(layer, nn.LayerNorm):
        normal = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        kept = len(layer.normalized_shape)
        own = (len(inputs), -1, *inputs.shape[inputs.ndim - kept :])
        return _scales(names, (normal * signals).reshape(own).sum(1), signals.reshape(own).sum(1))
    raise TypeError(f"no book-keeping for a layer of type {type(layer).__name__}")


def _squares(values: Tensor) -> Tensor:
    """Returns the (n,) float64 sums of squares of (n, ...) values: no float32 overflows there."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1, dtype=torch.float64)
    return norms.square()


def chosen(values: Tensor, factors: Tensor) -> Tensor:
    """Returns (n, ...) values times factors; those of factor 0 are 0, even where they are NaN."""
    own = factors.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
    return torch.where(own > 0, values * own, torch.zeros_like(values))


def _weighed(values: Tensor, factors: Tensor, squares: Tensor) -> Tensor:
    """Returns (n, ...) values times factors, as `chosen` does.

    Args:
        values: Of examples whose squares are finite only where these are.
        factors: (n,) factors.
        squares: (n,).
    """
    if bool(squares.isfinite().all()):  # the usual case: nothing to replace
        return values * factors.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
    return chosen(values, factors)


def _finite(values: Tensor, factors: Tensor, squares: Tensor) -> Tensor:
    """Returns values, with zeros for the examples of factor 0 where some are not finite."""
    if bool(squares.isfinite().all()):
        return values
    return chosen(values, (factors > 0).to(factors.dtype))


def _split(values: Tensor, groups: int) -> Tensor:
    """Returns (n, ...) values as (groups, n / groups, ...)."""
    return values.view(groups, len(values) // groups, *values.shape[1:])


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Returns products of matrices, of one pair as that of two matrices, which is faster."""
    return (a[0] @ b[0])[None] if len(a) == 1 else a @ b


def _rows(names: frozenset[str], a: Tensor, d: Tensor) -> Part:
    """A linear layer that sees one row of each example: the norm is a product of two norms."""
    sizes = _squares(d)
    squares = torch.zeros_like(sizes)
    if "weight" in names:
        squares = squares + sizes * _squares(a)
    if "bias" in names:
        squares = squares + sizes

    def weighted(factors: Tensor, groups: int) -> dict[str, Tensor]:
        own = _split(_weighed(d, factors, squares), groups)
        inputs = _split(_finite(a, factors, squares), groups)
        return {"weight": _matmul(own.mT, inputs), "bias": own.sum(1)}

    return Part(squares, weighted)


def _products(layer: nn.Module, names: frozenset[str], a: Tensor, d: Tensor) -> Part:
    """A layer whose gradient is a product over places.

    Args:
        layer: Says what shape its weight has.
        names: The parameters asked for.
        a: (n, groups, d, places) inputs.
        d: (n, groups, out, places) signals.
    """
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    shape, places = layer.weight.shape, a.shape[3]
    turned = d.sum(3).flatten(1)  # (n, outputs)
    squares = _squares(turned) if "bias" in names else torch.zeros_like(_squares(turned))
    products = None
    if "weight" in names and 2 * places**2 < a.shape[2] * d.shape[2]:
        # In float64: large terms of either sign may cancel.
        wide_a, wide_d = a.double(), d.double()
        squares = squares + ((wide_a.mT @ wide_a) * (wide_d.mT @ wide_d)).flatten(1).sum(1).clamp(
            min=0.0
        )
    elif "weight" in names:
        products = d @ a.mT  # (n, groups, out, d)
        squares = squares + _squares(products)

    def weighted(factors: Tensor, groups: int) -> dict[str, Tensor]:
        found = {"bias": _split(_weighed(turned, factors, squares), groups).sum(1)}
        if products is not None:
            weight = _split(_weighed(products, factors, squares), groups).sum(1)
        else:
            # (groups of examples, groups of channels, outputs or inputs, examples * places)
            wide = _split(_weighed(d, factors, squares), groups).permute(0, 2, 3, 1, 4).flatten(3)
            inputs = _split(_finite(a, factors, squares), groups).permute(0, 2, 3, 1, 4).flatten(3)
            weight = _matmul(wide, inputs.mT)
        return {**found, "weight": weight.reshape(groups, *shape)}

    return Part(squares, weighted)


def _columns(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Returns the (n, groups, d, places) patches that a convolution multiplies with its weights."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    found: Tensor = F.unfold(
        x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride
    ).unflatten(1, (layer.groups, -1))
    return found


def _embedding(layer: nn.Embedding, ids: Tensor, d: Tensor) -> Part:
    """An embedding: the signals of the same word of an example add up.

    Args:
        layer: The embedding.
        ids: (n, places) words.
        d: (n, places, width) signals.
    """
    if layer.padding_idx is not None:
        d = d * (ids != layer.padding_idx)[:, :, None].to(d.dtype)
    wide = d.double()
    same = (ids[:, :, None] == ids[:, None, :]).to(wide.dtype)
    squares = ((wide @ wide.mT) * same).flatten(1).sum(1).clamp(min=0.0)

    def weighted(factors: Tensor, groups: int) -> dict[str, Tensor]:
        start = d.new_zeros((groups * layer.num_embeddings, layer.embedding_dim))
        first = torch.arange(groups, device=ids.device)[:, None, None] * layer.num_embeddings
        found = start.index_add(
            0, (_split(ids, groups) + first).flatten(), _weighed(d, factors, squares).flatten(0, 1)
        )
        return {"weight": found.view(groups, layer.num_embeddings, layer.embedding_dim)}

    return Part(squares, weighted)


def _scales(names: frozenset[str], scale: Tensor, shift: Tensor) -> Part:
    """A normalisation: (n, ...) gradients of its scale and shift, written out."""
    squares = torch.zeros(len(scale), dtype=torch.float64, device=scale.device)
    for name, value in (("weight", scale), ("bias", shift)):
        if name in names:
            squares = squares + _squares(value)

    def weighted(factors: Tensor, groups: int) -> dict[str, Tensor]:
        return {
            name: _split(chosen(value, factors), groups).sum(1)
            for name, value in (("weight", scale), ("bias", shift))
        }

    return Part(squares, weighted)
