"""What sums over examples give away: sketches by random matrices, and Gram matrices.

A sketch A U of examples, the columns of A, by a random matrix U hides them as a crowded room hides
a voice: independent component analysis tells the columns apart, since independent uniform
coefficients look least like Gaussian noise where they are not mixed. Their span is in the open
whatever the random matrix, so that whoever has a record knows whether it was among them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcl.auditing.leakage import auc

Array = NDArray[np.float64]
POWERS = (3, 5, 9)  # slopes of the contrasts, one after the other


def unmixed(
    sketch: ArrayLike, number: int, seed: int, starts: int = 3, iterations: int = 200
) -> Array:
    """Returns the (number, d) examples of a sketch `A U`, U uniform in [-1, 1], in any order.

    FastICA of all components at once (Hyvärinen and Oja, Independent component analysis, 2000), its
    contrast the fourth moment first, then higher ones, which see the ends of uniform coefficients
    more sharply: two decibels. Then scaled so that each row of U reaches 1, and signed so that the
    example's numbers add up to more than 0.

    Args:
        sketch: (d, k) with k much larger than the number of examples.
        number: How many examples there are, at most d and k.
        seed: Decides where to start.
        starts: How often to start; the result that is farthest from Gaussian counts.
        iterations: Of each start and each moment, at most.
    """
    given = np.asarray(sketch, dtype=np.float64)
    if given.ndim != 2 or not 1 <= number <= min(given.shape):
        raise ValueError(f"{given.shape} is no sketch of {number} examples")
    samples = given.shape[1]
    # Whitened: rows of length sqrt(k), orthogonal to each other. The mean of U is known to be 0.
    white = np.linalg.svd(given, full_matrices=False)[2][:number] * math.sqrt(samples)
    random, best, farthest = np.random.default_rng(seed), white, -1.0
    for _ in range(starts):
        turn = _orthogonal(random.standard_normal((number, number)))
        for power in POWERS:
            for _ in range(iterations):
                last, parts = turn, turn @ white
                slopes = power * (parts ** (power - 1)).mean(1, keepdims=True)
                turn = _orthogonal((parts**power) @ white.T / samples - slopes * turn)
                if np.abs(np.abs((turn * last).sum(1)) - 1.0).max() < 1e-12:
                    break
        parts = turn @ white
        away = float(np.square((parts**4).mean(1) - 3.0).sum())
        if away > farthest:
            best, farthest = parts, away
    # Of k uniform numbers, the largest is k / (k + 1) on average.
    best = best / np.abs(best).max(1, keepdims=True) * (samples / (samples + 1.0))
    found = given @ np.linalg.pinv(best)
    return np.asarray((found * np.where(found.sum(0) < 0, -1.0, 1.0)).T, dtype=np.float64)


def outside_span(summed: ArrayLike, records: ArrayLike, rank: int | None = None) -> Array:
    """Returns which part of each record lies outside what a matrix spans: 0 for its examples.

    Args:
        summed: (d, k), such as a sketch or a Gram matrix of examples of d numbers.
        records: (n, d), none of them 0.
        rank: How many directions the matrix spans; by default those that rounding errors leave.

    Returns:
        (n,) lengths of what is outside over that of the record, in [0, 1].
    """
    given, rows = np.asarray(summed, dtype=np.float64), np.asarray(records, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(given, full_matrices=False)
    if rank is None:
        rank = int((sizes > sizes.max(initial=0.0) * max(given.shape) * 1e-15).sum())
    basis = left[:, :rank]
    # Twice: once leaves rounding errors of the record's own size.
    rest = rows - (rows @ basis) @ basis.T
    rest -= (rest @ basis) @ basis.T
    return np.asarray(np.linalg.norm(rest, axis=1) / np.linalg.norm(rows, axis=1), dtype=np.float64)


def span_auc(
    summed: ArrayLike, members: ArrayLike, others: ArrayLike, rounding: float = 1e-7
) -> float | None:
    """Returns how well lying in a matrix's span tells members, as the area under the curve.

    None where the span is the whole space, in which everything lies, or nothing is compared.

    Args:
        summed: (d, k), such as a sketch or a Gram matrix of the members.
        members: (n, d) records behind it, some of which may be 0.
        others: (m, d) records that are not.
        rounding: Relative size below which a singular value is taken for rounding.
    """
    given = np.asarray(summed, dtype=np.float64)
    inside, outside = (
        rows[np.linalg.norm(rows, axis=1) > 0]
        for rows in (np.asarray(members, np.float64), np.asarray(others, np.float64))
    )
    sizes = np.linalg.svd(given, compute_uv=False)
    rank = min(len(np.asarray(members)), int((sizes > sizes.max(initial=0.0) * rounding).sum()))
    varied = np.linalg.matrix_rank(np.concatenate([inside, outside])) if len(inside) else 0
    if not len(inside) or not len(outside) or not 0 < rank < varied:
        return None
    rest = np.concatenate([outside_span(given, rows, rank) for rows in (inside, outside)])
    return auc(-rest, np.arange(len(rest)) < len(inside))


def _orthogonal(matrix: Array) -> Array:
    """Returns the orthogonal matrix that is nearest."""
    left, _, right = np.linalg.svd(matrix)
    return np.asarray(left @ right, dtype=np.float64)
