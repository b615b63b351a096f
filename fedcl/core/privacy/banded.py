"""Correlated noise over rounds: a banded matrix mechanism that needs no random sampling.

What is released in round t is the sum of round t plus noise x_t with C x = z, z independent and C
lower triangular, Toeplitz and banded: the noise of a running total is then far smaller than that of
independent noise, as long as a client waits for as many rounds as C has bands. Choquette-Choo et
al., (Amplified) banded matrix factorization, NeurIPS 2023 (arXiv 2306.08153); the coefficients are
those of the square root of the matrix of ones (Fichtenberger, Henzinger and Upadhyay, Constant
matters, ICML 2023, arXiv 2202.11205).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor


def coefficients(bands: int) -> tuple[float, ...]:
    """Returns c_0 = 1, c_j = c_(j-1) (2 j - 1) / (2 j): the first column of C, of `bands` numbers.

    Raises:
        ValueError: There is no band.
    """
    if bands < 1:
        raise ValueError(f"a matrix has at least one band, not {bands}")
    found = [1.0]
    for j in range(1, bands):
        found.append(found[-1] * (2 * j - 1) / (2 * j))
    return tuple(found)


def squared_norms(column: Sequence[float], rounds: int) -> list[float]:
    """Returns the squared norms of C's columns; the last ones are cut off by the end.

    Args:
        column: See `coefficients`.
        rounds: Rounds in all.
    """
    return [math.fsum(c * c for c in column[: max(0, rounds - start)]) for start in range(rounds)]


def sensitivity(column: Sequence[float], rounds: int, separation: int) -> float:
    """Returns the norm of C times a client's contributions of norm at most 1, in the worst case.

    The client takes part as often as it can, with at least `separation` rounds from one time to the
    next. As its columns do not overlap, their squared norms add up; the best choice of rounds is
    found by dynamic programming.

    Args:
        column: See `coefficients`.
        rounds: Rounds in all.
        separation: Least difference of the numbers of two rounds with the same client.

    Raises:
        ValueError: The separation is smaller than the number of bands, so that columns overlap.
    """
    if separation < len(column):
        raise ValueError(
            f"{len(column)} bands need {len(column)} rounds from one turn of a client to its next, "
            f"not {separation}: take fewer bands or smaller cohorts"
        )
    norms = squared_norms(column, rounds)
    best = [0.0] * (rounds + separation)
    for start in reversed(range(rounds)):
        best[start] = max(best[start + 1], norms[start] + best[start + separation])
    return math.sqrt(best[0])


def correlated(column: Sequence[float], number: int, drawn: Callable[[int], Tensor]) -> Tensor:
    """Returns x_t of C x = z: the noise of a round, from the independent noise of all up to it.

    x_t = sum_k d_k z_(t-k), where d is the first column of the inverse of C, which has no end: the
    z of earlier rounds are drawn again from their keys, so that no state is kept and a resumed run
    repeats its noise.

    Args:
        column: See `coefficients`.
        number: Number t of the round.
        drawn: `drawn(s)` -> z_s, the independent noise of round s.
    """
    total = drawn(number)
    for back, factor in enumerate(inverse(column, number + 1)[1:], start=1):
        total = total + factor * drawn(number - back)
    return total


def inverse(column: Sequence[float], rounds: int) -> list[float]:
    """Returns the first column of C's inverse: d_0 = 1, d_k = - sum_j c_j d_(k-j), as c_0 = 1."""
    found = [1.0]
    for k in range(1, rounds):
        found.append(
            -math.fsum(column[j] * found[k - j] for j in range(1, min(k, len(column) - 1) + 1))
        )
    return found


def separation_of(members: int, size: int) -> int:
    """Returns the rounds from one turn of a client to its next, at least, in round-robin cohorts.

    A client at place p of `members` is asked when p is among the next `size` places; two such
    rounds are at least floor(members / size) apart.

    Args:
        members: Clients who take turns.
        size: Clients of a cohort.
    """
    return max(1, members // size)
