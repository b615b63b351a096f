"""Lower bounds on epsilon from one run with canaries, and an estimate of it.

A canary is a made-up contribution that a coin includes or leaves out. From scores that are to be
larger for the canaries included an auditor guesses which were. What a mechanism claims bounds how
often such guesses are right, so that too many right ones reject the claim.

The bounds hold for canaries that influence each other, in any single run, as long as the numbers of
guesses are chosen beforehand. They can be no larger than what so few guesses can show: 100 right
ones out of 100 say 3.5 at a confidence of 95 %. The estimate comes without any such guarantee: it
exceeds the truth as often as not, and is to compare with, never to accuse with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, ndtr, ndtri
from scipy.stats import binom

from fedcl.auditing.gaussians import gdp_mu, two_gaussians_epsilon

MOST = 100.0  # no bound is larger: at this epsilon nothing is protected


@dataclass(frozen=True)
class Guesses:
    """How an auditor did.

    Attributes:
        canaries: How many there were, each included by a coin of its own.
        made: How many of them the auditor guessed about.
        right: How many guesses were right.
    """

    canaries: int
    made: int
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.made <= self.canaries:
            raise ValueError(f"{self.right} of {self.made} of {self.canaries} cannot be right")


def guessed(scores: ArrayLike, included: ArrayLike, top: int, bottom: int) -> Guesses:
    """Returns how many guesses are right: the largest scores included, the smallest left out.

    Where scores are equal, the guesses are taken to be the wrong ones.

    Args:
        scores: (m,) one of each canary.
        included: (m,) whether it was.
        top: How many are guessed to be included; not to be chosen by looking at the scores.
        bottom: How many are guessed to be left out.

    Raises:
        ValueError: A score is NaN, or there are fewer canaries than guesses.
    """
    values, were = np.asarray(scores, dtype=np.float64), np.asarray(included, dtype=bool)
    if np.isnan(values).any() or values.shape != were.shape or values.ndim != 1:
        raise ValueError("each canary has one score, a number")
    if min(top, bottom) < 0 or top + bottom > len(values):
        raise ValueError(f"{top} + {bottom} guesses about {len(values)} canaries")
    largest = were[np.lexsort((were, -values))[:top]]
    # A canary at the edge of both ends is guessed about once: there are `top + bottom` at most.
    rest = np.lexsort((were, -values))[top:]
    smallest = were[rest[np.lexsort((~were[rest], values[rest]))[:bottom]]]
    return Guesses(len(values), top + bottom, int(largest.sum() + (~smallest).sum()))


def one_run_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Returns how likely so many right guesses are at most, under (epsilon, delta)-privacy.

    Steinke, Nasr and Jagielski, Privacy auditing with one (1) training run, 2023, theorem 5.2.
    """
    rate = expit(epsilon)
    tail = float(binom.sf(guesses.right - 1, guesses.made, rate))
    fewer = np.arange(1, guesses.right + 1)
    more = binom.sf(guesses.right - 1 - fewer, guesses.made, rate) - tail
    slope = float(np.max(more / fewer, initial=0.0))
    return min(1.0, tail + 2 * guesses.canaries * delta * slope)


def one_run_bound(guesses: Guesses, delta: float, confidence: float = 0.95) -> float:
    """Returns the largest epsilon that the guesses reject, 0 if they reject none.

    Args:
        guesses: Their numbers are chosen beforehand.
        delta: Of the claim.
        confidence: Probability with which a right claim stands.
    """
    level = 1.0 - confidence
    return _largest(lambda epsilon: level - one_run_p_value(guesses, epsilon, delta))


def gaussian_excess(guesses: Guesses, mu: float, level: float) -> float:
    """Returns by how much so many right guesses contradict N(mu, 1) beside N(0, 1).

    Let p(i) be the probability of i right guesses out of r among m canaries. Flipping the coin of
    one canary turns a right guess into a wrong one; with the trade-off curve of two Gaussians, and
    its concavity to average over the canaries, for each c

        sum over i >= c of i p(i) <= m F(sum over i >= c - 1 of (r - i) p(i) / m),
        F(x) = Phi(Phi^-1(x) + mu).

    If v or more guesses are right with a probability of `level`, then the smallest sum of all p(i)
    that satisfies this comes from all of `level` at v, and at each c below from the least p(c) that
    does: moving probability down to c - 1 only makes the conditions below easier to meet. A sum
    above 1 is a contradiction (Mahloujifar, Melis and Chaudhuri, Auditing f-differential privacy in
    one run, 2024, algorithm 3).

    Args:
        guesses: Their numbers are chosen beforehand.
        mu: Distance of the means in standard deviations.
        level: Probability of a false alarm.

    Returns:
        The smallest sum of probabilities less 1; above 0 the claim is rejected.
    """
    made, right, canaries = guesses.made, guesses.right, guesses.canaries
    if not made:
        return -1.0
    correct = level * right / canaries
    wrong = level * (made - right) / canaries
    for i in range(right - 1, -1, -1):
        needed = float(ndtr(ndtri(correct) - mu)) if correct < 1.0 else 1.0
        if needed <= wrong:
            break
        correct, wrong = correct + i / (made - i) * (needed - wrong), needed
        if correct + wrong > made / canaries:
            break
    return (correct + wrong) * canaries / made - 1.0


def gaussian_one_run_bound(guesses: Guesses, delta: float, confidence: float = 0.95) -> float:
    """Returns the largest epsilon that the guesses reject for a mechanism like a Gaussian one.

    Tighter than `one_run_bound`, for mechanisms whose whole trade-off curve is that of N(mu, 1)
    beside N(0, 1), such as rounds of Gaussian noise without sampling. With sampling it is one of
    several curves through the same (epsilon, delta): then take the result for an estimate.
    """
    level = 1.0 - confidence
    return _largest(lambda epsilon: gaussian_excess(guesses, gdp_mu(epsilon, delta), level))


def estimated_epsilon(seen: ArrayLike, unseen: ArrayLike, delta: float) -> float:
    """Returns the epsilon of the two Gaussians that fit the scores of canaries best.

    Andrew et al., One-shot empirical privacy estimation for federated learning, 2024; unlike there,
    the scores of canaries left out take the place of a law in closed form, which is wrong for what
    several rounds add up to. Spreads that three standard errors do not tell apart are taken to be
    one: what a small difference between them says about the tails would outweigh the means.

    Args:
        seen: Scores of the canaries included, at least two.
        unseen: Scores of those left out, at least two.
        delta: In (0, 1).
    """
    (inside, outside) = (np.asarray(scores, dtype=np.float64) for scores in (seen, unseen))
    if min(inside.size, outside.size) < 2:
        raise ValueError("a distribution takes two scores to fit")
    parts = (inside, outside)
    spreads = [float(part.std(ddof=1)) for part in parts]
    degrees = [part.size - 1 for part in parts]
    pooled = math.hypot(
        *(s * math.sqrt(d / sum(degrees)) for s, d in zip(spreads, degrees, strict=True))
    )
    error = math.sqrt(sum(0.5 / d for d in degrees))
    if min(spreads) > 0 and abs(math.log(spreads[0] / spreads[1])) <= 3.0 * error:
        spreads = [pooled, pooled]
    means = [float(part.mean()) for part in parts]
    return two_gaussians_epsilon((means[0], spreads[0]), (means[1], spreads[1]), delta)


def cosines(change: ArrayLike, directions: ArrayLike) -> NDArray[np.float64]:
    """Returns the (m,) cosines of a change, (d,), with the canaries' directions, (m, d).

    They are 0 for a change of length 0.
    """
    line = np.asarray(change, dtype=np.float64)
    rows = np.asarray(directions, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(line)
    return np.asarray(rows @ line / np.where(lengths > 0, lengths, 1.0), dtype=np.float64)


def _largest(rejects: Callable[[float], float]) -> float:
    """Returns the largest epsilon at which a falling function of it is above 0."""
    if rejects(0.0) <= 0:
        return 0.0
    if rejects(MOST) > 0:
        return MOST
    return float(brentq(rejects, 0.0, MOST, xtol=1e-9))
