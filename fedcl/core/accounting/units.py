"""The same releases for smaller units: what a client sends in one round, or in one task, alone.

A unit says which messages neighbouring runs differ in. Epsilon for a smaller one says less: it
begins anew with every round or task, and is no epsilon of the client, who takes part in all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable

from fedcl.core.accounting.ledger import Event, Ledger, Place


def client_task(ledger: Ledger, delta: float) -> float:
    """Returns the largest epsilon of what a client sends at one stage, all of it."""
    return _largest(ledger, delta, lambda event: event.stage)


def client_round(ledger: Ledger, delta: float) -> float:
    """Returns the largest epsilon of what a client sends in one round, all exchanges of it.

    What begins or ends a stage belongs to the round whose cohort it asks. Rounds of correlated
    noise are one mechanism, of which all is charged.
    """
    return _largest(ledger, delta, lambda event: (event.stage, event.draw.number))


def _largest(ledger: Ledger, delta: float, unit: Callable[[Event], Hashable]) -> float:
    parts: dict[Hashable, set[Place]] = defaultdict(set)
    for place, event in ledger.events.items():
        parts[unit(event)].add(place)
    found = [
        ledger.epsilon(delta, lambda event, own=own: event.place in own)  # type: ignore[misc]
        for own in parts.values()
    ]
    return max(found, default=ledger.epsilon(delta))
