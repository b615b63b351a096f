"""Orthonormal bases of layer inputs: Gram matrices, their packing, and the choice of rank by energy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedcl.core.params import Params


def residual(x: Tensor, basis: Tensor | None) -> Tensor:
    """Returns the part of rows `x` (n, d) that is orthogonal to the columns of `basis` (d, k)."""
    return x if basis is None or basis.shape[1] == 0 else x - (x @ basis) @ basis.T


def pack(symmetric: Tensor) -> Tensor:
    """Returns the d(d+1)/2 entries of the upper triangle of a (d, d) symmetric matrix."""
    d = len(symmetric)
    rows, columns = torch.triu_indices(d, d)
    return symmetric[rows, columns]


def unpack(packed: Tensor) -> Tensor:
    """Returns the (d, d) symmetric matrix whose upper triangle was packed."""
    d = int(((8 * len(packed) + 1) ** 0.5 - 1) / 2)
    out = packed.new_zeros((d, d))
    rows, columns = torch.triu_indices(d, d)
    out[rows, columns] = packed
    out[columns, rows] = packed
    return out


def needed_rank(energies: Tensor, share: float) -> int:
    """Returns the smallest k such that the k largest energies make up at least `share` of their sum.

    Args:
        energies: Squared singular values, descending, at least 0.
        share: Part of the sum that is asked for; at most 0 gives 0.
    """
    total = float(energies.sum())
    if share <= 0 or total <= 0:
        return 0
    reached = torch.cumsum(energies, 0) / total
    # The last sum may fall short of 1 by rounding; all directions are enough for any share.
    return min(int((reached < share - 1e-12).sum()) + 1, len(energies))


def extend(basis: Tensor | None, directions: Tensor) -> Tensor:
    """Returns an orthonormal basis of the old columns and the new directions, both (d, ...), in float64."""
    directions = directions.double()
    if basis is None or basis.shape[1] == 0:
        return torch.linalg.qr(directions).Q
    # Twice is enough (Kahan, Parlett): one projection leaves rounding errors along the old columns.
    for _ in range(2):
        directions = directions - basis @ (basis.T @ directions)
    room = basis.shape[0] - basis.shape[1]
    fresh = torch.linalg.qr(directions[:, :room]).Q
    return torch.cat([basis, fresh], dim=1)


def project_out(change: Tensor, basis: Tensor | None) -> Tensor:
    """Returns a weight's change without its part along the basis: `C (I - U U^T)`, C seen as (out, d), in float64."""
    if basis is None or basis.shape[1] == 0:
        return change
    flat = change.double().flatten(1)
    flat = flat - (flat @ basis) @ basis.T
    return flat.reshape(change.shape)


def project_layers(step: Params, basis: Mapping[str, Tensor], biases: bool) -> dict[str, Tensor]:
    """Returns a model's step with every layer of `basis` projected (`project_out`).

    Args:
        step: Step by name of the parameter.
        basis: (d, k) basis by name of the weight; with `biases`, (d + 1, k) for a layer that has a bias.
        biases: Whether a layer's bias counts as the weight of a constant input.
    """
    projected = dict(step)
    for name, columns in basis.items():
        bias = name.removesuffix("weight") + "bias"
        if biases and bias in step:
            flat = torch.cat([step[name].double().flatten(1), step[bias].double()[:, None]], dim=1)
            flat = project_out(flat, columns)
            projected[name], projected[bias] = flat[:, :-1].reshape(step[name].shape), flat[:, -1]
        else:
            projected[name] = project_out(step[name], columns)
    return projected
