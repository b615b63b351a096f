"""Distributed noise: the grid, the whole numbers that clients send, and what sums of them cost."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import skellam
from torch import Tensor

from fedcl.core.accounting.composition import Charge, epsilon, epsilon_rdp
from fedcl.core.accounting.ledger import Draw, Event, Ledger, Mechanism, Sampling, charges
from fedcl.core.errors import ConfigError
from fedcl.core.privacy import distributed
from fedcl.core.privacy.distributed import TAIL, Discrete, Shares, decoded, encoded, in_ring, plan
from fedcl.core.privacy.noise import key_of, seeded_root
from fedcl.core.privacy.renyi import ORDERS, Renyi
from tests.core.privacy.test_discrete import divergence, fits

ROOT = seeded_root(11)
DELTA = 1e-5
GAUSSIAN = Shares("discrete_gaussian", 20, 1.0)
SKELLAM = Shares("skellam", 20, 1.0)


def summed(
    own: distributed.Plan, replies: list[dict[str, Tensor]], place: str
) -> dict[str, Tensor]:
    """Returns what a secure sum makes of replies."""
    sent = [encoded(own, reply, key_of(ROOT, place, k)) for k, reply in enumerate(replies)]
    assert all(value.dtype == torch.int32 for reply in sent for value in reply.values())
    total = {name: torch.stack([r[name].double() for r in sent]).sum(0) for name in sent[0]}
    return decoded(own, {name: in_ring(value, own.shares.bits) for name, value in total.items()})


# --- The grid. ---


@pytest.mark.parametrize("bits", [8, 12, 20, 32])
@pytest.mark.parametrize(("expected", "survivors"), [(2, 1.0), (10, 0.75), (40, 0.5)])
def test_the_scale_is_the_finest_at_which_no_sum_wraps(
    bits: int, expected: int, survivors: float
) -> None:
    shares = Shares("discrete_gaussian", bits, survivors)
    if bits == 8 and expected == 40:
        with pytest.raises(ConfigError, match="bits = 8 has no room for the sum of 40 clients"):
            plan(shares, 0.5, 1.5, expected)
        return
    own = plan(shares, 0.5, 1.5, expected)
    assert own.least == math.ceil(survivors * expected)
    signal = expected * (own.scale * 0.5 + 1)
    noise = math.sqrt(2 * TAIL * expected * own.variance) + TAIL / 3
    assert signal + noise == pytest.approx(2 ** (bits - 1) - 1, rel=1e-12)
    # Those who must answer bring the noise that is promised.
    assert own.least * own.variance == pytest.approx((own.scale * 0.5 * 1.5) ** 2, rel=1e-12)


def test_where_nobody_has_data_there_is_a_plan_all_the_same() -> None:
    assert plan(GAUSSIAN, 1.0, 1.0, 0) == plan(GAUSSIAN, 1.0, 1.0, 1)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="raise bits"):
        plan(Shares("skellam", 4, 1.0), 1.0, 1.0, 10)
    with pytest.raises(ConfigError, match=r"noise of 0\.001 times the clip: raise bits"):
        plan(Shares("discrete_gaussian", 10, 1.0), 1.0, 1e-3, 5)
    with pytest.raises(ConfigError, match="at most 31 bits"):
        plan(Shares("discrete_gaussian", 32, 1.0), 1.0, 1.0, 2**23)


# --- What clients send. ---


@pytest.mark.parametrize("shares", [GAUSSIAN, SKELLAM])
def test_without_noise_the_sum_is_the_plain_one_but_for_rounding(shares: Shares) -> None:
    """T14: within one step of the grid a client, also where all replies agree in one number."""
    own = plan(shares, 1.0, 0.0, 7)
    generator = torch.Generator().manual_seed(0)
    replies = [{"a": torch.randn(5, 3, generator=generator) / 20} for _ in range(6)]
    replies = [{**reply, "b": torch.zeros(2)} for reply in replies]
    for sent in (replies, [{"a": torch.zeros(4), "b": torch.tensor([1.0, 0.0])}] * 7):
        found = summed(own, sent, "plain")
        for name, value in found.items():
            plain = torch.stack([reply[name].double() for reply in sent]).sum(0)
            assert value.dtype == torch.float64 and value.shape == plain.shape
            assert float((value - plain).abs().max()) <= len(sent) / own.scale


def test_rounding_has_no_bias_over_many_keys() -> None:
    own = plan(Shares("discrete_gaussian", 10, 1.0), 1.0, 0.0, 4)
    value = torch.tensor([0.3, -0.701, 0.05], dtype=torch.float64)
    total = sum(encoded(own, {"a": value}, key_of(ROOT, k))["a"].double() for k in range(2000))
    assert float((total / 2000 / own.scale - value).abs().max()) < 5 * 0.5 / own.scale / 44


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_whatever_a_client_has_its_whole_numbers_keep_to_the_norm(bad: float) -> None:
    own = plan(GAUSSIAN, 0.5, 0.0, 5)
    reply = {"a": torch.tensor([1.0, bad, 2.0]), "n": torch.tensor([10**9]), "b": torch.ones(400)}
    sent = encoded(own, reply, key_of(ROOT, "bad"))
    flat = torch.cat([value.double().flatten() for value in sent.values()])
    assert float(flat.norm()) <= own.norm(404) <= own.scale * 0.5 * 1.01
    assert int(sent["n"]) == 0
    if not math.isfinite(bad):
        assert not flat.any()


def test_every_number_gets_noise_and_two_clients_get_different_noise() -> None:
    own = plan(GAUSSIAN, 1.0, 1.0, 4)
    nothing = {"a": torch.zeros(30, 100), "n": torch.zeros(3000, dtype=torch.int64)}
    one, other = (encoded(own, nothing, key_of(ROOT, "client", k)) for k in (0, 1))
    again = encoded(own, nothing, key_of(ROOT, "client", 0))
    for name in ("a", "n"):
        a, b = one[name].double().flatten(), other[name].double().flatten()
        assert torch.equal(one[name], again[name])
        assert float(a.square().mean()) == pytest.approx(own.variance, rel=0.13)
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(3000)
    both = torch.stack([one["a"].double().flatten(), one["n"].double().flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 5 / math.sqrt(3000)


def test_the_sum_of_skellam_shares_is_skellam_noise_of_all_of_them() -> None:
    own = plan(Shares("skellam", 10, 0.5), 1.0, 0.5, 4)
    found = summed(own, [{"a": torch.zeros(20_000)}] * 4, "skellam")["a"] * own.scale
    mean, k = 4 * own.variance / 2, np.arange(-500, 501)
    drawn = found.round().numpy().astype(np.int64)
    assert np.abs(found.numpy() - drawn).max() < 1e-9
    assert fits(drawn, k, skellam.pmf(k, mean, mean)) > 1e-3
    assert fits(drawn, k, skellam.pmf(k, 0.93 * mean, 0.93 * mean)) < 1e-3


# --- What it costs. ---


@pytest.mark.parametrize(
    ("kind", "variance", "shares", "near"),
    [
        ("discrete_gaussian", 2.25, 1, 1.0001),
        ("discrete_gaussian", 4.0, 3, 1.0001),
        ("discrete_gaussian", 1.0, 2, 1.01),
        ("discrete_gaussian", 0.5, 3, 1.9),
        ("skellam", 25.0, 1, 1.4),
        ("skellam", 100.0, 3, 1.04),
    ],
)
def test_the_charge_is_above_the_true_divergence_and_near(
    kind: str, variance: float, shares: int, near: float
) -> None:
    """The whole chain for one number: shares are convolved, and two sums are told apart."""
    sigma = math.sqrt(variance)
    if kind == "skellam":
        k = np.arange(-400, 401)
        total = skellam.pmf(k, shares * variance / 2, shares * variance / 2)
    else:
        weight = np.exp(-(np.arange(-40, 41) ** 2) / (2 * variance))
        total = one = weight / weight.sum()
        for _ in range(shares - 1):
            total = np.convolve(total, one)
    middle = len(total) // 2
    for shift in (1, 2):
        own = Discrete(kind, float(shift), 1, variance, shares).divergences()
        for order in (2, 3, 4, 6, 8):
            # Beyond lies less than 1e-6 of the sum that a divergence is.
            reach = math.ceil(order * shift + 5.5 * math.sqrt(shares) * sigma)
            window = slice(middle - reach, middle + reach + 1)
            assert reach + shift < middle
            true = divergence(np.roll(total, shift)[window], total[window], order)
            bound = own[ORDERS.index(order)]
            assert true * (1 - 1e-6) <= bound <= near * true, (shift, order, bound / true)


def test_a_fine_grid_costs_what_gaussian_noise_costs() -> None:
    want = epsilon_rdp([Charge(1.0)], DELTA)
    for kind in ("discrete_gaussian", "skellam"):
        own = plan(Shares(kind, 26, 0.8), 2.0, 1.0, 10).discrete(1000)
        found = epsilon([Renyi(own.divergences())], DELTA)
        assert want <= found == pytest.approx(want, rel=1e-3)
    coarse = plan(Shares("discrete_gaussian", 12, 0.8), 2.0, 1.0, 10).discrete(1000)
    assert epsilon([Renyi(coarse.divergences())], DELTA) > 1.01 * want, "rounding adds to the norm"


def test_no_noise_has_no_bound() -> None:
    own = plan(GAUSSIAN, 1.0, 0.0, 5).discrete(3)
    assert epsilon([Renyi(own.divergences())], DELTA) == math.inf
    assert epsilon([], DELTA) == 0.0


def test_discrete_and_gaussian_mechanisms_compose_by_adding_divergences() -> None:
    gaussian = tuple(order / (2 * 3.0**2) for order in ORDERS)
    parts: list[Charge | Renyi] = [Charge(2.0), Charge(1.5, 0.1, 4), Renyi(gaussian, 2)]
    want = epsilon_rdp([Charge(2.0), Charge(1.5, 0.1, 4), Charge(3.0, 1.0, 2)], DELTA)
    assert epsilon_rdp(parts, DELTA) == pytest.approx(want, rel=1e-12)
    assert epsilon(parts, DELTA) == epsilon_rdp(parts, DELTA)
    for seed in range(5):
        assert epsilon(random.Random(seed).sample(parts, 3), DELTA) == epsilon(parts, DELTA)
    with pytest.raises(ValueError, match="a divergence at each of 67 orders"):
        Renyi((1.0,))


# --- The ledger. ---


def event(number: int, how: Sampling = "fixed", attempt: int = 0, norm: float = 10.0) -> Event:
    own = Discrete("skellam", norm, 50, 900.0, 8)
    return Event(0, number, 0, "train", 1.0, 1.0, Draw(how, 100, 10, number), attempt, own)


def test_a_sample_is_credited_nothing() -> None:
    own = event(0).discrete
    assert own is not None
    for how in ("fixed", "all", "poisson"):
        found = charges([event(k, how) for k in range(6)])
        assert found == [Renyi(own.divergences(), 6)]


def test_in_turns_a_client_is_charged_for_the_dearest_as_often_as_its_turn_comes() -> None:
    found = charges([event(k, "round_robin", norm=10.0 + k) for k in range(20)])
    last = event(19, norm=29.0).discrete
    assert last is not None and found == [Renyi(last.divergences(), 2)]
    # A round that was skipped hides nobody's turn: these three are one and the same client's.
    apart = charges([event(k, "round_robin") for k in (0, 10, 20)])
    assert [one.times for one in apart] == [3]
    gaussian = [Event(0, k, 0, "a", 1.0, 1.0, Draw("round_robin", 100, 10, k)) for k in (0, 10, 20)]
    assert charges(gaussian) == [Charge(1.0, 1.0, 3)]


def test_a_repeated_round_is_charged_again() -> None:
    """Its first exchange was released, though the second had too few replies."""
    kept: list[Event] = []
    found = Ledger(kept.append)
    mechanism = Mechanism(1.0, 1.0, DELTA, shares=SKELLAM)
    found.intend(event(0), mechanism)
    once = found.epsilon(DELTA)
    resumed = Ledger(kept.append, dict(found.events))
    resumed.intend(event(0), mechanism)
    assert resumed.epsilon(DELTA) == once and len(kept) == 1, "the same release once more"
    resumed.intend(event(0, attempt=1), mechanism)
    assert resumed.epsilon(DELTA) > 1.2 * once and len(kept) == 2
    with pytest.raises(ConfigError, match="asks for a second release"):
        resumed.intend(event(0), mechanism)
