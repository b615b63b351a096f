"""Lower bounds on epsilon from independent scores of canaries, by thresholds on the scores.

They hold where the scores are independent of each other, as those of the Gaussian mechanism are.
Canaries that one training run mixes depend on each other: there, `fedcl.auditing.canaries` has the
bounds that hold. The thresholds are scores of canaries left out, at ranks fixed beforehand: given
such a score, how many canaries included exceed it is binomial, and the probability of a canary left
out to exceed the k-th largest of n such scores has a Beta(k, n + 1 - k) law, which is the law that
Clopper and Pearson's bound for k - 1 of n takes. All bounds hold together by Bonferroni's argument.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtri

from fedcl.auditing.gaussians import gdp_epsilon

THRESHOLDS = 24


@dataclass(frozen=True)
class Rates:
    """Bounds from above on an attack's error rates at some thresholds, valid all together.

    Attributes:
        false_positive: (k,) that a canary left out exceeds the threshold.
        false_negative: (k,) that a canary included does not.
    """

    false_positive: NDArray[np.float64]
    false_negative: NDArray[np.float64]


def upper(successes: ArrayLike, trials: int, level: float) -> NDArray[np.float64]:
    """Returns Clopper and Pearson's one-sided upper bounds on a probability.

    Args:
        successes: (k,) how often something happened.
        trials: Out of how many times.
        level: Probability of a bound to be wrong.
    """
    count = np.asarray(successes, dtype=np.float64)
    found = betaincinv(count + 1.0, np.maximum(trials - count, 1.0), 1.0 - level)
    return np.asarray(np.where(count >= trials, 1.0, found), dtype=np.float64)


def rates(included: ArrayLike, excluded: ArrayLike, confidence: float, number: int) -> Rates:
    """Returns the bounds on both error rates at thresholds of ranks in geometric steps.

    Args:
        included: (a,) scores of canaries that were included.
        excluded: (b,) scores of canaries that were not.
        confidence: Probability with which all bounds hold.
        number: How many thresholds to take at most; not to be chosen by looking at the scores.

    Raises:
        ValueError: One of the two has no score, or a score is NaN.
    """
    inside = np.sort(np.asarray(included, dtype=np.float64))
    outside = np.sort(np.asarray(excluded, dtype=np.float64))[::-1]
    if not inside.size or not outside.size or np.isnan(inside).any() or np.isnan(outside).any():
        raise ValueError("both kinds of canaries need scores, and these must be numbers")
    half = np.geomspace(1, max(1.0, outside.size / 2), max(1, number // 2)).round().astype(int)
    ranks = np.unique(np.concatenate([half, outside.size + 1 - half]))  # 1 is the largest score
    missed = np.searchsorted(inside, outside[ranks - 1], side="right")
    level = (1.0 - confidence) / (2 * len(ranks))
    return Rates(upper(ranks - 1, outside.size, level), upper(missed, inside.size, level))


def clopper_pearson_bound(
    included: ArrayLike,
    excluded: ArrayLike,
    delta: float,
    confidence: float = 0.95,
    number: int = THRESHOLDS,
) -> float:
    """Returns an epsilon that is too small for the scores, 0 if none is.

    Of each threshold, both ways: `log((1 - delta - one rate) / other rate)`.

    Args:
        included: (a,) scores of canaries that were included.
        excluded: (b,) scores of canaries that were not.
        delta: Of the claim.
        confidence: Probability with which a right claim stands.
        number: How many thresholds to take at most; not to be chosen by looking at the scores.
    """
    found = rates(included, excluded, confidence, number)
    pairs = [(found.false_negative, found.false_positive)]
    pairs.append(pairs[0][::-1])
    ratios = [(1.0 - delta - missed) / other for missed, other in pairs]
    return float(np.log(np.maximum(1.0, np.concatenate(ratios))).max())


def gdp_bound(
    included: ArrayLike,
    excluded: ArrayLike,
    delta: float,
    confidence: float = 0.95,
    number: int = THRESHOLDS,
) -> float:
    """Returns an epsilon that is too small for the scores if the mechanism is like a Gaussian one.

    Each threshold bounds the distance of N(mu, 1) from N(0, 1) from below by
    `Phi^-1(1 - one rate) - Phi^-1(other rate)` (Nasr et al., Tight auditing of differentially
    private machine learning, 2023).

    Args:
        included: (a,) scores of canaries that were included.
        excluded: (b,) scores of canaries that were not.
        delta: Of the claim, in (0, 1).
        confidence: Probability with which a right claim stands.
        number: How many thresholds to take at most; not to be chosen by looking at the scores.
    """
    found = rates(included, excluded, confidence, number)
    # Bounds that add up to more than 1 say nothing: no sign of theirs is evidence.
    useful = found.false_positive + found.false_negative < 1.0
    mu = -ndtri(found.false_positive[useful]) - ndtri(found.false_negative[useful])
    return gdp_epsilon(float(np.max(mu, initial=0.0)), delta)
