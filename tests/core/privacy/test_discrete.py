"""Discrete noise: its distribution, its rounding, and divergences beside those of the exact pmf."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chisquare, skellam

from fedcl.core.accounting.composition import ORDERS, Charge, epsilon_of_divergences, epsilon_rdp
from fedcl.core.privacy.discrete import (
    discrete_gaussian,
    gaussian_divergences,
    inflated,
    rounded,
    skellam_divergences,
    wrapped,
)
from fedcl.core.privacy.discrete import skellam as draw_skellam
from fedcl.core.privacy.noise import generator, seeded_root

ROOT = seeded_root(5)
N = 40_000


def mass(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns whole numbers and their probabilities, the slow way."""
    k = np.arange(-math.ceil(12 * sigma) - 2, math.ceil(12 * sigma) + 3)
    weight = np.exp(-(k**2) / (2 * sigma**2))
    return k, weight / weight.sum()


def fits(drawn: np.ndarray, k: np.ndarray, p: np.ndarray) -> float:
    """Returns the p-value of draws, numbers that are expected seldom taken together."""
    seen = np.array([(drawn == value).sum() for value in k], dtype=float)
    common = p * len(drawn) >= 10
    observed = np.append(seen[common], len(drawn) - seen[common].sum())
    expected = np.append(p[common], 1.0 - p[common].sum()) * len(drawn)
    return float(chisquare(observed[expected > 1e-6], expected[expected > 1e-6]).pvalue)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.7, 25.0])
def test_draws_follow_the_discrete_gaussian(sigma: float) -> None:
    drawn = discrete_gaussian(generator(ROOT, "g", str(sigma)), N, sigma)
    assert drawn.shape == (N,) and drawn.dtype == np.int64
    assert fits(drawn, *mass(sigma)) > 1e-3
    narrow = discrete_gaussian(generator(ROOT, "g", str(sigma)), N, 0.93 * sigma)
    assert fits(narrow, *mass(sigma)) < 1e-3, "seven percent less is found"


@pytest.mark.parametrize("variance", [0.5, 9.0, 400.0])
def test_draws_follow_the_skellam_distribution(variance: float) -> None:
    k = np.arange(-200, 201)
    drawn = draw_skellam(generator(ROOT, "s", str(variance)), N, variance)
    assert fits(drawn, k, skellam.pmf(k, variance / 2, variance / 2)) > 1e-3
    half = draw_skellam(generator(ROOT, "s", str(variance)), N, variance / 2)
    assert fits(half, k, skellam.pmf(k, variance / 2, variance / 2)) < 1e-6


def test_noise_is_a_function_of_its_place() -> None:
    first, again, other = (
        discrete_gaussian(generator(ROOT, "client", k), 500, 4.0) for k in (1, 1, 2)
    )
    assert (first == again).all() and abs(np.corrcoef(first, other)[0, 1]) < 5 / math.sqrt(500)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), 1e300])
def test_impossible_noise_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="lies in"):
        discrete_gaussian(generator(ROOT), 3, sigma)
    with pytest.raises(ValueError, match="lies in"):
        draw_skellam(generator(ROOT), 3, sigma)


def test_rounding_has_no_bias_and_keeps_to_its_norm() -> None:
    values = np.linspace(-3, 3, 25)
    most = inflated(float(np.linalg.norm(values)), len(values))
    draws = np.stack([rounded(generator(ROOT, k), values, most) for k in range(2000)])
    assert (np.abs(draws - values) < 1).all()
    assert (np.linalg.norm(draws, axis=1) <= most).all()
    assert np.abs(draws.mean(0) - values).max() < 5 * 0.5 / math.sqrt(2000) + 0.05
    tight = np.full(16, 0.5)
    assert (rounded(generator(ROOT, "tight"), tight, 0.0) == 0).all(), "never above the bound"


def test_the_norm_after_rounding() -> None:
    assert inflated(5.0, 4) == pytest.approx(min(7.0, math.sqrt(25 + 1 + math.sqrt(1.0) * 6.0)))
    # Almost nothing may be drawn anew: the bound that holds for every rounding is the smaller one.
    assert inflated(1.0, 1, beta=1e-300) == 2.0


@pytest.mark.parametrize("bits", [8, 20, 62])
def test_a_sum_is_right_modulo_a_power_of_two(bits: int) -> None:
    half = 1 << (bits - 1)
    values = np.array([0, 1, -1, half - 1, -half])
    assert (wrapped(values, bits) == values).all()
    if bits < 62:
        assert (wrapped(values + (1 << bits), bits) == values).all()
    assert wrapped(np.array([half]), bits)[0] == -half, "what is too large comes round"


def divergence(p: np.ndarray, q: np.ndarray, order: int) -> float:
    """Rényi divergence of probabilities by their definition, in logarithms."""
    with np.errstate(divide="ignore"):
        terms = order * np.log(p) - (order - 1) * np.log(q)
    top = terms.max()
    return float((top + np.log(np.exp(terms - top).sum())) / (order - 1))


@pytest.mark.parametrize(("sigma", "clients"), [(1.5, 1), (1.0, 2), (0.6, 3)])
def test_the_bound_holds_for_the_true_sum_of_discrete_gaussians(sigma: float, clients: int) -> None:
    _, p = mass(sigma)
    total = p
    for _ in range(clients - 1):
        total = np.convolve(total, p)
    # The far tails are below a double's reach.
    for shift in (1, 2):
        middle = slice(len(total) // 2 - int(6 * sigma) - 4, len(total) // 2 + int(6 * sigma) + 5)
        one, other = total[middle], np.roll(total, shift)[middle]
        for order in (2, 3, 8):
            (bound,) = gaussian_divergences([order], shift, 1, sigma, clients)
            assert divergence(one, other, order) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("variance", [4.0, 30.0])
def test_the_bound_holds_for_the_true_skellam_distribution(variance: float) -> None:
    k = np.arange(-60, 61)
    for shift in (1, 2):
        one = skellam.pmf(k, variance / 2, variance / 2)
        other = skellam.pmf(k - shift, variance / 2, variance / 2)
        for order in (2, 3, 8):
            (bound,) = skellam_divergences([order], shift, 1, variance)
            true = divergence(one, other, order)
            assert true <= bound and bound < 2.5 * true


def test_much_noise_costs_what_the_continuous_gaussian_costs() -> None:
    sigma, clients, norm, d = 200.0, 25, 900.0, 100
    z = math.sqrt(clients) * sigma / norm
    want = epsilon_rdp([Charge(z)], 1e-5)
    shares = gaussian_divergences(ORDERS, norm, d, sigma, clients)
    assert epsilon_of_divergences(shares, 1e-5) == pytest.approx(want, rel=1e-9)
    other = skellam_divergences(ORDERS, norm, d, clients * sigma**2)
    assert want <= epsilon_of_divergences(other, 1e-5) == pytest.approx(want, rel=0.01)
    # With few coarse shares, that their sum is no discrete Gaussian does count.
    coarse = gaussian_divergences([2], 1.0, d, 0.5, 10)[0]
    assert coarse > gaussian_divergences([2], 1.0, d, 0.5, 1)[0] / 10 * 1.01
