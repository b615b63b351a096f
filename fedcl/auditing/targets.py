"""Each run the target of an attack that knows all other runs: coins, scores, and what they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from fedcl.auditing.leakage import auc, interval, tpr_at_fpr
from fedcl.auditing.membership import Array, Observed, lira, rmia

STATISTICS = ("lira", "rmia", "loss")
RATES: Mapping[str, float] = {"tpr_01": 0.001, "tpr_1": 0.01}  # at which false positives
LEAST = 8  # runs: with fewer, a record's coin would follow from those that are known
SURE = 1e6  # margin of an answer without an alternative


@dataclass(frozen=True)
class Cell:
    """What all runs say, after one stage, about one task's records.

    Attributes:
        margins: (runs, n) values of `confidence_margin` of the audited records.
        members: (runs, n) which run was trained on which record.
        population: (runs, m) margins of records that no run was trained on: what RMIA compares
            with. They are nobody's evaluated records, members or not.
    """

    margins: Array
    members: NDArray[np.bool_]
    population: Array


def coins(runs: int, records: int, seed: int) -> NDArray[np.bool_]:
    """Returns (runs, records) fair coins: which run is trained on which record.

    A record whose coins leave fewer than two runs with it, or fewer than two without, is drawn
    again, so that each target has both among the others. The coins are not balanced: then the
    target's would follow from the others'.

    Raises:
        ValueError: There are fewer than `LEAST` runs.
    """
    if runs < LEAST:
        raise ValueError(f"{runs} runs are too few to attack each by the others: take {LEAST}")
    random = np.random.default_rng(seed)
    found = random.random((runs, records)) < 0.5
    while True:
        held = found.sum(0)
        bad = (held < 2) | (held > runs - 2)
        if not bad.any():
            return found
        found[:, bad] = random.random((runs, int(bad.sum()))) < 0.5


def scores(cell: Cell, statistic: str) -> Array:
    """Returns the (runs, n) scores of an attack on each run that knows all others.

    Args:
        cell: What the runs say.
        statistic: `lira` (online), `rmia` (online, compared with the population) or `loss`, the
            confidence alone.
    """
    margins = np.clip(cell.margins, -SURE, SURE)
    if statistic == "loss":
        return margins
    population = np.clip(cell.population, -SURE, SURE)
    return np.stack(
        [
            _score(statistic, target, margins, cell.members, population)
            for target in range(len(margins))
        ]
    )


def _score(
    statistic: str, target: int, margins: Array, members: NDArray[np.bool_], population: Array
) -> Array:
    others = np.arange(len(margins)) != target
    names = np.arange(margins.shape[1] + population.shape[1])
    own, rest = names[: margins.shape[1]], names[margins.shape[1] :]
    if statistic == "lira":
        return lira(Observed(own, margins[target], margins[others], members[others]))
    sure, usual = expit(margins), expit(population)
    nobody = np.zeros(usual[others].shape, dtype=np.bool_)
    return rmia(
        Observed(own, sure[target], sure[others], members[others]),
        Observed(rest, usual[target], usual[others], nobody),
    )


def judged(
    cell: Cell, statistic: str, seed: int, draws: int = 200
) -> dict[str, float | int | None]:
    """Returns how well an attack tells members from others, all targets together.

    `auc` has a bootstrap interval over targets; `auc_std` is the standard deviation of the areas of
    single targets. Rates of true positives are None where there are too few negatives for them.
    Two runs attack each other with one pair of answers: where there is nothing to find, LiRA's area
    spreads 1.5 times as wide as that of independent scores, which the interval leaves out in part.

    Args:
        cell: What the runs say.
        statistic: The attack.
        seed: Decides the draws of the interval.
        draws: Of the interval.
    """
    return _judged([(scores(cell, statistic), cell.members)], seed, draws)


def pooled(cells: Sequence[Cell], statistic: str, seed: int) -> dict[str, float | int | None]:
    """Returns the same of several groups of runs, each attacked by its own group."""
    return _judged([(scores(cell, statistic), cell.members) for cell in cells], seed, 200)


def _judged(
    groups: Sequence[tuple[Array, NDArray[np.bool_]]], seed: int, draws: int
) -> dict[str, float | int | None]:
    values = np.concatenate([found for found, _ in groups])
    members = np.concatenate([own for _, own in groups])
    low, high = interval(auc, values, members, seed, draws=draws)
    rates = {n: tpr_at_fpr(values.ravel(), members.ravel(), f) for n, f in RATES.items()}
    single = [auc(one, own) for one, own in zip(values, members, strict=True)]
    return {
        "auc": auc(values.ravel(), members.ravel()),
        "auc_low": low,
        "auc_high": high,
        "auc_std": float(np.std(single, ddof=1)),
        **{name: rate.value for name, rate in rates.items()},
        "negatives": int((~members).sum()),
    }
