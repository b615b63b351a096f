"""How much privacy is spent: the (epsilon, delta) that a list of mechanisms guarantees.

The headline is the privacy loss distribution of dp-accounting: an upper bound that is tight to some
thousandths. Beside it stands an upper bound of our own by Rényi divergences, which is looser, needs
nothing but SciPy, and must never lie below; where discrete noise is among the mechanisms it is all
that is known, and both are this one. Neighbours differ by one contribution that is added or
removed; a contribution that is replaced by another one has twice the sensitivity.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fedcl.core.errors import ConfigError
from fedcl.core.privacy.renyi import ORDERS as ORDERS
from fedcl.core.privacy.renyi import Renyi, composed
from fedcl.core.privacy.renyi import epsilon_of_divergences as epsilon_of_divergences

INTERVAL = 1e-3
# A loss distribution has a point for each INTERVAL of the loss. What lies beyond protects nothing,
# and there the bound by Rényi divergences is as good as any.
TOO_LARGE = 500.0
NO_NOISE = 1e-100  # its square is still a number

Canonical = tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Charge:
    """A Gaussian mechanism on a sum to which a participant contributes a norm of at most 1.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the sensitivity; 0: no protection.
        rate: Probability of a participant to be in a sum, independent of all others; 1: no
            sampling. A sample of fixed size is not such a sample.
        times: How often the mechanism is used.
    """

    noise_multiplier: float
    rate: float = 1.0
    times: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ValueError(f"a noise multiplier is 0 or more, not {self.noise_multiplier}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"a rate is above 0 and at most 1, not {self.rate}")
        if isinstance(self.times, bool) or not isinstance(self.times, int) or self.times < 0:
            raise ValueError(f"a mechanism is used 0 times or more, not {self.times!r}")


def epsilon(charges: Sequence[Charge | Renyi], delta: float) -> float:
    """Returns the least epsilon that is known to hold for all charges together.

    It is exact where nothing is sampled, and else an upper bound, by the privacy loss distribution;
    that of `epsilon_rdp` where a mechanism is known by its Rényi divergences alone.
    The result does not depend on the order of the charges, to the bit.

    Args:
        charges: What one participant was part of.
        delta: Above 0 and below 1.

    Returns:
        0 without charges, infinity where a charge has no noise.

    Raises:
        ConfigError: Something is sampled, and the package dp-accounting is missing.
        ValueError: `delta` is out of range.
    """
    return _bound(_canonical(charges), _checked(delta), exact=True, known=_known(charges))


def epsilon_rdp(charges: Sequence[Charge | Renyi], delta: float) -> float:
    """Returns a looser epsilon by Rényi divergences of integer orders; never below `epsilon`.

    Source: Mironov, Talwar and Zhang, Rényi differential privacy of the sampled Gaussian mechanism
    (arXiv:1908.10530), section 3.3; conversion by proposition 12 of Canonne, Kamath and Steinke
    (arXiv:2004.00010).

    Args:
        charges: What one participant was part of.
        delta: Above 0 and below 1.

    Raises:
        ValueError: `delta` is out of range.
    """
    return _bound(_canonical(charges), _checked(delta), exact=False, known=_known(charges))


def _checked(delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta is above 0 and below 1, not {delta}")
    return float(delta)


def _known(charges: Iterable[Charge | Renyi]) -> tuple[float, ...]:
    return composed(charge for charge in charges if isinstance(charge, Renyi) and charge.times)


def _canonical(charges: Iterable[Charge | Renyi]) -> Canonical:
    """Returns (noise multiplier, rate, times) of equal charges together, in order of size."""
    counted: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        if isinstance(charge, Renyi):
            continue
        counted[float(charge.noise_multiplier), float(charge.rate)] += charge.times
    return tuple((*key, times) for key, times in sorted(counted.items()) if times)


@lru_cache(maxsize=4096)
def _bound(charges: Canonical, delta: float, exact: bool, known: tuple[float, ...]) -> float:
    if not charges and not known:
        return 0.0
    if charges and charges[0][0] < NO_NOISE:
        return math.inf
    # Sums of Gaussian mechanisms without sampling are one Gaussian mechanism.
    plain = math.sqrt(math.fsum(times * (1 / noise) ** 2 for noise, q, times in charges if q == 1))
    sampled = tuple(charge for charge in charges if charge[1] < 1)
    if exact and not sampled and not known:
        return _gaussian_epsilon(plain, delta)
    totals = np.array(ORDERS) * plain**2 / 2 + np.array(known or 0.0)
    for noise, rate, times in sampled:
        totals = totals + times * _divergences(noise, rate)
    loose = epsilon_of_divergences(totals.tolist(), delta)
    if not exact or known or not 0 < loose <= TOO_LARGE:
        return loose
    losses = [_losses(*charge) for charge in sampled]
    if plain:
        losses.append(_losses(1 / plain, 1.0, 1))
    composed = losses[0]
    for more in losses[1:]:
        composed = composed.compose(more)
    return min(loose, max(0.0, float(composed.get_epsilon_for_delta(delta))))


def _gaussian_epsilon(mean: float, delta: float) -> float:
    """Returns epsilon of telling N(mean, 1) from N(0, 1) (Balle and Wang, arXiv:1805.06530)."""
    most = mean**2 / 2 + mean * math.sqrt(-2 * math.log(delta))
    if mean < delta or mean > 1e4:  # less than nothing; more than numbers can tell apart
        return 0.0 if mean < delta else most
    from scipy.optimize import brentq  # a device, where each message is a new process, needs none
    from scipy.special import log_ndtr

    def excess(found: float) -> float:
        one = log_ndtr(mean / 2 - found / mean)
        other = found + log_ndtr(-mean / 2 - found / mean)
        # Where rounding makes the two equal, nothing is left.
        rest = math.log(-math.expm1(other - one)) if other < one else -math.inf
        return max(float(one + rest), -1e300) - math.log(delta)

    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, most, xtol=1e-12))


@lru_cache(maxsize=2**16)
def _divergences(noise: float, rate: float) -> Any:
    """Returns the Rényi divergences of the sampled Gaussian mechanism at `ORDERS`."""
    order, k, ways, first = _binomials()
    terms = ways + k * math.log(rate) + (order - k) * math.log1p(-rate)
    terms += k * (k - 1) * (1 / noise) ** 2 / 2
    top = np.maximum.reduceat(terms, first)
    sums = np.add.reduceat(np.exp(terms - np.repeat(top, np.array(ORDERS) + 1)), first)
    return np.maximum(top + np.log(sums), 0.0) / (np.array(ORDERS) - 1)


@cache
def _binomials() -> tuple[Any, Any, Any, Any]:
    """Returns order, k and the logarithm of (order over k), order by order; where each begins."""
    from scipy.special import gammaln

    order = np.concatenate([np.full(a + 1, float(a)) for a in ORDERS])
    k = np.concatenate([np.arange(a + 1.0) for a in ORDERS])
    ways = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    return order, k, ways, np.flatnonzero(k == 0)


@lru_cache(maxsize=64)
def _losses(noise: float, rate: float, times: int) -> Any:
    if times > 1:
        return _losses(noise, rate, 1).self_compose(times)
    try:
        from dp_accounting.pld import privacy_loss_distribution
    except ImportError as error:
        raise ConfigError(
            f"no privacy accounting of samples without {error.name}: pip install 'fedcl[privacy]'"
        ) from error
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise, value_discretization_interval=INTERVAL, sampling_prob=rate
    )
