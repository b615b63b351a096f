"""How much noise a wished-for epsilon needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedcl.core.accounting.composition import Charge, epsilon

# Noise multipliers between these are looked at; less protects nothing, more drowns everything.
LEAST, MOST = 1e-2, 1e4


def multiplier(charges: Callable[[float], Sequence[Charge]], target: float, delta: float) -> float:
    """Returns the least noise multiplier that is known to keep epsilon at or below a target.

    Args:
        charges: `charges(noise_multiplier)` -> what one participant is charged; such as those of
            `fedcl.core.accounting.ledger.charges` for the events of a planned run.
        target: Largest epsilon, above 0.
        delta: Above 0 and below 1.

    Raises:
        ValueError: The target is not above 0, or no noise of at most 1e4 reaches it.
    """
    if not (math.isfinite(target) and target > 0):
        raise ValueError(f"a wished-for epsilon is above 0, not {target}")

    def over(log: float) -> float:
        spent = epsilon(charges(math.exp(log)), delta)
        # Far from the target its size does not matter, and infinity would stop the search.
        return min(spent, 1e3) / target - 1.0

    low, high = math.log(LEAST), math.log(MOST)
    if over(low) <= 0:
        return LEAST
    if over(high) > 0:
        raise ValueError(
            f"epsilon = {target:g} needs a noise multiplier above {MOST:g}: release less often, or "
            "ask for a larger epsilon"
        )
    from scipy.optimize import brentq  # not before it is needed

    found = float(brentq(over, low, high, xtol=1e-5))
    # The root may lie a hair above the target: a bound must not.
    while over(found) > 0:
        found += 1e-4
    return math.exp(found)
