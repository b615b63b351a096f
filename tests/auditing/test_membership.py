"""Scores of membership: by hand, against slow definitions, and silent where there is nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from fedcl.auditing.leakage import auc, interval, leak_matrix, tpr_at_fpr
from fedcl.auditing.membership import Observed, confidence_margin, lira, rmia


def drawn(seed: int, gain: float, records: int = 400) -> tuple[Observed, NDArray[np.bool_]]:
    """Returns margins of records of different difficulty, larger by `gain` under their models.

    Also who was a member of the target.
    """
    random = np.random.default_rng(seed)
    ease = 3.0 * random.standard_normal(records)
    members = random.random((17, records)) < 0.5
    members[0], members[1] = True, False  # each record is in one model and out of one
    values = ease + gain * members + random.standard_normal(members.shape)
    return Observed(np.arange(records), values[-1], values[:-1], members[:-1]), members[-1]


def probable(of: Observed) -> Observed:
    return replace(of, target=1 / (1 + np.exp(-of.target)), shadows=1 / (1 + np.exp(-of.shadows)))


def halves(of: Observed) -> tuple[Observed, Observed]:
    """Returns the first half of the records, and the second to compare with."""
    cut = len(of.records) // 2
    first, second = slice(cut), slice(cut, None)
    parts = (
        Observed(of.records[rows], of.target[rows], of.shadows[:, rows], of.members[:, rows])
        for rows in (first, second)
    )
    return next(parts), next(parts)


ATTACKS: dict[str, Callable[[Observed], NDArray[np.float64]]] = {
    "lira online": lira,
    "lira offline": lambda of: lira(of, online=False),
    "rmia online": lambda of: rmia(*halves(probable(of))),
    "rmia offline": lambda of: rmia(*halves(probable(of)), online=False),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_members_that_stand_out_are_found(name: str) -> None:
    case, members = drawn(1, gain=4.0)
    plain = auc(case.target, members)
    scores = ATTACKS[name](case)
    members = members[: len(scores)]
    assert auc(scores, members) > 0.9
    assert auc(scores, members) > plain + 0.05  # what the record's own difficulty hides


@pytest.mark.parametrize("name", ATTACKS)
def test_models_that_remember_nothing_leak_nothing(name: str) -> None:
    """Area .5, and as many members found as false positives, each within 3 standard errors (T12).

    At 0.1 % this takes ten thousand records that are no members, and a thousand to compare with.
    """
    scores, members = [], []
    for seed in range(12):
        case, own = drawn(seed, gain=0.0, records=4000)
        scores.append(ATTACKS[name](case))
        members.append(own[: len(scores[-1])])
    flat, flags = np.concatenate(scores), np.concatenate(members)
    inside, outside = int(flags.sum()), int((~flags).sum())
    error = math.sqrt((inside + outside + 1) / (12 * inside * outside))
    assert abs(auc(flat, flags) - 0.5) <= 3 * error
    for false in (0.01, 0.001):
        rate = tpr_at_fpr(flat, flags, false)
        assert rate.value and rate.negatives == outside
        error = math.sqrt(false * (1 - false) * (1 / inside + 1 / outside))
        assert abs(rate.value - false) <= 3 * error


def test_records_must_not_be_compared_with_the_targets_own_others() -> None:
    """The leak by which a first try at this audit found members where there are none."""
    scores, members = [], []
    for seed in range(60):
        case, own = drawn(seed, gain=0.0)
        x = probable(case)
        z = Observed(x.records[~own] + 1000, x.target[~own], x.shadows[:, ~own], x.members[:, ~own])
        scores.append(rmia(x, z, gamma=1 + 1e-9))  # no record outdoes itself
        members.append(own)
    flat, flags = np.concatenate(scores), np.concatenate(members)
    error = math.sqrt(0.001 * 0.999 * (1 / flags.sum() + 1 / (~flags).sum()))
    rate = tpr_at_fpr(flat, flags, 0.001)
    assert rate.value is not None and rate.value > 0.001 + 3 * error


def test_shuffled_labels_leak_nothing_though_members_stand_out() -> None:
    cases = [drawn(seed, gain=4.0) for seed in range(60)]
    scores = np.concatenate([lira(case) for case, _ in cases])
    flags = np.concatenate([own for _, own in cases])
    assert auc(scores, flags) > 0.9
    np.random.default_rng(0).shuffle(flags)
    error = math.sqrt((len(flags) + 1) / (12 * flags.sum() * (~flags).sum()))
    assert abs(auc(scores, flags) - 0.5) <= 3 * error
    rate = tpr_at_fpr(scores, flags, 0.001)
    error = math.sqrt(0.001 * 0.999 * (1 / flags.sum() + 1 / (~flags).sum()))
    assert rate.value is not None and abs(rate.value - 0.001) <= 3 * error


def test_a_likelihood_ratio_by_hand() -> None:
    shadows = np.array([[2.0, 5.0], [4.0, 1.0], [0.0, 7.0], [1.0, 2.0]])
    members = np.array([[True, True], [True, False], [False, True], [False, False]])
    case = Observed(np.arange(2), np.array([2.5, 3.0]), shadows, members)
    # Means with: 3, 6; squares 2 + 2 over two degrees of freedom. Without: 0.5, 1.5; 0.5 + 0.5.
    inside, outside = norm([3.0, 6.0], math.sqrt(2.0)), norm([0.5, 1.5], math.sqrt(0.5))
    wanted = inside.logpdf(case.target) - outside.logpdf(case.target)
    np.testing.assert_allclose(lira(case), wanted, atol=1e-12)
    offline = -outside.logsf(case.target)
    np.testing.assert_allclose(lira(case, online=False), offline, atol=1e-12)


def test_many_shadow_models_give_each_record_its_own_variance() -> None:
    random = np.random.default_rng(0)
    members = np.arange(80)[:, None] % 2 == np.zeros((1, 2))
    shadows = random.standard_normal((80, 2)) * np.array([0.1, 10.0])
    case = Observed(np.arange(2), np.array([0.5, 0.5]), shadows, members)
    for record in range(2):
        without = shadows[~members[:, record], record]
        wanted = -norm.logsf(0.5, without.mean(), without.std(ddof=1))
        assert lira(case, online=False)[record] == pytest.approx(wanted, rel=1e-12)


def test_a_robust_score_by_hand() -> None:
    members = np.array([[True], [False]])
    x = Observed(np.array([0]), np.array([0.6]), np.array([[0.5], [0.3]]), members)
    # Its ratio is 0.6 / 0.4 = 1.5; those of the others are 1, 1.5 and 2.
    usual = np.array([[0.4, 0.4, 0.4], [0.4, 0.4, 0.4]])
    flags = np.zeros((2, 3), dtype=bool)
    z = Observed(np.array([1, 2, 3]), np.array([0.4, 0.6, 0.8]), usual, flags)
    assert rmia(x, z)[0] == pytest.approx(2 / 3)
    assert rmia(x, z, gamma=1.2)[0] == pytest.approx(1 / 3)
    # Offline, a = 0.3: 0.6 / (0.5 * (1.3 * 0.3 + 0.7)); the others' usual is 0.61.
    assert rmia(x, z, online=False)[0] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="compared with"):
        rmia(x, x)


def test_margins_are_log_odds_that_do_not_saturate() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [300.0, 0.0, -5.0]], dtype=torch.float64)
    found = confidence_margin(logits, torch.tensor([1, 0]))
    p = logits[0].softmax(0)[1]
    assert float(found[0]) == pytest.approx(float(torch.log(p / (1 - p))), abs=1e-12)
    assert float(found[1]) == pytest.approx(300.0 - math.log1p(math.exp(-5.0)), abs=1e-9)
    with pytest.raises(ValueError, match="one class"):
        confidence_margin(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))


def test_areas_count_pairs() -> None:
    random = np.random.default_rng(3)
    scores, members = random.integers(0, 6, 60), random.random(60) < 0.4
    pairs = list(product(scores[members], scores[~members]))
    slow = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert auc(scores, members) == pytest.approx(slow, abs=1e-12)
    assert math.isnan(auc([1.0, 2.0], [True, True]))


def test_a_rate_needs_enough_others_to_be_told() -> None:
    scores = np.concatenate([np.arange(1000), [500.0, 989.0, 989.5, 5000.0]])
    members = np.arange(1004) >= 1000
    rate = tpr_at_fpr(scores, members, 0.01)  # ten others may lie above: 990 to 999
    assert rate.value == 0.5 and rate.negatives == 1000 and not rate.note
    few = tpr_at_fpr(scores, members, 0.001)
    assert few.value is None and "10000 are needed" in few.note
    assert tpr_at_fpr(scores, members, 0.001, least=1).value == 0.25
    assert tpr_at_fpr(np.zeros(2000), np.arange(2000) < 900, 0.01).value == 0.0  # ties find none


def test_an_interval_draws_runs_and_not_records() -> None:
    """Two runs that disagree altogether: their areas are 1 and 0, and so are the ends."""
    scores, members = np.array([[0.0, 1.0], [3.0, 2.0]]), np.array([[False, True], [False, True]])
    assert interval(auc, scores, members, seed=0) == (0.0, 1.0)
    alike = np.tile([0.0, 1.0], (5, 1))
    assert interval(auc, alike, np.tile([False, True], (5, 1)), seed=0) == (1.0, 1.0)


def test_the_matrix_says_which_task_leaks_at_which_stage() -> None:
    random = np.random.default_rng(5)
    members, tasks = random.random((12, 300)) < 0.5, np.repeat([0, 1], 150)
    scores = random.standard_normal((12, 3, 300))
    scores[:, 1, :150] += 2.0 * members[:, :150]  # task 0 after stage 1, forgotten at stage 2
    found = {
        (leak.stage, leak.task): leak for leak in leak_matrix(scores, members, tasks, fpr=0.02)
    }
    assert list(found) == list(product(range(3), range(2)))
    for place, leak in found.items():
        assert leak.low <= leak.auc <= leak.high
        assert (leak.low > 0.8) == (place == (1, 0)), place
        assert leak.rate.value is not None
        assert (leak.rate.value > 0.2) == (place == (1, 0)), place
    with pytest.raises(ValueError, match="task"):
        leak_matrix(scores, members, tasks[:5])


def test_observations_that_do_not_fit_are_refused() -> None:
    good, _ = drawn(0, 1.0, records=4)
    with pytest.raises(ValueError, match="twice"):
        replace(good, records=np.array([0, 1, 1, 2]))
    with pytest.raises(ValueError, match="NaN"):
        replace(good, target=np.full(4, np.nan))
    with pytest.raises(ValueError, match="left out"):
        replace(good, members=np.ones_like(good.members))
    with pytest.raises(ValueError, match="one value"):
        replace(good, target=np.zeros(3))
    with pytest.raises(ValueError, match="offline"):
        lira(replace(good, members=np.zeros_like(good.members)))
