"""Gaussians told apart, and bounds on error rates: against quadrature and direct sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from fedcl.auditing.gaussians import (
    gdp_delta,
    gdp_epsilon,
    gdp_mu,
    two_gaussians_epsilon,
)
from fedcl.auditing.thresholds import clopper_pearson_bound, gdp_bound, rates, upper

PAIRS = [((1.0, 1.0), (0.0, 1.0)), ((0.3, 1.4), (0.0, 0.9)), ((0.0, 0.5), (0.2, 1.0))]


def slow_delta(p: tuple[float, float], q: tuple[float, float], epsilon: float) -> float:
    """Sums `max(0, p - e^epsilon q)` over a fine grid."""
    x, step = np.linspace(-30.0, 30.0, 2_000_001, retstep=True)

    def density(law: tuple[float, float]) -> np.ndarray:
        z = (x - law[0]) / law[1]
        return np.asarray(np.exp(-0.5 * z * z) / (law[1] * math.sqrt(2 * math.pi)))

    return float(np.maximum(0.0, density(p) - math.exp(epsilon) * density(q)).sum() * step)


@pytest.mark.parametrize(("p", "q"), PAIRS)
@pytest.mark.parametrize("delta", [0.1, 1e-3])
def test_epsilon_of_two_gaussians_is_that_of_a_sum_over_a_grid(
    p: tuple[float, float], q: tuple[float, float], delta: float
) -> None:
    epsilon = two_gaussians_epsilon(p, q, delta)
    wanted = max(slow_delta(p, q, epsilon), slow_delta(q, p, epsilon))
    assert wanted == pytest.approx(delta, rel=1e-5)
    assert epsilon == pytest.approx(two_gaussians_epsilon(q, p, delta), abs=1e-12)


def test_gaussians_of_one_spread_are_gaussian_differential_privacy() -> None:
    for mu in (0.2, 1.0, 4.0):
        wanted = gdp_epsilon(mu, 1e-5)
        assert two_gaussians_epsilon((3 + 2 * mu, 2.0), (3.0, 2.0), 1e-5) == pytest.approx(wanted)
        assert gdp_mu(wanted, 1e-5) == pytest.approx(mu, abs=1e-9)
        assert gdp_delta(mu, 0.7) == pytest.approx(slow_delta((mu, 1.0), (0.0, 1.0), 0.7), abs=1e-9)
    assert gdp_epsilon(2.0, 1e-5) == pytest.approx(9.99726, abs=1e-5)  # 100 rounds of noise 5
    assert gdp_epsilon(0.0, 1e-5) == 0.0
    assert two_gaussians_epsilon((1.0, 1.0), (1.0, 1.0), 1e-5) == 0.0
    assert two_gaussians_epsilon((1.0, 1e-9), (0.0, 1e-9), 1e-5) == math.inf


def test_bounds_on_a_rate_leave_just_the_level() -> None:
    for successes, trials, level in [(0, 10, 0.05), (3, 10, 0.01), (9, 10, 0.2), (17, 50, 1e-4)]:
        (bound,) = upper([successes], trials, level)
        below = sum(
            math.comb(trials, k) * bound**k * (1 - bound) ** (trials - k)
            for k in range(successes + 1)
        )
        assert below == pytest.approx(level, rel=1e-9)
    assert upper([10], 10, 0.05) == 1.0


def test_all_rates_hold_together_as_often_as_promised() -> None:
    """The true rates of thresholds that the scores themselves give, in 2,000 draws."""
    random, wrong = np.random.default_rng(1), 0
    for _ in range(2000):
        inside, outside = random.standard_normal(60) + 1.0, random.standard_normal(60)
        found = rates(inside, outside, 0.8, 8)
        half = np.unique(np.geomspace(1, 30, 4).round().astype(int))
        ranks = np.unique(np.concatenate([half, 61 - half]))
        cuts = np.sort(outside)[::-1][ranks - 1]
        bad = (ndtr(-cuts) > found.false_positive) | (ndtr(cuts - 1.0) > found.false_negative)
        wrong += bool(bad.any())
    assert 0.05 * 2000 < wrong <= 0.2 * 2000


def test_bounds_by_hand_at_one_threshold() -> None:
    inside, outside = np.arange(100) + 95.5, np.arange(100)  # the largest left out is 99
    found = rates(inside, outside, 0.95, 1)
    # Ranks 1 and 100: four bounds share the 5 %.
    positive = 1 - (0.05 / 4) ** (1 / 100)
    (missed,) = upper([4], 100, 0.05 / 4)
    assert found.false_positive[0] == pytest.approx(positive, abs=1e-12)
    assert found.false_negative[0] == pytest.approx(missed, abs=1e-12)
    wanted = math.log((1 - 1e-5 - missed) / positive)
    assert clopper_pearson_bound(inside, outside, 1e-5, number=1) == pytest.approx(wanted, abs=1e-9)
    mu = float(-ndtri(positive) - ndtri(missed))
    expected = gdp_epsilon(mu, 1e-5)
    assert gdp_bound(inside, outside, 1e-5, number=1) == pytest.approx(expected, abs=1e-9)


def test_scores_that_say_nothing_bound_nothing() -> None:
    random = np.random.default_rng(0)
    for few in (3, 300):
        inside, outside = random.standard_normal(few), random.standard_normal(few)
        assert clopper_pearson_bound(inside, outside, 1e-5) == 0.0
        assert gdp_bound(inside, outside, 1e-5) == 0.0
    ties = np.zeros(50)
    assert clopper_pearson_bound(ties, ties, 1e-5) == gdp_bound(ties, ties, 1e-5) == 0.0


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="scores"):
        gdp_bound([], [1.0], 1e-5)
    with pytest.raises(ValueError, match="numbers"):
        clopper_pearson_bound([math.nan], [1.0], 1e-5)
    with pytest.raises(ValueError, match="delta"):
        gdp_epsilon(1.0, 0.0)
    with pytest.raises(ValueError, match="spread"):
        two_gaussians_epsilon((0.0, 0.0), (0.0, 1.0), 1e-5)
