"""Rényi divergences at whole orders, and the epsilon that they prove."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ORDERS = (*range(2, 65), 128, 256, 512, 1024)


@dataclass(frozen=True)
class Renyi:
    """A mechanism of which no more is known than its Rényi divergences.

    Attributes:
        divergences: Upper bounds at `ORDERS`; infinite where there is no protection.
        times: How often it is used.
    """

    divergences: tuple[float, ...]
    times: int = 1

    def __post_init__(self) -> None:
        if len(self.divergences) != len(ORDERS):
            raise ValueError(f"there is a divergence at each of {len(ORDERS)} orders")


def composed(mechanisms: Iterable[Renyi]) -> tuple[float, ...]:
    """Returns the divergences of all together: sums that do not depend on the order, to the bit."""
    parts = [[one.times * value for value in one.divergences] for one in mechanisms]
    return tuple(math.fsum(column) for column in zip(*parts, strict=True))


def epsilon_of_divergences(
    divergences: Sequence[float], delta: float, orders: Sequence[int] = ORDERS
) -> float:
    """Returns the least epsilon that Rényi divergences of some orders prove.

    Args:
        divergences: One per order.
        delta: Above 0 and below 1.
        orders: Above 1.
    """
    found = math.inf
    for order, divergence in zip(orders, divergences, strict=True):
        # The distance in variation is at most sqrt(1 - exp(-divergence)): Bretagnolle and Huber.
        if delta * delta + math.expm1(-divergence) > 0:
            return 0.0
        rest = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        found = min(found, divergence + rest)
    return max(found, 0.0)
