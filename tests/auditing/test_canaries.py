"""Bounds from canaries: right against slow sums, silent on right mechanisms, loud on wrong ones."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import ndtr, ndtri
from scipy.stats import norm

from fedcl.auditing.canaries import (
    Guesses,
    cosines,
    estimated_epsilon,
    gaussian_excess,
    gaussian_one_run_bound,
    guessed,
    one_run_bound,
    one_run_p_value,
)
from fedcl.auditing.gaussians import gdp_mu
from fedcl.auditing.thresholds import clopper_pearson_bound, gdp_bound

DELTA = 1e-5
CLAIM = 3.0


def slow_tail(right: int, made: int, rate: float) -> float:
    """Sums the probability of each pattern of right and wrong guesses."""
    return sum(
        math.prod(rate if hit else 1 - rate for hit in pattern)
        for pattern in product((0, 1), repeat=made)
        if sum(pattern) >= right
    )


@pytest.mark.parametrize("right", range(9))
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_the_p_value_is_that_of_all_patterns_of_guesses(right: int, delta: float) -> None:
    made, canaries, epsilon = 8, 20, 0.7
    rate = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = slow_tail(right, made, rate)
    steps = [(slow_tail(right - i, made, rate) - tail) / i for i in range(1, right + 1)]
    wanted = min(1.0, tail + 2 * canaries * delta * max(steps, default=0.0))
    found = one_run_p_value(Guesses(canaries, made, right), epsilon, delta)
    assert found == pytest.approx(wanted, abs=1e-12)


def test_a_mechanism_that_tells_all_with_probability_delta_is_not_accused() -> None:
    """Randomised response that gives the coin away with probability delta is just (eps, delta)."""
    for epsilon, delta in product((0.1, 1.0, 2.0), (1e-3, 0.05)):
        rate = delta + (1 - delta) / (1 + math.exp(-epsilon))
        for right in range(11):
            found = one_run_p_value(Guesses(10, 10, right), epsilon, delta)
            assert found >= slow_tail(right, 10, rate) - 1e-12


# From a transcription of the formulas in jax_privacy.auditing, at a confidence of 95 %.
KNOWN = [
    (1000, 100, 100, 1e-5, 3.465376348, 5.549027898),
    (1000, 200, 150, 1e-5, 0.819972912, 1.296916024),
    (500, 100, 80, 1e-4, 0.942594517, 1.317610019),
    (50, 50, 45, 1e-3, 1.351110303, 2.295854653),
    (20, 10, 9, 1e-5, 0.429326733, 0.844587430),
    (1000, 300, 150, 1e-6, 0.0, 0.0),
]


@pytest.mark.parametrize("case", KNOWN)
def test_the_bounds_are_those_of_another_program(case: tuple[float, ...]) -> None:
    canaries, made, right, delta, pure, gaussian = case
    guesses = Guesses(int(canaries), int(made), int(right))
    assert one_run_bound(guesses, delta) == pytest.approx(pure, abs=1e-6)
    assert gaussian_one_run_bound(guesses, delta) == pytest.approx(gaussian, abs=1e-6)
    if pure:
        assert one_run_p_value(guesses, pure, delta) == pytest.approx(0.05, abs=1e-6)


def slow_most(guesses: Guesses, mu: float) -> float:
    """Returns the largest probability of so many right guesses, by a linear program over them."""
    made, right, canaries = guesses.made, guesses.right, guesses.canaries
    points = ndtr(np.linspace(-6, 6, 1500))
    slopes = np.exp(-mu * ndtri(points) - mu**2 / 2)  # of the curve Phi(Phi^-1(x) + mu)
    heights = ndtr(ndtri(points) + mu) - slopes * points
    rows, limits = [], []
    for c in range(1, right + 1):
        hit = np.array([i if i >= c else 0 for i in range(made + 1)]) / canaries
        miss = np.array([made - i if i >= c - 1 else 0 for i in range(made + 1)]) / canaries
        rows.append(hit - slopes[:, None] * miss)
        limits.append(heights)
    goal = [-float(i >= right) for i in range(made + 1)]
    found = linprog(goal, np.concatenate(rows), np.concatenate(limits), [[1.0] * (made + 1)], [1.0])
    return float(-found.fun)


@pytest.mark.parametrize(
    ("canaries", "made", "right"), [(1, 1, 1), (4, 4, 3), (6, 4, 4), (9, 5, 4)]
)
def test_the_gaussian_test_rejects_just_what_no_probabilities_can_explain(
    canaries: int, made: int, right: int
) -> None:
    guesses, mu = Guesses(canaries, made, right), 0.8
    most = slow_most(guesses, mu)
    assert gaussian_excess(guesses, mu, most - 1e-4) < 0 < gaussian_excess(guesses, mu, most + 1e-4)
    if canaries == 1:
        assert most == pytest.approx(ndtr(mu / 2), abs=1e-5)


def test_the_gaussian_test_accepts_independent_gaussian_answers() -> None:
    for mu, right in product((0.3, 1.0, 2.5), range(1, 13)):
        tail = slow_tail(right, 12, float(ndtr(mu / 2)))
        assert gaussian_excess(Guesses(12, 12, right), mu, tail) <= 1e-12


def runs(noise: float, number: int = 40, canaries: int = 1000) -> dict[str, np.ndarray]:
    """Returns each bound of each run of a mechanism with a part of the noise that it claims."""
    scale = noise / gdp_mu(CLAIM, DELTA)
    found: dict[str, list[float]] = {}
    for seed in range(number):
        random = np.random.default_rng(seed)
        included = random.random(canaries) < 0.5
        scores = included + scale * random.standard_normal(canaries)
        guesses = guessed(scores, included, canaries // 10, canaries // 10)
        inside, outside = scores[included], scores[~included]
        for name, value in {
            "one run": one_run_bound(guesses, DELTA),
            "one run, gaussian": gaussian_one_run_bound(guesses, DELTA),
            "clopper-pearson": clopper_pearson_bound(inside, outside, DELTA),
            "gdp": gdp_bound(inside, outside, DELTA),
            "estimate": estimated_epsilon(inside, outside, DELTA),
        }.items():
            found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


BOUNDS = ("one run", "one run, gaussian", "clopper-pearson", "gdp")


def test_right_mechanisms_are_not_accused_and_estimated_well() -> None:
    found = runs(1.0)
    for name in BOUNDS:
        assert (found[name] > CLAIM).mean() <= 0.05, name
        assert np.median(found[name]) > 0.3, name
    assert np.median(found["estimate"]) == pytest.approx(CLAIM, rel=0.2)


def test_half_of_the_noise_is_found_by_the_bounds_that_know_the_mechanism() -> None:
    found = runs(0.5)
    assert (found["one run, gaussian"] > CLAIM).mean() >= 0.9
    assert (found["gdp"] > CLAIM).mean() >= 0.9
    # 200 guesses are too few for the bounds that know nothing of it, as they should be.
    assert np.median(found["one run"]) < CLAIM


def test_noise_forgotten_is_found_by_every_bound() -> None:
    found = runs(1e-3)
    for name in BOUNDS:
        assert (found[name] > CLAIM).mean() >= 0.9, name


def test_guesses_by_hand_and_ties_count_as_wrong() -> None:
    scores, included = [0.9, 0.1, 0.5, 0.4, 0.8], [True, False, True, True, False]
    assert guessed(scores, included, 1, 1) == Guesses(5, 2, 2)
    assert guessed(scores, included, 2, 2) == Guesses(5, 4, 2)
    assert guessed([1.0] * 4, [True, True, False, False], 2, 2) == Guesses(4, 4, 0)
    assert guessed([1.0] * 4, [False, False, True, True], 2, 0) == Guesses(4, 2, 0)
    with pytest.raises(ValueError, match="3 \\+ 3"):
        guessed(scores, included, 3, 3)
    with pytest.raises(ValueError, match="number"):
        guessed([math.nan, 1.0], [True, False], 1, 0)
    with pytest.raises(ValueError, match="cannot be right"):
        Guesses(5, 4, 5)


def test_an_estimate_from_scores_at_known_quantiles() -> None:
    even = norm.ppf((np.arange(2000) + 0.5) / 2000)
    even /= even.std(ddof=1)
    mu = gdp_mu(CLAIM, DELTA)
    assert estimated_epsilon(even + mu, even, DELTA) == pytest.approx(CLAIM, abs=1e-6)
    assert estimated_epsilon(even, even, DELTA) == 0.0
    assert estimated_epsilon(even * 2 + mu, even, DELTA) > CLAIM + 1  # spreads tell, too
    with pytest.raises(ValueError, match="two scores"):
        estimated_epsilon([1.0], even, DELTA)


def test_cosines_of_a_change_with_directions() -> None:
    found = cosines([3.0, 4.0], [[1.0, 0.0], [0.0, -2.0], [6.0, 8.0]])
    np.testing.assert_allclose(found, [0.6, -0.8, 1.0], atol=1e-15)
    np.testing.assert_array_equal(cosines([0.0, 0.0], [[1.0, 0.0]]), [0.0])
