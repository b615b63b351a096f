"""How well scores tell members from others: rates, areas, and a matrix over tasks and stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Statistic = Callable[[Array, Flags], float]
LEAST = 10  # false positives that a rate must allow, so that it is more than a few records' luck


@dataclass(frozen=True)
class Rate:
    """A rate of true positives at a rate of false positives.

    Attributes:
        value: The rate; None where there are too few records to tell.
        negatives: How many records were no members.
        note: Why there is no value, or nothing.
    """

    value: float | None
    negatives: int
    note: str = ""


@dataclass(frozen=True)
class Leak:
    """How the records of a task leak from the model after a stage.

    Attributes:
        stage: Counts from 0.
        task: As the records are labelled.
        auc: Area under the curve; 0.5 is no leak.
        low: Lower end of its interval over target runs.
        high: Upper end.
        rate: True positives at a low rate of false positives.
    """

    stage: int
    task: int
    auc: float
    low: float
    high: float
    rate: Rate


def auc(scores: ArrayLike, members: ArrayLike) -> float:
    """Returns the probability that a member's score is larger than another's, ties counting half.

    It is NaN where there are no members, or only members.

    Args:
        scores: (n,), larger for members.
        members: (n,) who is one.
    """
    values, flags = _checked(scores, members)
    inside, outside = int(flags.sum()), int((~flags).sum())
    if not inside or not outside:
        return float("nan")
    ranks = float(rankdata(values)[flags].sum())
    return (ranks - inside * (inside + 1) / 2) / (inside * outside)


def tpr_at_fpr(scores: ArrayLike, members: ArrayLike, fpr: float, least: int = LEAST) -> Rate:
    """Returns the rate of members found where at most a share of the others is taken for members.

    Args:
        scores: (n,), larger for members.
        members: (n,) who is one.
        fpr: The share, in (0, 1).
        least: How many false positives the share must allow: with 10, a share of 1 % takes 1,000
            records that are no members.
    """
    values, flags = _checked(scores, members)
    if not 0 < fpr < 1:
        raise ValueError(f"a rate of false positives lies between 0 and 1, not {fpr}")
    outside, inside = np.sort(values[~flags])[::-1], values[flags]
    # A little more than a product such as 0.1 * 30 = 3, which a double may hold as less.
    allowed = int(fpr * outside.size * (1 + 1e-12))
    if allowed < least:
        needed = f"{least / fpr:.0f} are needed at a rate of {fpr:g}"
        return Rate(None, outside.size, f"{outside.size} records that are no members: {needed}")
    if not inside.size:
        return Rate(None, outside.size, "there are no members")
    return Rate(float((inside > outside[allowed]).mean()), outside.size)


def interval(
    statistic: Statistic,
    scores: ArrayLike,
    members: ArrayLike,
    seed: int,
    confidence: float = 0.95,
    draws: int = 200,
) -> tuple[float, float]:
    """Returns a bootstrap interval of a statistic over target runs, which are drawn as a whole.

    Records of one run share its model, so that they must not be drawn one by one.

    Args:
        statistic: Of scores and members, both flat.
        scores: (runs, records).
        members: (runs, records).
        seed: Decides the draws.
        confidence: Share of the draws between the two ends.
        draws: How often the runs are drawn anew.
    """
    values, flags = _checked(scores, members)
    if values.ndim != 2 or not len(values):
        raise ValueError("an interval takes scores of shape (runs, records)")
    random = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = random.integers(len(values), size=len(values))
        found.append(statistic(values[drawn].ravel(), flags[drawn].ravel()))
    low, high = np.quantile(found, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def leak_matrix(
    scores: ArrayLike,
    members: ArrayLike,
    tasks: ArrayLike,
    fpr: float = 0.01,
    seed: int = 0,
    draws: int = 200,
) -> tuple[Leak, ...]:
    """Returns how each task's records leak from each stage's model, all target runs together.

    Args:
        scores: (runs, stages, records), larger for members.
        members: (runs, records) who was one.
        tasks: (records,) the task of each record.
        fpr: Of the rate of true positives.
        seed: Decides the draws of the intervals.
        draws: Of each interval.

    Returns:
        Stage by stage, and task by task within.
    """
    values, flags = np.asarray(scores, dtype=np.float64), np.asarray(members, dtype=bool)
    labels = np.asarray(tasks)
    if values.ndim != 3 or flags.shape != (values.shape[0], values.shape[2]):
        raise ValueError("scores are (runs, stages, records), members (runs, records)")
    if labels.shape != values.shape[2:]:
        raise ValueError("each record has one task")
    found = []
    for stage in range(values.shape[1]):
        for task in np.unique(labels):
            part, own = values[:, stage, labels == task], flags[:, labels == task]
            low, high = interval(auc, part, own, seed, draws=draws)
            rate = tpr_at_fpr(part.ravel(), own.ravel(), fpr)
            found.append(Leak(stage, int(task), auc(part.ravel(), own.ravel()), low, high, rate))
    return tuple(found)


def _checked(scores: ArrayLike, members: ArrayLike) -> tuple[Array, Flags]:
    values, flags = np.asarray(scores, dtype=np.float64), np.asarray(members, dtype=bool)
    if values.shape != flags.shape:
        raise ValueError(f"{values.shape} scores and {flags.shape} members")
    if np.isnan(values).any():
        raise ValueError("a score is NaN")
    return values, flags
