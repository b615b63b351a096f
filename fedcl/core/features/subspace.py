"""Orthonormal bases of layer inputs: Gram matrices, their packing, the choice of rank by energy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

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
    """Returns a weight's change without its part along the basis, in the type of the basis.

    That is `C (I - U U^T)`, with the change C seen as (out, d).
    """
    if basis is None or basis.shape[1] == 0:
        return change
    flat = change.to(basis.dtype).flatten(1)
    flat = flat - (flat @ basis) @ basis.T
    return flat.reshape(change.shape)


def agreeing_room(
    gradient: Tensor, old: Sequence[tuple[Tensor, Tensor]], overlap: float, agreement: float
) -> Tensor:
    """Returns an orthonormal basis of what a new task may change of old tasks' spaces of a layer.

    A space is open where more than a share `overlap` of the new gradient lies in it, and the new
    gradient's cosine with the old one is at least `agreement`; all others are closed. What may be
    changed is what of the open ones is orthogonal to the closed ones.

    Args:
        gradient: (out, d) gradient of the new task.
        old: For each old task a basis (d, k) of its inputs, and its gradient (out, d).
        overlap: Share of norms.
        agreement: Cosine, of the two as vectors.
    """
    size = gradient.norm()
    entered, closed = [gradient.new_zeros((gradient.shape[1], 0))], None
    for space, own in old:
        # Rounding must not make a projection longer than what was projected.
        strong = (gradient @ space).norm() > (overlap + 1e-9) * size
        if strong and (gradient * own).sum() >= agreement * size * own.norm():
            entered.append(space)
        else:
            closed = extend(closed, space)
    taken = 0 if closed is None else closed.shape[1]
    return extend(closed, torch.cat(entered, dim=1))[:, taken:]


def layer_matrix(params: Params, name: str, biases: bool) -> Tensor:
    """Returns a layer's weight as an (out, d) matrix, with `biases` its bias as the last column.

    Args:
        params: Parameters, changes or gradients by name.
        name: Name of the weight.
        biases: Whether the layer's bias, if it has one, counts as the weight of a constant input.
    """
    weight = params[name].flatten(1)
    bias = params.get(bias_of(name)) if biases else None
    return weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)


def bias_of(name: str) -> str:
    """Returns the name of the bias that belongs to a weight."""
    return name.removesuffix("weight") + "bias"


def map_layers(
    params: Params, names: Iterable[str], biases: bool, change: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Returns parameters with `change(name, matrix)` in place of each named layer's matrix.

    Args:
        params: Parameters, changes or gradients by name; the others stay as they are.
        names: Names of the weights.
        biases: As in `layer_matrix`.
        change: Makes one (out, d) matrix of another.
    """
    changed = dict(params)
    for name in names:
        matrix = change(name, layer_matrix(params, name, biases))
        if biases and bias_of(name) in params:
            matrix, changed[bias_of(name)] = matrix[:, :-1], matrix[:, -1]
        changed[name] = matrix.reshape(params[name].shape)
    return changed


def project_layers(step: Params, basis: Mapping[str, Tensor], biases: bool) -> dict[str, Tensor]:
    """Returns a model's step with every layer of `basis` projected (`project_out`).

    Args:
        step: Step by name of the parameter.
        basis: (d, k) basis by name of the weight; with `biases`, (d + 1, k) for a layer that has a
            bias.
        biases: Whether a layer's bias counts as the weight of a constant input.
    """
    return map_layers(step, basis, biases, lambda name, matrix: project_out(matrix, basis[name]))
