"""Clips that follow a quantile of the replies' norms, under one Gaussian mechanism.

Andrew, Thakkar, McMahan and Ramaswamy, Differentially private learning with adaptive clipping,
NeurIPS 2021 (arXiv 1905.03871): b says whether a reply was within the clip C_t, the noisy mean of b
is compared with the wished-for share gamma of unclipped replies, and the clip of the next round is
C_t exp(-eta (mean - gamma)).

The paper releases the sum of changes and the count by two mechanisms of noise z_D C and s, which
cost together as much as one of z = (z_D^-2 + (2 s)^-2)^(-1/2) (theorem 1 there). Here they are one
mechanism: a client sends its clipped change and the number t (b - 1/2) beside it, a vector of norm
at most S = sqrt(C^2 + t^2 / 4), and each number of the sum gets noise of z S. With
t^2 = z^2 C^2 / (s^2 - z^2 / 4) the noise in the count is z S / t = s, and that in the change
z S = z_D C, since z^2 (C^2 + t^2 / 4) = s^2 t^2. So epsilon depends on z alone.
"""

from __future__ import annotations

import math

from fedcl.core.errors import ConfigError

LEAST, MOST = 1e-12, 1e12  # a clip that nothing stops must stay a number


def count_weight(clip: float, noise_multiplier: float, spread: float) -> float:
    """Returns t: what the count weighs beside a change.

    Args:
        clip: C, above 0.
        noise_multiplier: z of the whole mechanism; without noise any weight will do.
        spread: s, the standard deviation of the noise in the number of unclipped replies.

    Raises:
        ConfigError: z is not below 2 s: so little noise in the count costs more than all there is.
    """
    if not noise_multiplier:
        return clip
    if noise_multiplier >= 2 * spread:
        raise ConfigError(
            f"[[channel]] noise_multiplier = {noise_multiplier:g} must be below twice the noise in "
            f"the number of unclipped replies, which is {spread:g}: raise count_noise or the "
            "cohort, or set quantile = 0"
        )
    return noise_multiplier * clip / math.sqrt(spread**2 - noise_multiplier**2 / 4)


def unclipped_share(total: float, weight: float, expected: int) -> float:
    """Returns the noisy share of unclipped replies; who did not answer counts as a half.

    Args:
        total: The noisy sum of t (b - 1/2).
        weight: t.
        expected: Clients asked on average: public, unlike the number of those who answered.
    """
    return total / (weight * expected) + 0.5


def followed(clip: float, share: float, quantile: float, rate: float) -> float:
    """Returns C_(t+1) = C_t exp(-eta (share - gamma)): too few unclipped replies raise the clip."""
    return min(max(clip * math.exp(-rate * (share - quantile)), LEAST), MOST)
