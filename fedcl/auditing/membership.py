"""Which records a model was trained on: scores of membership from shadow models.

Shadow models are trained as the target was, each on a random half of the records. How a record
fares under those that hold it and those that do not says what its confidence under the target
means. A threshold on the loss alone sees almost nothing of what these scores see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr
from torch import Tensor

Array = NDArray[np.float64]
MANY = 64  # shadow models from which on each record has a variance of its own
TINY = 1e-12


def confidence_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns log p(y) - log of the sum of all other p, in float64; it does not saturate.

    Args:
        logits: (..., classes), at least two classes.
        labels: (...) int64.

    Raises:
        ValueError: There is only one class.
    """
    if logits.shape[-1] < 2:
        raise ValueError("the probability of one class alone says nothing")
    wide, places = logits.double(), labels[..., None]
    others = wide.scatter(-1, places, -float("inf"))
    return (wide.gather(-1, places)[..., 0] - others.logsumexp(-1)).detach()


@dataclass(frozen=True)
class Observed:
    """What the target and the shadow models say about some records.

    Attributes:
        records: (n,) names of the records, each once.
        target: (n,) the value under the target.
        shadows: (models, n) the values under the shadow models.
        members: (models, n) which shadow models were trained on which record.

    Raises:
        ValueError: Shapes do not fit, a value is NaN, or a record is left out of no shadow model.
    """

    records: NDArray[np.int64]
    target: Array
    shadows: Array
    members: NDArray[np.bool_]

    def __post_init__(self) -> None:
        count = len(self.records)
        fits = self.target.shape == (count,) and self.shadows.shape == self.members.shape
        if not fits or self.shadows.ndim != 2 or self.shadows.shape[1] != count:
            raise ValueError("one value for each record, under the target and each shadow model")
        if len(np.unique(self.records)) != count:
            raise ValueError("a record is observed twice")
        if np.isnan(self.target).any() or np.isnan(self.shadows).any():
            raise ValueError("a value is NaN")
        if self.members.all(0).any():
            raise ValueError("some record is left out of no shadow model")


def lira(observed: Observed, online: bool = True) -> Array:
    """Returns the (n,) scores of the likelihood ratio attack, larger for members.

    Carlini et al., Membership inference attacks from first principles, 2022. Online, the score is
    the log-ratio of the normal densities of models with and without the record. Offline, which
    needs no model with it, it is minus the log-probability of a larger value without it. With fewer
    than `MANY` shadow models all records share their two variances, around each record's own mean.

    Args:
        observed: Values of `confidence_margin`.
        online: Whether to use the shadow models that hold a record.

    Raises:
        ValueError: Online, and some record is in no shadow model.
    """
    outside, wide = _normal(observed, ~observed.members)
    away = (observed.target - outside) / wide
    if not online:
        return np.asarray(-log_ndtr(-away), dtype=np.float64)
    if not observed.members.any(0).all():
        raise ValueError("some record is in no shadow model: score offline")
    inside, narrow = _normal(observed, observed.members)
    near = (observed.target - inside) / narrow
    return np.asarray(0.5 * (away**2 - near**2) + np.log(wide / narrow), dtype=np.float64)


def rmia(
    evaluated: Observed,
    population: Observed,
    gamma: float = 1.0,
    online: bool = True,
    offline_slope: float = 0.3,
) -> Array:
    """Returns the (n,) scores of the robust attack: how many others a record's ratio outdoes.

    Zarifzadeh, Liu and Shokri, Low-cost high-power membership inference attacks, 2024. A ratio is
    the probability of a record's label under the target over what is usual, p. Online, p is half of
    that with and half of that without the record, of whichever there are; offline it is
    `((1 + a) p_out + 1 - a) / 2`.

    Args:
        evaluated: Probabilities of the labels of the records in question.
        population: Those of records to compare with, none of which is evaluated: records that are
            compared with themselves and their like have too few false positives.
        gamma: How many times another record's ratio is to be outdone.
        online: Whether to use the shadow models that hold a record.
        offline_slope: The a above, in [0, 1].

    Raises:
        ValueError: A record is in both.
    """
    if np.intersect1d(evaluated.records, population.records).size:
        raise ValueError("records that are evaluated cannot be compared with")
    if not len(population.records):
        raise ValueError("there is no record to compare with")
    own = _ratios(evaluated, online, offline_slope)
    others = np.sort(_ratios(population, online, offline_slope) * gamma)
    return np.asarray(np.searchsorted(others, own, side="right") / len(others), dtype=np.float64)


def _ratios(observed: Observed, online: bool, slope: float) -> Array:
    outside = _mean(observed.shadows, ~observed.members)
    if online:
        known = observed.members.any(0)
        usual = np.where(
            known, 0.5 * (outside + _mean(observed.shadows, observed.members)), outside
        )
    else:
        usual = 0.5 * ((1.0 + slope) * outside + 1.0 - slope)
    return np.asarray(observed.target / np.maximum(usual, TINY), dtype=np.float64)


def _mean(values: Array, which: NDArray[np.bool_]) -> Array:
    """Returns the (n,) means of those that are meant, 0 where none is."""
    count = np.maximum(1, which.sum(0))
    return np.asarray(np.where(which, values, 0.0).sum(0) / count, dtype=np.float64)


def _normal(observed: Observed, which: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Returns the (n,) means and standard deviations under some of the shadow models."""
    means = _mean(observed.shadows, which)
    squares = np.where(which, (observed.shadows - means) ** 2, 0.0)
    free = which.sum(0) - 1
    if len(which) < MANY or (free < 1).any():
        variance = np.full(len(means), squares.sum() / max(1, int(free.sum())))
    else:
        variance = squares.sum(0) / free
    return means, np.sqrt(np.maximum(variance, TINY))
