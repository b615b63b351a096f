"""The accountant beside its oracles: dp-accounting, Opacus, and closed forms."""

from __future__ import annotations

import math
import warnings

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedcl.core.accounting.composition import ORDERS, Charge, epsilon, epsilon_rdp

DELTA = 1e-5
# PRIVACY.md 1.5: (noise multiplier, rate, times) -> dp-accounting's PLD at 1e-4, Opacus' PRV.
TABLE = [
    ((1.0, 0.01, 1000), 1.8282, 1.8384),
    ((1.0, 0.1, 100), 7.0466, 7.0571),
    ((0.7, 0.05, 500), 16.4828, 16.4937),
    ((2.0, 0.5, 50), 9.4736, 9.4841),
    ((5.0, 1.0, 100), 9.9973, 10.0077),
    ((0.6, 0.001, 5000), 2.0550, 2.0653),
]


@pytest.mark.parametrize(("row", "pld", "prv"), TABLE)
def test_the_headline_is_that_of_privacy_loss_distributions(
    row: tuple[float, float, int], pld: float, prv: float
) -> None:
    found = epsilon([Charge(*row)], DELTA)
    assert found == pytest.approx(pld, abs=1e-3 * max(1.0, pld))
    assert found <= prv + 5e-5 <= found + 0.02


@pytest.mark.parametrize(("row", "pld", "prv"), TABLE)
def test_the_cross_check_is_that_of_renyi_divergences(
    row: tuple[float, float, int], pld: float, prv: float
) -> None:
    noise, rate, times = row
    event = dp_event.GaussianDpEvent(noise)
    sampled = event if rate == 1 else dp_event.PoissonSampledDpEvent(rate, event)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = RdpAccountant(ORDERS).compose(sampled, times).get_epsilon(DELTA)
    found = epsilon_rdp([Charge(*row)], DELTA)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found >= epsilon([Charge(*row)], DELTA)


@pytest.mark.parametrize(("noise", "times"), [(5.0, 100), (1.0, 1), (0.5, 3), (30.0, 10)])
def test_without_sampling_the_bound_is_exact(noise: float, times: int) -> None:
    """Balle and Wang, ICML 2018, theorem 8."""
    mu = math.sqrt(times) / noise

    def excess(bound: float) -> float:
        left = norm.cdf(mu / 2 - bound / mu)
        return float(left - math.exp(bound) * norm.cdf(-mu / 2 - bound / mu)) - DELTA

    assert epsilon([Charge(noise, 1.0, times)], DELTA) == pytest.approx(
        brentq(excess, 0, 100, xtol=1e-12), abs=1e-6
    )


def test_segments_compose_like_those_of_other_accountants() -> None:
    """T1 live: loss distributions at 1e-4 within 1e-3, and Opacus' PRV above by at most 0.02."""
    rows = [(1.0, 0.05, 100), (2.0, 0.1, 50), (4.0, 0.5, 10)]
    oracle = PLDAccountant(value_discretization_interval=1e-4)
    prv = PRVAccountant()
    for noise, rate, times in rows:
        sampled = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
        oracle.compose(sampled, times)
        prv.history.append((noise, rate, times))
    found = epsilon([Charge(*row) for row in rows], DELTA)
    assert found == pytest.approx(oracle.get_epsilon(DELTA), abs=1e-3 * max(1.0, found))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found - 1e-3 <= prv.get_epsilon(DELTA) <= found + 0.02


def test_charges_compose_in_any_order_and_in_any_parts() -> None:
    charges = [Charge(1.0, 0.1, 20), Charge(2.0, 0.05, 40), Charge(4.0)]
    whole = epsilon(charges, DELTA)
    parts = [Charge(4.0), *[Charge(2.0, 0.05, 10)] * 4, *[Charge(1.0, 0.1, 1)] * 20]
    assert epsilon(parts, DELTA) == whole == epsilon(charges[::-1], DELTA)
    assert epsilon(charges[:2], DELTA) < whole < epsilon([*charges, Charge(4.0)], DELTA)


def test_nothing_costs_nothing_and_no_noise_has_no_bound() -> None:
    assert epsilon([], DELTA) == epsilon_rdp([], DELTA) == 0.0
    assert epsilon([Charge(0.0, times=0)], DELTA) == 0.0
    assert epsilon([Charge(1.0), Charge(0.0)], DELTA) == math.inf
    assert epsilon_rdp([Charge(0.0, 0.1)], DELTA) == math.inf


@pytest.mark.parametrize("row", [(-1.0, 1.0, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 1.0, -1)])
def test_charges_that_are_none_are_refused(row: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="not"):
        Charge(*row)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon([Charge(1.0)], delta)
