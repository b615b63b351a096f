"""Orthonormal bases of layer inputs: Gram matrices, their packing, the choice of rank by energy."""

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
    """Returns the smallest k whose k largest energies make up at least `share` of their sum.

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
    """Returns an orthonormal basis of the old columns and of what new directions add to them.

    Args:
        basis: (d, k) orthonormal columns, which stay the first ones; or None.
        directions: (d, m); those that lie in the span of the others add no column.

    Returns:
        (d, k + r) float64, r at most m and d - k.
    """
    fresh = directions.double()
    old = fresh[:, :0] if basis is None else basis.double()
    least = 1e-10 * float(fresh.norm())
    # Twice is enough (Kahan, Parlett): what is left of a direction that lies almost in the span of
    # the old columns is mostly rounding errors along them, which the second pass takes away.
    for _ in range(2):
        fresh = _orthonormal(fresh - old @ (old.T @ fresh), least)
        least = 0.5
    return torch.cat([old, fresh], dim=1)


def _orthonormal(columns: Tensor, least: float) -> Tensor:
    """Returns an orthonormal basis of columns (d, m), without directions smaller than `least`."""
    q: Tensor
    q, r = torch.linalg.qr(columns)
    # QR is several times faster, but does not say what to leave out when columns are dependent.
    if columns.shape[1] <= columns.shape[0] and bool((r.diagonal().abs() > least).all()):
        return q
    vectors, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    kept: Tensor = vectors[:, sizes > least]
    return kept


def project_out(change: Tensor, basis: Tensor | None) -> Tensor:
    """Returns a weight's change without its part along the basis, in float64.

    That is `C (I - U U^T)`, with the change C seen as (out, d).
    """
    if basis is None or basis.shape[1] == 0:
        return change
    flat = change.double().flatten(1)
    flat = flat - (flat @ basis) @ basis.T
    return flat.reshape(change.shape)


def project_layers(step: Params, basis: Mapping[str, Tensor], biases: bool) -> dict[str, Tensor]:
    """Returns a model's step with every layer of `basis` projected (`project_out`).

    Args:
        step: Step by name of the parameter.
        basis: (d, k) basis by name of the weight; with `biases`, (d + 1, k) for a layer that has a
            bias.
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
