"""Whether the noise that was added is the noise that was claimed: tests on one release, or on many.

Where the clean sum can be computed again, `(released - clean) / scale` must be standard Gaussian
noise, independent of that of any other release. Its size is tested by the chi-square law of its
squared norm, its shape by Kolmogorov and Smirnov's test, its independence by correlations. Of these
no one replaces another: uniform noise of the right size has the right norm, and noise that is
repeated in each round is right in each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.stats import chi2, kstest, norm
from torch import Tensor

from fedcl.core.params import Params

LEVEL = 1e-3  # of false alarms, for each test in each of its tails
TOTAL = "total"
DEVIATIONS = 5.0  # of a correlation of independent noise, which only 6 in 10 million exceed


@dataclass(frozen=True)
class Verdict:
    """What the noise of one layer looks like, or that of all layers together.

    Attributes:
        layer: Name of the layer, or `TOTAL`.
        numbers: How many numbers there are.
        spread: Root mean square of the noise over what is claimed; 1 where the claim is right.
        chi_square: Probability of a squared norm at least as large as the one found, if the claim
            is right: near 0 there is too much noise, near 1 too little.
        kolmogorov_smirnov: Probability of a distribution at least as far from the claimed one.
        level: Probability below which a test rejects the claim.
    """

    layer: str
    numbers: int
    spread: float
    chi_square: float
    kolmogorov_smirnov: float
    level: float

    @property
    def faults(self) -> tuple[str, ...]:
        """Returns what is wrong, in words; nothing if the claim stands."""
        found = []
        if not self.chi_square <= 1.0 - self.level:
            found.append("too little noise")
        if not self.chi_square >= self.level:
            found.append("too much noise")
        if not self.kolmogorov_smirnov >= self.level:
            found.append("not the claimed Gaussian noise")
        return tuple(found)


@dataclass(frozen=True)
class Dependence:
    """How two releases' noise goes together.

    Attributes:
        first: Name of a release.
        second: Name of another one.
        correlation: Cosine of the angle between their noise.
        bound: What independent noise does not exceed.
    """

    first: str
    second: str
    correlation: float
    bound: float

    @property
    def independent(self) -> bool:
        """Returns whether the two may well be independent."""
        return abs(self.correlation) <= self.bound


def residual(released: Params, clean: Params, scale: float) -> dict[str, Tensor]:
    """Returns the noise of a release in units of its claimed standard deviation, in float64.

    Args:
        released: What was sent; only floating tensors are looked at.
        clean: The sum before the noise, of the same names and shapes.
        scale: The claimed standard deviation, above 0.

    Raises:
        ValueError: The scale is no positive number, or names or shapes differ.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"the scale of noise is above 0, not {scale}")
    if released.keys() != clean.keys():
        raise ValueError(f"layers differ: {sorted(released.keys() ^ clean.keys())}")
    found = {}
    for name, value in released.items():
        if value.shape != clean[name].shape:
            raise ValueError(f"shapes of {name!r} differ")
        if value.is_floating_point():
            found[name] = (value.detach().double() - clean[name].detach().double()).cpu() / scale
    return found


def judged(noise: Params, level: float = LEVEL) -> tuple[Verdict, ...]:
    """Returns the verdict on all layers together, then on each; the layers share the level.

    Args:
        noise: Of one release, in units of its claimed standard deviation (`residual`).
        level: Probability below which a test rejects the claim.

    Raises:
        ValueError: There is no number at all.
    """
    parts = {name: value.flatten().numpy() for name, value in noise.items() if value.numel()}
    if not parts:
        raise ValueError("a release without numbers has no noise to judge")
    total = _verdict(TOTAL, np.concatenate(list(parts.values())), level)
    share = level / len(parts)
    return (total, *(_verdict(name, part, share) for name, part in parts.items()))


def dependences(noise: Mapping[str, Params]) -> tuple[Dependence, ...]:
    """Returns how the noise of each two releases goes together, such as rounds' or clients'.

    Args:
        noise: The noise by the name of a release, all of the same layers, whatever its units.

    Raises:
        ValueError: The releases have different numbers of numbers.
    """
    rows = [torch.cat([v.detach().double().flatten() for v in p.values()]) for p in noise.values()]
    if len({len(row) for row in rows}) > 1:
        raise ValueError("releases of different sizes cannot be compared")
    if not rows:
        return ()
    stacked = torch.stack(rows)
    # A release without any noise depends on none; that it has none is for the chi-square to say.
    lengths = stacked.norm(dim=1, keepdim=True)
    unit = stacked / torch.where(lengths > 0, lengths, 1.0)
    cosines = unit @ unit.T
    bound = DEVIATIONS / math.sqrt(max(1, stacked.shape[1]))
    return tuple(
        Dependence(one, other, float(cosines[i, j]), bound)
        for (i, one), (j, other) in combinations(enumerate(noise), 2)
    )


def _verdict(layer: str, numbers: np.ndarray, level: float) -> Verdict:
    count = numbers.size
    if not np.isfinite(numbers).all():
        return Verdict(layer, count, math.inf, 0.0, 0.0, level)
    squares = float(np.square(numbers).sum())
    shape = float(kstest(numbers, norm.cdf).pvalue)
    spread = math.sqrt(squares / count)
    return Verdict(layer, count, spread, float(chi2.sf(squares, count)), shape, level)
