"""Weights as matrices: their strongest singular directions, and changes that keep off these."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedcl.core.params import Params
from fedcl.core.subspace import needed_rank


def as_matrix(params: Params, name: str, biases: bool) -> Tensor:
    """Returns a layer's weight as an (out, d) float64 matrix.

    Args:
        params: A model's parameters, or changes of them.
        name: Name of the weight: (out, ...), a convolution's kernels being flattened.
        biases: Whether the layer's bias, if it has one, is one more column.
    """
    weight = params[name].double().flatten(1)
    bias = params.get(bias_of(name)) if biases else None
    return weight if bias is None else torch.cat([weight, bias.double()[:, None]], dim=1)


def bias_of(name: str) -> str:
    """Returns the name of the bias that goes with a weight."""
    return name.removesuffix("weight") + "bias"


def strongest(params: Params, name: str, share: float, biases: bool) -> tuple[Tensor, Tensor]:
    """Returns the singular directions that hold a share of a weight's energy.

    They are the fewest whose squared singular values make up `share` of the sum of all.

    Args:
        params: A model's parameters.
        name: Name of the weight.
        share: In [0, 1].
        biases: As in `as_matrix`.

    Returns:
        (out, k) and (d, k) float64 orthonormal columns, by falling singular value.
    """
    u, s, vh = torch.linalg.svd(as_matrix(params, name, biases), full_matrices=False)
    k = needed_rank(s.square(), share)
    # Copies, since a view would keep all directions; row by row, as they come from a checkpoint.
    rows = torch.contiguous_format
    return u[:, :k].clone(memory_format=rows), vh[:k].T.clone(memory_format=rows)


def project_sides(
    step: Params, left: Mapping[str, Tensor], right: Mapping[str, Tensor], biases: bool
) -> dict[str, Tensor]:
    """Returns a model's step E as (I - L L^T) E (I - R R^T), layer by layer, in float64.

    Layers that have no directions stay as they are, to the bit.

    Args:
        step: Step by name of the parameter.
        left: (out, k) orthonormal columns L by name of the weight.
        right: (d, k) orthonormal columns R by name of the weight.
        biases: As in `as_matrix`.
    """
    projected = dict(step)
    for name, outputs in left.items():
        inputs = right[name]
        if not outputs.shape[1]:
            continue
        flat = as_matrix(step, name, biases)
        flat = flat - outputs @ (outputs.T @ flat)
        flat = flat - (flat @ inputs) @ inputs.T
        if biases and bias_of(name) in step:
            projected[bias_of(name)] = flat[:, -1]
            flat = flat[:, :-1]
        projected[name] = flat.reshape(step[name].shape)
    return projected
