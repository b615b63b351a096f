"""Audits beside public programs' definitions, on fixed scores, the slow way, to 1e-6 (T11).

`jax_privacy.auditing` and `one_shot_epe` of google-research/federated cannot be installed beside
this package. What they compute is written down here anew from their papers, in exact sums of 50
digits, bisection and plain integrals, without SciPy: Steinke et al. (arXiv 2305.08846), Mahloujifar
et al. (2410.22235, algorithm 3), Jagielski et al. with Clopper and Pearson's bounds, Nasr et al.
(2302.07956) and Andrew et al. (2302.03098). Thresholds differ by design: `jax_privacy` takes all of
them and shares the level among all, we take ranks that are fixed beforehand; the slow way here
takes ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, getcontext
from itertools import pairwise
from statistics import NormalDist, fmean, stdev

import numpy as np
import pytest

from fedcl.auditing.canaries import (
    Guesses,
    estimated_epsilon,
    gaussian_one_run_bound,
    guessed,
    one_run_bound,
)
from fedcl.auditing.leakage import auc
from fedcl.auditing.thresholds import clopper_pearson_bound, gdp_bound

getcontext().prec = 50
NORMAL = NormalDist()
DELTA, LEVEL = 1e-5, 0.05


def even(count: int, mean: float = 0.0, spread: float = 1.0) -> list[float]:
    """Returns scores at even quantiles of a normal law."""
    return [NormalDist(mean, spread).inv_cdf((k + 0.5) / count) for k in range(count)]


# Scores of canaries included and left out: apart, hardly apart, of another spread, tied.
VECTORS = {
    "apart": (even(240, 2.5), even(260)),
    "hardly": (even(150, 0.8), even(150)),
    "wider": (even(200, 1.5, 1.6), even(200)),
    "tied": ([round(x, 1) for x in even(120, 2.0)], [round(x, 1) for x in even(140)]),
}


def least(rejects: Callable[[float], bool], high: float = 64.0) -> float:
    """Returns where a claim ceases to be rejected, by bisection; 0 if it never is."""
    low = 0.0
    if not rejects(low):
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low


def tail(right: int, made: int, rate: Decimal) -> Decimal:
    """Returns the probability of so many right guesses or more, term by term."""
    terms = (math.comb(made, k) * rate**k * (1 - rate) ** (made - k) for k in range(right, made))
    return sum(terms, Decimal(0)) + rate**made if right <= made else Decimal(0)


def slow_one_run(guesses: Guesses) -> float:
    def rejects(epsilon: float) -> bool:
        rate = 1 / (1 + Decimal(-epsilon).exp())
        tails = [tail(max(0, guesses.right - i), guesses.made, rate) for i in range(guesses.right)]
        tails.append(Decimal(1))
        slope = max(((tails[i] - tails[0]) / i for i in range(1, len(tails))), default=Decimal(0))
        return tails[0] + 2 * guesses.canaries * Decimal(DELTA) * slope < Decimal(LEVEL)

    return least(rejects)


def mu_of(epsilon: float) -> float:
    """Returns the distance of two unit Gaussians that are just (epsilon, DELTA)-alike."""

    def alike(mu: float) -> bool:
        below = NORMAL.cdf(-mu / 2 - epsilon / mu)
        return NORMAL.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * below < DELTA

    low, high = 1e-9, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if alike(middle) else (low, middle)
    return low


def slow_gaussian_one_run(guesses: Guesses) -> float:
    def rejects(epsilon: float) -> bool:
        mu, made, canaries = mu_of(epsilon), guesses.made, guesses.canaries
        hit, miss = LEVEL * guesses.right / canaries, LEVEL * (made - guesses.right) / canaries
        for i in reversed(range(guesses.right)):
            fair = NORMAL.cdf(NORMAL.inv_cdf(hit) - mu) if hit < 1 else 1.0
            grown = max(miss, fair)
            hit, miss = min(1.0, hit + i / (made - i) * (grown - miss)), grown
        return hit + miss > made / canaries

    return least(rejects, 30.0)


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("half", [8, 25])
def test_one_run_bounds(name: str, half: int) -> None:
    inside, outside = VECTORS[name]
    scores, included = [*inside, *outside], [True] * len(inside) + [False] * len(outside)
    guesses = guessed(scores, included, half, half)
    # Counted by hand: the largest are guessed to be in, the smallest out; ties are wrong guesses.
    order = sorted(zip(scores, included, strict=True), key=lambda pair: (-pair[0], pair[1]))
    right = sum(was for _, was in order[:half])
    back = sorted(order[half:], key=lambda pair: (pair[0], not pair[1]))
    assert guesses == Guesses(len(scores), 2 * half, right + sum(not w for _, w in back[:half]))
    assert one_run_bound(guesses, DELTA) == pytest.approx(slow_one_run(guesses), abs=1e-6)
    slow = slow_gaussian_one_run(guesses)
    assert gaussian_one_run_bound(guesses, DELTA) == pytest.approx(slow, abs=1e-6)
    if name == "apart":
        assert 0 < one_run_bound(guesses, DELTA) < slow


def slow_upper(successes: int, trials: int, level: float) -> float:
    """Returns the rate at which so few successes have just the probability `level`."""
    if successes >= trials:
        return 1.0
    low, high = Decimal(0), Decimal(1)
    for _ in range(60):
        middle = (low + high) / 2
        likely = 1 - tail(successes + 1, trials, middle) > Decimal(level)
        low, high = (middle, high) if likely else (low, middle)
    return float(low)


def slow_rates(inside: list[float], outside: list[float]) -> list[tuple[float, float]]:
    """Returns bounds on the false positives and negatives at ranks in geometric steps."""
    count = len(outside)
    steps = [round((count / 2) ** (k / 11)) for k in range(12)]
    ranks = sorted({*steps, *(count + 1 - step for step in steps)})
    level, falling = LEVEL / (2 * len(ranks)), sorted(outside, reverse=True)
    found = []
    for rank in ranks:
        missed = sum(score <= falling[rank - 1] for score in inside)
        positive = slow_upper(rank - 1, count, level)
        found.append((positive, slow_upper(missed, len(inside), level)))
    return found


@pytest.mark.parametrize("name", VECTORS)
def test_bounds_by_thresholds(name: str) -> None:
    inside, outside = VECTORS[name]
    rates = slow_rates(inside, outside)
    ratios = [(1 - DELTA - a) / b for pair in rates for a, b in (pair, pair[::-1])]
    wanted = max(0.0, *(math.log(ratio) for ratio in ratios if ratio > 0))
    assert clopper_pearson_bound(inside, outside, DELTA) == pytest.approx(wanted, abs=1e-6)
    mus = [-NORMAL.inv_cdf(a) - NORMAL.inv_cdf(b) for a, b in rates if max(a, b) < 1 and a + b < 1]
    mu = max(mus, default=0.0)
    slow = least(lambda epsilon: mu_of(epsilon) < mu) if mu else 0.0
    assert gdp_bound(inside, outside, DELTA) == pytest.approx(slow, abs=1e-6)


def slow_two_gaussians(p: NormalDist, q: NormalDist) -> float:
    """Returns the epsilon at which what p has above e^epsilon q, and the reverse, is DELTA."""
    line, step = np.linspace(-14.0, 14.0, 400_001, retstep=True)

    def density(law: NormalDist) -> np.ndarray:
        z = (line - law.mean) / law.stdev
        return np.asarray(np.exp(-z * z / 2) / (law.stdev * math.sqrt(2 * math.pi)))

    one, other = density(p), density(q)

    def rejects(epsilon: float) -> bool:
        pairs = ((one, other), (other, one))
        excess = (np.maximum(0.0, a - math.exp(epsilon) * b).sum() * step for a, b in pairs)
        return max(map(float, excess)) > DELTA

    return least(rejects)


@pytest.mark.parametrize("name", VECTORS)
def test_estimates_are_those_of_two_fitted_gaussians(name: str) -> None:
    """Where the spreads cannot be told apart ours are one, pooled; both are told otherwise."""
    inside, outside = VECTORS[name]
    spreads = [stdev(inside), stdev(outside)]
    if name != "wider":
        squares = [(len(part) - 1) * stdev(part) ** 2 for part in (inside, outside)]
        spreads = [math.sqrt(sum(squares) / (len(inside) + len(outside) - 2))] * 2
    laws = [
        NormalDist(fmean(part), spread)
        for part, spread in zip((inside, outside), spreads, strict=True)
    ]
    wanted = slow_two_gaussians(*laws)
    assert estimated_epsilon(inside, outside, DELTA) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", VECTORS)
def test_the_area_is_that_of_the_trapezoids_between_thresholds(name: str) -> None:
    inside, outside = VECTORS[name]
    cuts = [-math.inf, *sorted({*inside, *outside}), math.inf]
    above = [
        [sum(score >= cut for score in part) / len(part) for part in (outside, inside)]
        for cut in cuts
    ]
    area = sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(above))
    flags = [True] * len(inside) + [False] * len(outside)
    assert auc([*inside, *outside], flags) == pytest.approx(area, abs=1e-6)
