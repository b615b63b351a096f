"""Attacks on every run by the others: coins that tell nothing, and scores against slow ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedcl.auditing.leakage import auc
from fedcl.auditing.membership import Observed, lira, rmia
from fedcl.auditing.targets import STATISTICS, Cell, coins, judged, pooled, scores


def cell(seed: int, gain: float, runs: int = 16, records: int = 300) -> Cell:
    random = np.random.default_rng(seed)
    members = coins(runs, records, seed)
    ease = 2.0 * random.standard_normal(records)
    margins = ease + gain * members + random.standard_normal((runs, records))
    beside = 2.0 * random.standard_normal(200) + random.standard_normal((runs, 200))
    return Cell(margins, members, beside)


def test_coins_are_fair_and_none_tells_another() -> None:
    found = coins(16, 20_000, seed=0)
    assert abs(found.mean() - 0.5) < 3 * 0.5 / math.sqrt(found.size)
    held = found.sum(0)
    assert held.min() >= 2 and held.max() <= 14 and np.unique(held).size > 8  # not balanced
    rest = held - found[0]
    assert abs(np.corrcoef(rest, found[0])[0, 1]) < 4 / math.sqrt(20_000)
    assert (coins(16, 50, 1) != coins(16, 50, 2)).any()
    with pytest.raises(ValueError, match="too few"):
        coins(7, 10, 0)


def test_each_run_is_attacked_by_the_others_alone() -> None:
    case = cell(0, 2.0, runs=9, records=20)
    for target in range(9):
        others = [run for run in range(9) if run != target]
        margins, members = case.margins, case.members
        names = np.arange(20)
        own = Observed(names, margins[target], margins[others], members[others])
        np.testing.assert_allclose(scores(case, "lira")[target], lira(own), atol=1e-12)
        p, q = 1 / (1 + np.exp(-margins)), 1 / (1 + np.exp(-case.population))
        sure = Observed(names, p[target], p[others], members[others])
        none = np.zeros((8, 200), dtype=bool)
        beside = Observed(np.arange(100, 300), q[target], q[others], none)
        np.testing.assert_allclose(scores(case, "rmia")[target], rmia(sure, beside), atol=1e-12)
    np.testing.assert_array_equal(scores(case, "loss"), case.margins)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_nothing_to_find_is_found_nowhere(statistic: str) -> None:
    """Area .5, 1 % at 1 %, .1 % at .1 %: each within 3 standard errors."""
    found = pooled([cell(seed, 0.0) for seed in range(8)], statistic, seed=0)
    count, area, negatives = 8 * 16 * 300, found["auc"], found["negatives"]
    assert isinstance(area, float) and isinstance(negatives, int) and negatives > 10_000
    inside = count - negatives
    assert abs(area - 0.5) <= 3 * math.sqrt((count + 1) / (12 * inside * negatives))
    for name, share in (("tpr_1", 0.01), ("tpr_01", 0.001)):
        rate = found[name]
        error = math.sqrt(share * (1 - share) * (1 / inside + 1 / negatives))
        assert isinstance(rate, float)
        # Ranks among 200 have ties, which find none: less than the share, but never more.
        assert rate - share <= 3 * error
        assert statistic == "rmia" or share - rate <= 3 * error


def test_what_stands_out_is_found_and_summarised() -> None:
    case = cell(3, 3.0)
    found = judged(case, "lira", seed=0)
    wanted = auc(scores(case, "lira").ravel(), case.members.ravel())
    assert found["auc"] == wanted > 0.9
    low, high, spread = found["auc_low"], found["auc_high"], found["auc_std"]
    assert isinstance(low, float) and isinstance(high, float) and isinstance(spread, float)
    assert low < wanted < high and 0 < spread < 0.05
    assert found["negatives"] == (~case.members).sum()
    assert found["tpr_01"] is None and found["tpr_1"] is not None
    assert found == pooled([case], "lira", seed=0)


def test_answers_without_an_alternative_tell_nothing() -> None:
    members = coins(8, 50, 0)
    case = Cell(np.full((8, 50), np.inf), members, np.full((8, 20), np.inf))
    for statistic in STATISTICS:
        assert judged(case, statistic, 0, draws=5)["auc"] == 0.5
