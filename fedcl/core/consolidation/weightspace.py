"""Weights as matrices: their strongest singular directions, and changes that keep off these."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedcl.core.features.subspace import layer_matrix, map_layers, needed_rank
from fedcl.core.params import Params


def strongest(params: Params, name: str, share: float, biases: bool) -> tuple[Tensor, Tensor]:
    """Returns the singular directions that hold a share of a weight's energy.

    They are the fewest whose squared singular values make up `share` of the sum of all.

    Args:
        params: A model's parameters.
        name: Name of the weight.
        share: In [0, 1].
        biases: As in `layer_matrix`.

    Returns:
        (out, k) and (d, k) float64 orthonormal columns, by falling singular value.
    """
    u, s, vh = torch.linalg.svd(layer_matrix(params, name, biases).double(), full_matrices=False)
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
        biases: As in `layer_matrix`.
    """

    def keep_off(name: str, matrix: Tensor) -> Tensor:
        outputs, inputs = left[name], right[name]
        flat = matrix.double()
        flat = flat - outputs @ (outputs.T @ flat)
        return flat - (flat @ inputs) @ inputs.T

    frozen = [name for name, outputs in left.items() if outputs.shape[1]]
    return map_layers(step, frozen, biases, keep_off)
