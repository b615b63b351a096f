"""What noise that protects clients leaves to see in sums: which directions, energies and numbers.

The standard deviation of the noise is public, so using it is post-processing and costs no privacy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedcl.core.features.subspace import needed_rank, unpack


def noise_edge(noise: float, d: int) -> float:
    """Returns what eigenvalues of noise alone do not exceed: 2 noise sqrt(d) in the limit (Wigner).

    Args:
        noise: Standard deviation of each packed entry of a symmetric matrix. They are independent,
            so that, unpacked, all entries on and above the diagonal are, with this deviation.
        d: Side of the matrix.
    """
    return 2.0 * noise * math.sqrt(d)


def above_noise(values: Tensor, noise: float) -> Tensor:
    """Returns what eigenvalues were before noise: 0 for those within its edge.

    A direction of energy v above noise sqrt(d) shows at v + noise^2 d / v, which is beyond the edge
    (Féral and Péché, Communications in Mathematical Physics 272, 2007).

    Args:
        values: (d,) all eigenvalues of a symmetric matrix with noise in its packed entries.
        noise: Standard deviation of each; 0 changes nothing.
    """
    if not noise:
        return values
    edge = noise_edge(noise, len(values))
    found = (values + (values.square() - edge**2).clamp(min=0.0).sqrt()) / 2
    return torch.where(values > edge, found, 0.0)


def cleaned(packed: Tensor, noise: float) -> Tensor:
    """Returns the (d, d) matrix of packed entries, without what may be noise (`above_noise`)."""
    if not noise:
        return unpack(packed)
    values, vectors = torch.linalg.eigh(unpack(packed))
    matrix: Tensor = (vectors * above_noise(values, noise)) @ vectors.T
    return matrix


def above_noise_singular(values: Tensor, noise: float, d: int, columns: int) -> Tensor:
    """Returns the singular values of a (d, columns) matrix, 0 for those that noise alone may give.

    Its largest is noise (sqrt(d) + sqrt(columns)) in the limit (Marchenko and Pastur).
    """
    return values * (values > noise * (d**0.5 + columns**0.5)) if noise else values


def seen_rank(energies: Tensor, rest: float, inputs: float, energy: float) -> int:
    """Returns how many directions above the noise a basis needs to hold a share of inputs' energy.

    Args:
        energies: Of all directions outside the basis so far, descending, 0 within the noise.
        rest: The noisy sum of all of them, at least what is seen; 0 where it is not known.
        inputs: The noisy energy of whole inputs, at least the former; 0 where it is not known.
        energy: The share.
    """
    seen = float(energies.sum())
    if seen <= 0:
        return 0
    rest = max(rest, seen)
    wanted = rest - (1.0 - energy) * max(inputs, rest)
    return min(needed_rank(energies, wanted / seen), int((energies > 0).sum()))


def significant(values: Tensor, noise: float) -> Tensor:
    """Returns numbers that are at least 0 in truth: 0 for those below three deviations of noise."""
    return values * (values > 3.0 * noise) if noise else values
