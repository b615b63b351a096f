"""What releases cost a client that takes part in all that it is asked for.

Events that share one draw of the cohort are one mechanism whose sample was drawn once: their noise
is combined before sampling is credited (amplification for each of them alone would claim too much).
A round that is asked again draws its cohort anew.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace

from fedcl.core.accounting.composition import Charge
from fedcl.core.accounting.events import Event
from fedcl.core.privacy.banded import coefficients, sensitivity, separation_of
from fedcl.core.privacy.distributed import Discrete, charge_of
from fedcl.core.privacy.renyi import Renyi, composed


def charges(events: Iterable[Event]) -> list[Charge | Renyi]:
    """Returns what events cost a client that takes part in whatever it is asked for.

    A fixed-size sample is credited nothing: whether a client is in it depends on the others. In
    turns, a client is asked at most as often in a stage as its turn can come from the first to the
    last of these rounds. Rounds of correlated noise are one mechanism, which is charged whole with
    its first release.
    """
    events = list(events)
    found = _discrete(event for event in events if event.discrete is not None)
    events = [event for event in events if event.discrete is None]
    whole = filter(_banded, events)
    banded = {(e.stage, e.noise_multiplier, replace(e.draw, number=0)) for e in whole}
    events = [event for event in events if not _banded(event)]
    drawn: dict[tuple[int, int, int], list[Event]] = defaultdict(list)
    turns: dict[tuple[int, int, int], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        draw, strength = event.draw, _strength(event)
        if draw.how == "poisson":
            drawn[event.stage, draw.number, event.attempt].append(event)
        elif draw.how == "round_robin":
            turns[event.stage, draw.members, draw.expected][draw.number] += strength
        else:
            found.append(Charge(event.noise_multiplier))
    for together in drawn.values():
        multiplier = _multiplier(sum(map(_strength, together)))
        draw = together[0].draw
        found.append(Charge(multiplier, draw.expected / draw.members))
    for _, multiplier, draw in sorted(banded, key=repr):
        apart = separation_of(draw.members, draw.expected)
        found.append(Charge(multiplier / sensitivity(coefficients(draw.bands), draw.rounds, apart)))
    for (_, members, expected), strengths in turns.items():
        times = _times(strengths, members, expected)
        found.append(Charge(_multiplier(max(strengths.values())), 1.0, times))
    return found


def _discrete(events: Iterable[Event]) -> list[Charge | Renyi]:
    """Returns what sums with discrete noise cost a client: all of them, or one in each turn."""
    found: Counter[Discrete] = Counter()
    turns: dict[tuple[int, int, int], dict[int, list[Renyi]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for event in events:
        assert event.discrete is not None
        draw = event.draw
        if draw.how == "round_robin":
            own = Renyi(event.discrete.divergences())
            turns[event.stage, draw.members, draw.expected][draw.number].append(own)
        else:
            found[event.discrete] += 1
    costs: list[Charge | Renyi] = [*charge_of(found)]
    for (_, members, expected), rounds in turns.items():
        # No turn costs more, at any order, than the dearest at that order.
        dearest = tuple(map(max, zip(*map(composed, rounds.values()), strict=True)))
        costs.append(Renyi(dearest, _times(rounds, members, expected)))
    return costs


def _times(rounds: Collection[int], members: int, expected: int) -> int:
    """Returns how often a client's turn can come in some rounds of a stage.

    Places go on while nothing is asked: a client may be the one asked in each of these rounds.
    """
    span = max(rounds) - min(rounds) + 1
    return min(len(rounds), -(-span * expected // members))


def _banded(event: Event) -> bool:
    return event.draw.bands > 1


def _strength(event: Event) -> float:
    z = event.noise_multiplier
    return math.inf if z == 0 else z**-2


def _multiplier(strength: float) -> float:
    return 0.0 if math.isinf(strength) else strength**-0.5
