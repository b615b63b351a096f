"""Distributed noise: whole numbers and shares of noise that clients put into a secure sum.

A client clips its reply, multiplies it by a scale, rounds it conditionally, adds its share of
discrete noise, and takes the result modulo 2**bits (`fedcl.core.privacy.discrete`). The scale is
the finest at which the sum of all clients does not wrap: n replies of at most `clip` in every
number, rounded, and noise below sqrt(2 TAIL V) + TAIL / 3 for a variance V of n shares. Discrete
Gaussian noise is sub-Gaussian and Skellam noise sub-gamma with c = 1/3 (Boucheron, Lugosi and
Massart, Concentration inequalities, section 2.4), so that a number of a sum wraps with a
probability below 2 exp(-TAIL). Wrapping is post-processing: it would cost accuracy, and no privacy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedcl.core.errors import ConfigError
from fedcl.core.params import Params
from fedcl.core.privacy.clipping import clipped
from fedcl.core.privacy.discrete import (
    discrete_gaussian,
    gaussian_divergences,
    inflated,
    rounded,
    skellam,
    skellam_divergences,
    wrapped,
)
from fedcl.core.privacy.noise import generator
from fedcl.core.privacy.renyi import ORDERS, Renyi

Kind = Literal["discrete_gaussian", "skellam"]

TAIL = 41.0  # a number of a sum wraps with a probability below 2 exp(-41) < 4e-18
LEAST_SIGMA = 0.5  # below, the bound for sums of discrete Gaussians is not proven
EXACT = 2**53  # whole numbers that sums in doubles hold
_SLACK = 1 + 1e-9  # what doubles may be wrong by in the square of a norm


@dataclass(frozen=True)
class Shares:
    """What is agreed of the noise of a distributed mechanism.

    Attributes:
        kind: Distribution of a share.
        bits: Sums are made modulo 2**bits.
        survivors: Share of the clients asked that must answer: their noise is what is promised.
    """

    kind: Kind
    bits: int
    survivors: float

    def least(self, expected: int) -> int:
        """Returns how many of the clients asked must answer."""
        return max(1, math.ceil(self.survivors * expected - 1e-9))


@dataclass(frozen=True)
class Discrete:
    """Discrete noise in one sum, as its Rényi divergences need it.

    Attributes:
        kind: Distribution of a share.
        norm: Largest Euclidean norm of a client's whole numbers.
        dimension: Numbers in a reply.
        variance: Parameter of each share: sigma squared, or the variance of a Skellam variable.
        shares: Shares that are in the sum at least.
    """

    kind: str
    norm: float
    dimension: int
    variance: float
    shares: int

    def divergences(self) -> tuple[float, ...]:
        """Returns upper bounds at `ORDERS`; infinite without noise."""
        return _divergences(self)


@lru_cache(maxsize=4096)
def _divergences(noise: Discrete) -> tuple[float, ...]:
    if noise.variance == 0:
        return (math.inf,) * len(ORDERS)
    if noise.kind == "skellam":
        total = noise.variance * noise.shares
        return tuple(skellam_divergences(ORDERS, noise.norm, noise.dimension, total))
    sigma = math.sqrt(noise.variance)
    return tuple(gaussian_divergences(ORDERS, noise.norm, noise.dimension, sigma, noise.shares))


def charge_of(noises: Mapping[Discrete, int]) -> list[Renyi]:
    """Returns what sums with such noise cost, each used so many times."""
    return [Renyi(noise.divergences(), times) for noise, times in noises.items()]


@dataclass(frozen=True)
class Plan:
    """How replies of one exchange become whole numbers, the same for its server and clients.

    Attributes:
        shares: What is agreed.
        clip: Largest norm of a reply.
        scale: Whole numbers in a unit.
        variance: Parameter of each client's noise, in whole numbers.
        least: Clients that must answer.
    """

    shares: Shares
    clip: float
    scale: float
    variance: float
    least: int

    def norm(self, dimension: int) -> float:
        """Returns the largest norm of a client's whole numbers: rounding may add to it."""
        return inflated(self.scale * self.clip, dimension)

    def discrete(self, dimension: int) -> Discrete:
        """Returns the noise in a sum of replies with so many numbers."""
        norm = self.norm(dimension) * _SLACK
        return Discrete(self.shares.kind, norm, dimension, self.variance, self.least)


def plan(shares: Shares, clip: float, noise_multiplier: float, expected: int) -> Plan:
    """Returns how replies of an exchange become whole numbers.

    Args:
        shares: What is agreed.
        clip: Largest norm of a reply.
        noise_multiplier: Standard deviation over `clip` of the noise of those who must answer.
        expected: Clients that are asked: no more answer.

    Raises:
        ConfigError: So few bits hold no such sum, or more than a double holds.
    """
    expected = max(1, expected)  # nobody is asked where nobody has data
    least, half = shares.least(expected), 1 << (shares.bits - 1)
    if expected * half > EXACT:
        raise ConfigError(
            f"[[channel]] bits = {shares.bits} for {expected} clients makes sums that a double "
            f"does not hold: at most {int(math.log2(EXACT / expected)) + 1} bits, or fewer clients"
        )
    room = half - 1 - expected - TAIL / 3
    spread = noise_multiplier * math.sqrt(2 * TAIL * expected / least)
    scale = room / (clip * (expected + spread))
    sigma = scale * clip * noise_multiplier / math.sqrt(least)
    if room <= 0 or 0 < sigma < LEAST_SIGMA:
        raise ConfigError(
            f"[[channel]] bits = {shares.bits} has no room for the sum of {expected} clients and "
            f"noise of {noise_multiplier:g} times the clip: raise bits"
        )
    return Plan(shares, clip, scale, sigma**2, least)


def encoded(plan: Plan, tensors: Params, key: bytes) -> dict[str, Tensor]:
    """Returns what a client sends: whole numbers modulo 2**bits, with its share of noise.

    Args:
        plan: How.
        tensors: The reply; what holds a NaN or is no floating tensor counts as zeros, with noise.
        key: 32 bytes that only this client knows, new in every exchange.

    Returns:
        int32 tensors of the same names and shapes.
    """
    bounded = clipped(tensors, plan.clip)
    flat = [value.detach().double().flatten().cpu().numpy() for value in bounded.values()]
    values = np.concatenate([np.zeros(0), *flat]) * plan.scale
    whole = rounded(generator(key, "rounding"), values, plan.norm(len(values)))
    whole = wrapped(whole + _noise(plan, len(values), key), plan.shares.bits)
    found, start = {}, 0
    for name, value in bounded.items():
        part = torch.from_numpy(whole[start : start + value.numel()].astype(np.int32))
        found[name] = part.view(value.shape).to(value.device)
        start += value.numel()
    return found


def _noise(plan: Plan, size: int, key: bytes) -> np.ndarray:
    if plan.variance == 0:
        return np.zeros(size, dtype=np.int64)
    own = generator(key, "noise")
    if plan.shares.kind == "skellam":
        return skellam(own, size, plan.variance)
    return discrete_gaussian(own, size, math.sqrt(plan.variance))


def in_ring(value: Tensor, bits: int) -> Tensor:
    """Returns whole numbers modulo 2**bits, as the representatives around zero.

    Args:
        value: Float64; what is no whole number is rounded to one.
        bits: Of the modulus.
    """
    half = 2.0 ** (bits - 1)
    return torch.remainder(value.round() + half, 2 * half) - half


def decoded(plan: Plan, total: Params) -> dict[str, Tensor]:
    """Returns the sum that whole numbers modulo 2**bits stand for, in float64.

    Args:
        plan: How it was made.
        total: The sum of what clients sent, in float64.
    """
    bits, scale = plan.shares.bits, plan.scale
    return {name: in_ring(value, bits) / scale for name, value in total.items()}
