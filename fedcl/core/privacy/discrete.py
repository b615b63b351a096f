"""Discrete noise for secure sums: whole numbers, rounded and noised where the clients are.

A secure sum adds whole numbers modulo a power of two, so noise of real numbers is not covered by
the Gaussian proof there. Each client clips, scales, rounds at random and adds its share of noise;
the sum of the shares is what protects, of those clients whose shares arrive. Kairouz, Liu and
Steinke, The distributed discrete Gaussian mechanism for federated learning with secure aggregation,
ICML 2021 (arXiv 2102.06387); Agarwal, Kairouz and Liu, The Skellam mechanism for differentially
private federated learning, NeurIPS 2021 (arXiv 2110.04995).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

LARGEST = 2**52  # whole numbers that a double still holds, with room for the noise


def discrete_gaussian(generator: np.random.Generator, size: int, sigma: float) -> Integers:
    """Returns draws of the discrete Gaussian: P(k) is proportional to exp(-k² / (2 sigma²)).

    By rejection from the discrete Laplace distribution (Canonne, Kamath and Steinke, The discrete
    Gaussian for differential privacy, NeurIPS 2020, algorithm 3). Its coins are thrown with doubles
    of 53 bits, so that probabilities are right to about 1e-16, not exactly.

    Args:
        generator: A keyed generator; see `fedcl.core.privacy.noise.generator`.
        size: How many.
        sigma: Its parameter, above 0; nearly its standard deviation from 1 on.

    Raises:
        ValueError: sigma is not above 0, or too large for whole numbers of 52 bits.
    """
    if not (0 < sigma < LARGEST / 2**8):
        raise ValueError(f"sigma of discrete noise lies in (0, {LARGEST // 2**8}), not {sigma}")
    scale = math.floor(sigma) + 1
    found = np.zeros(0, dtype=np.int64)
    while len(found) < size:
        # Two thirds or so are accepted.
        drawn = _laplace(generator, 2 * (size - len(found)) + 16, scale)
        excess = (np.abs(drawn) - sigma**2 / scale) ** 2 / (2 * sigma**2)
        found = np.concatenate([found, drawn[generator.random(len(drawn)) < np.exp(-excess)]])
    return found[:size]


def _laplace(generator: np.random.Generator, size: int, scale: int) -> Integers:
    """Returns draws with P(k) proportional to exp(-|k| / scale); fewer than asked for."""
    magnitude = generator.geometric(-math.expm1(-1.0 / scale), size).astype(np.int64) - 1
    negative = generator.random(size) < 0.5
    # Zero would else come twice as often.
    kept = ~(negative & (magnitude == 0))
    found: Integers = np.where(negative, -magnitude, magnitude)[kept]
    return found


def skellam(generator: np.random.Generator, size: int, variance: float) -> Integers:
    """Returns draws of the Skellam distribution: the difference of two Poisson variables.

    Sums of its draws are draws of it, of the summed variance: no share is lost in adding.

    Args:
        generator: A keyed generator.
        size: How many.
        variance: Above 0.

    Raises:
        ValueError: The variance is out of range.
    """
    if not 0 < variance < LARGEST:
        raise ValueError(f"the variance of Skellam noise lies in (0, {LARGEST}), not {variance}")
    first = generator.poisson(variance / 2, size)
    return (first - generator.poisson(variance / 2, size)).astype(np.int64)


def inflated(norm: float, dimension: int, beta: float = math.exp(-0.5)) -> float:
    """Returns the largest norm that conditional rounding lets a scaled vector have.

    Args:
        norm: Norm before rounding, in units of whole numbers.
        dimension: Numbers in the vector.
        beta: Share of roundings that may be drawn anew.
    """
    root = math.sqrt(dimension)
    likely = norm**2 + dimension / 4 + math.sqrt(2 * math.log(1 / beta)) * (norm + root / 2)
    return min(norm + root, math.sqrt(likely))


def rounded(generator: np.random.Generator, values: Floats, most: float) -> Integers:
    """Returns values rounded at random to a neighbour, without bias but for the bound on the norm.

    A rounding whose norm is above `most` is drawn anew, up to a hundred times; then each value is
    rounded towards zero, which is always within the bound.

    Args:
        generator: A keyed generator.
        values: (n,) numbers of less than 52 bits.
        most: The largest norm; see `inflated`.
    """
    below = np.floor(values)
    for _ in range(100):
        up = generator.random(len(values)) < values - below
        found = (below + up).astype(np.int64)
        if float(np.square(found, dtype=np.float64).sum()) <= most**2:
            return found
    return np.trunc(values).astype(np.int64)


def wrapped(values: Integers, bits: int) -> Integers:
    """Returns whole numbers modulo 2**bits, as the representatives around zero.

    Args:
        values: What clients send, or its sum.
        bits: From 2 to 62.
    """
    half = 1 << (bits - 1)
    return ((values + half) & ((1 << bits) - 1)) - half


def gaussian_divergences(
    orders: Sequence[int], norm: float, dimension: int, sigma: float, clients: int
) -> list[float]:
    """Returns Rényi divergences of a sum with discrete Gaussian shares of all clients.

    The sum of discrete Gaussians is none, and differs from one by tau (Kairouz et al., theorem 1).

    Args:
        orders: Orders above 1.
        norm: Largest Euclidean norm of a client's whole numbers.
        dimension: Numbers in a vector.
        sigma: Parameter of each client's share.
        clients: Shares that arrive at least.
    """
    total = math.sqrt(clients) * sigma
    two, one = norm / total, _sum_norm(norm, dimension) / total
    tau = 10 * math.fsum(
        math.exp(-2 * (math.pi * sigma) ** 2 * k / (k + 1)) for k in range(1, clients)
    )
    least = min(
        two**2 + 2 * tau * dimension,
        two**2 + 2 * one * tau + tau**2 * dimension,
        (two + math.sqrt(dimension) * tau) ** 2,
    )
    # The first form is half an order squared plus an order-free term, at most an order's worth.
    return [order * least / 2 for order in orders]


def skellam_divergences(
    orders: Sequence[int], norm: float, dimension: int, variance: float
) -> list[float]:
    """Returns Rényi divergences of a sum with Skellam noise of this variance in all.

    Args:
        orders: Whole orders above 1.
        norm: Largest Euclidean norm of a client's whole numbers.
        dimension: Numbers in a vector.
        variance: Of the noise in the sum: of all shares that arrive at least.
    """
    one = _sum_norm(norm, dimension)
    found = []
    for order in orders:
        close = ((2 * order - 1) * norm**2 + 6 * one) / (4 * variance**2)
        found.append(order * norm**2 / (2 * variance) + min(close, 3 * one / (2 * variance)))
    return found


def _sum_norm(norm: float, dimension: int) -> float:
    """Returns the largest sum of absolute values: whole numbers are at most their squares."""
    return norm * min(math.sqrt(dimension), norm)
