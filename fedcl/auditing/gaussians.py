"""Privacy of telling two Gaussian distributions apart, as (epsilon, delta)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr

MOST = 1e4  # an epsilon above which it is infinite for all purposes


def gdp_delta(mu: float, epsilon: float) -> float:
    """Returns the delta of N(mu, 1) beside N(0, 1) at an epsilon.

    Dong, Roth and Su, Gaussian differential privacy, 2022, corollary 2.13.

    Args:
        mu: Distance of the means in standard deviations, at least 0.
        epsilon: At least 0.
    """
    if mu <= 0:
        return 0.0
    above = log_ndtr(mu / 2 - epsilon / mu)
    below = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(np.exp(above) - np.exp(min(float(below), float(above))))


def gdp_epsilon(mu: float, delta: float) -> float:
    """Returns the least epsilon at which N(mu, 1) and N(0, 1) are (epsilon, delta)-alike.

    Args:
        mu: Distance of the means in standard deviations.
        delta: In (0, 1).
    """
    _check(delta)
    return _least(lambda epsilon: gdp_delta(mu, epsilon), delta)


def gdp_mu(epsilon: float, delta: float) -> float:
    """Returns the distance at which N(mu, 1) and N(0, 1) are just (epsilon, delta)-alike.

    It is the inverse of `gdp_epsilon`, and 1 over the noise multiplier of one Gaussian mechanism.

    Args:
        epsilon: At least 0.
        delta: In (0, 1).
    """
    _check(delta)
    high = 1.0
    while gdp_delta(high, epsilon) < delta:
        high *= 2.0
    return float(brentq(lambda mu: gdp_delta(mu, epsilon) - delta, 0.0, high, xtol=1e-13))


def two_gaussians_epsilon(
    seen: tuple[float, float], unseen: tuple[float, float], delta: float
) -> float:
    """Returns the least epsilon at which two Gaussians are (epsilon, delta)-alike both ways.

    Args:
        seen: Mean and standard deviation of one.
        unseen: Of the other.
        delta: In (0, 1).

    Raises:
        ValueError: A standard deviation is not above 0.
    """
    _check(delta)
    if not (seen[1] > 0 and unseen[1] > 0):
        raise ValueError("both distributions must have a spread")

    def larger(epsilon: float) -> float:
        return max(_delta(seen, unseen, epsilon), _delta(unseen, seen, epsilon))

    return _least(larger, delta)


def _delta(p: tuple[float, float], q: tuple[float, float], epsilon: float) -> float:
    """Returns `P(A) - exp(epsilon) Q(A)` where A is all x of log p(x) - log q(x) > epsilon."""
    # With x = q's mean + q's deviation * y, the condition is square * y^2 + linear * y + rest > 0.
    far, wide = (p[0] - q[0]) / q[1], p[1] / q[1]
    square = 0.5 - 0.5 / wide**2
    linear = far / wide**2
    rest = -0.5 * (far / wide) ** 2 - math.log(wide) - epsilon
    if square == 0.0:
        if linear == 0.0:
            return max(0.0, -math.expm1(epsilon)) if rest > 0 else 0.0
        edge = -rest / linear
        pieces = [(edge, math.inf)] if linear > 0 else [(-math.inf, edge)]
    else:
        inside = linear**2 - 4 * square * rest
        if inside <= 0:
            pieces = [(-math.inf, math.inf)] if square > 0 else []
        else:
            # The stable form of the roots: no two numbers of nearly the same size are subtracted.
            half = -0.5 * (linear + math.copysign(math.sqrt(inside), linear))
            low, high = sorted((half / square, rest / half))
            outside = [(-math.inf, low), (high, math.inf)]
            pieces = outside if square > 0 else [(low, high)]
    total = 0.0
    for low, high in pieces:
        own = _log_mass((low - far) / wide, (high - far) / wide)
        total += math.exp(own) - math.exp(min(own, epsilon + _log_mass(low, high)))
    return total


def _log_mass(low: float, high: float) -> float:
    """Returns the log-probability of N(0, 1) between two numbers, exact far from 0, too."""
    if low > 0:
        low, high = -high, -low
    above, below = float(log_ndtr(high)), float(log_ndtr(low))
    if above == -math.inf or above <= below:
        return -math.inf
    return above + math.log1p(-math.exp(below - above))


def _least(delta_of: Callable[[float], float], delta: float) -> float:
    """Returns the least epsilon at which a falling function of it is at most delta."""
    if delta_of(0.0) <= delta:
        return 0.0
    high = 1.0
    while delta_of(high) > delta:
        high *= 2.0
        if high > MOST:
            return math.inf
    return float(brentq(lambda epsilon: delta_of(epsilon) - delta, 0.0, high, xtol=1e-12))


def _check(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"a delta lies between 0 and 1, not {delta}")
