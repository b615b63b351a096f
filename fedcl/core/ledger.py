"""The privacy ledger: what was released under which mechanism, and what all of it costs together.

An event is written before its release, so that nothing is released that was not charged. Events
that share one draw of the cohort are one mechanism whose sample was drawn once: their noise is
combined before sampling is credited (amplification for each of them alone would claim too much).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fedcl.core.accounting import Charge, epsilon, epsilon_rdp
from fedcl.core.banded import coefficients, sensitivity, separation_of
from fedcl.core.errors import ConfigError
from fedcl.core.recordledger import RecordLedger

Sampling = Literal["all", "fixed", "poisson", "round_robin"]


@dataclass(frozen=True)
class Mechanism:
    """What a step of a channel does to protect clients in a sum.

    Attributes:
        noise_multiplier: Standard deviation of the Gaussian noise over `sensitivity`.
        sensitivity: The largest norm by which a client that is added or removed changes the sum.
        delta: The delta for which epsilon is told.
        budget: The largest epsilon that may be spent; 0 for no limit.
        seeded: Whether anybody can repeat the noise: nothing is claimed then.
        bands: Bands of the matrix that correlates the noise of rounds; 1 for independent noise.
        programs: Names of programs that have a bound of their own.
    """

    noise_multiplier: float
    sensitivity: float
    delta: float
    budget: float = 0.0
    seeded: bool = False
    bands: int = 1
    programs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draw:
    """Who was asked.

    Attributes:
        how: How: `all` members, or a cohort by a rule.
        members: Clients with data at this stage.
        expected: Clients asked on average: a public constant.
        number: Round of the stage whose cohort it is.
        bands: Bands of the matrix that correlates the noise over rounds; 1 for none.
        rounds: Rounds of the stage, where noise is correlated.
    """

    how: Sampling
    members: int
    expected: int
    number: int
    bands: int = 1
    rounds: int = 0


@dataclass(frozen=True)
class Event:
    """One release.

    Attributes:
        stage: Stage.
        round: Round of the stage; -1 and `rounds` begin and end it.
        exchange: Number of the exchange in this round.
        channel: What was sent: the name of the program that made it.
        noise_multiplier: Of its Gaussian noise.
        sensitivity: Norm to which all that each client sent was clipped.
        draw: Who was asked.
    """

    stage: int
    round: int
    exchange: int
    channel: str
    noise_multiplier: float
    sensitivity: float
    draw: Draw

    @property
    def place(self) -> tuple[int, int, int]:
        """Where in the run; a run that is resumed comes there again, with the same noise."""
        return self.stage, self.round, self.exchange


def charges(events: Iterable[Event]) -> list[Charge]:
    """Returns what events cost a client that takes part in whatever it is asked for.

    A fixed-size sample is credited nothing: whether a client is in it depends on the others. In
    turns, a client is asked at most as often in a stage as its turn can come from the first to the
    last of these rounds. Rounds of correlated noise are one mechanism, which is charged whole with
    its first release.
    """
    events = list(events)
    whole = filter(_banded, events)
    banded = {(e.stage, e.noise_multiplier, replace(e.draw, number=0)) for e in whole}
    events = [event for event in events if not _banded(event)]
    drawn: dict[tuple[int, int], list[Event]] = defaultdict(list)
    turns: dict[tuple[int, int, int], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    found = []
    for event in events:
        draw, strength = event.draw, _strength(event)
        if draw.how == "poisson":
            drawn[event.stage, draw.number].append(event)
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
        # Places go on while nothing is asked: a client may be the one asked in each such round.
        rounds = max(strengths) - min(strengths) + 1
        times = min(len(strengths), -(-rounds * expected // members))
        found.append(Charge(_multiplier(max(strengths.values())), 1.0, times))
    return found


def _banded(event: Event) -> bool:
    return event.draw.bands > 1


def _strength(event: Event) -> float:
    z = event.noise_multiplier
    return math.inf if z == 0 else z**-2


def _multiplier(strength: float) -> float:
    return 0.0 if math.isinf(strength) else strength**-0.5


@dataclass
class Ledger:
    """All releases of a run.

    Attributes:
        keep: Writes an event where it lasts; called before the release.
        events: By place.
        bare: Channels that were sent without an event.
        note: Writes the name of such a channel where it lasts.
        records: What replies spent of single records, where a trainer protects these.
    """

    keep: Callable[[Event], None] = lambda event: None
    events: dict[tuple[int, int, int], Event] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    note: Callable[[str], None] = lambda channel: None
    records: RecordLedger = field(default_factory=RecordLedger)
    _last: tuple[int, int, int] = field(default=(-1, -2, -1), init=False)

    @property
    def releases(self) -> int:
        """How many events there are, of clients and of records."""
        return len(self.events) + sum(1 for _ in self.records.every())

    def uncharged(self, channel: str) -> None:
        """Takes note of a channel that was sent without an event: nothing bounds it."""
        if channel not in self.bare:
            self.note(channel)
            self.bare.add(channel)

    def intend(self, event: Event, mechanism: Mechanism) -> None:
        """Charges an event before its release.

        A resumed run comes to places that it charged before: the same release, with the same noise,
        is not charged again. Within one sitting a run only goes forward.

        Raises:
            ConfigError: It would exceed the budget, another event was charged at its place, or its
                place lies behind: what was released there would be released with the same noise
                once more.
        """
        if event.place <= self._last:
            raise ConfigError(
                f"program {event.channel!r} asks for a second release at stage {event.stage}, "
                f"round {event.round}, exchange {event.exchange}, which would have the noise of "
                "the first: a method uses the `fed` of its own round, and repeats none"
            )
        before = self.events.get(event.place)
        if before == event:
            self._last = event.place
            return
        if before is not None:
            raise ConfigError(
                f"the privacy ledger holds another release at stage {event.stage}, round "
                f"{event.round}, exchange {event.exchange}: {before.channel!r}, not "
                f"{event.channel!r}; it cannot be taken back: name another --out to start anew"
            )
        if mechanism.budget:
            wanted = charges([*self.events.values(), event])
            # The looser bound costs nothing and mostly suffices.
            spent = epsilon_rdp(wanted, mechanism.delta)
            if spent > mechanism.budget:
                spent = epsilon(wanted, mechanism.delta)
            if spent > mechanism.budget:
                raise ConfigError(
                    f"program {event.channel!r} at stage {event.stage}, round {event.round} would "
                    f"spend epsilon = {spent:.4g}, above the budget of {mechanism.budget:g}: "
                    "nothing was released; raise noise_multiplier, run fewer rounds, or raise the "
                    "budget"
                )
        self.keep(event)
        self.events[event.place] = event
        self._last = event.place

    def epsilon(self, delta: float, chosen: Callable[[Event], bool] = lambda event: True) -> float:
        """Returns epsilon of the chosen events by privacy loss distributions; see `accounting`."""
        if self.bare:
            return math.inf
        return epsilon(charges(filter(chosen, self.events.values())), delta)

    def epsilon_rdp(self, delta: float) -> float:
        """Returns epsilon of all events by Rényi divergences, to be at least `epsilon`."""
        if self.bare:
            return math.inf
        return epsilon_rdp(charges(self.events.values()), delta)

    def by_stage(self, stages: int, delta: float) -> list[float]:
        """Returns epsilon of a client that takes part all along, after each stage."""
        return [
            self.epsilon(delta, lambda event, last=last: event.stage <= last)  # type: ignore[misc]
            for last in range(stages)
        ]

    def by_channel(self, delta: float) -> Mapping[str, float]:
        """Returns epsilon of each channel alone, infinite for those that were sent bare."""
        names = sorted({event.channel for event in self.events.values()} | self.bare)
        return {
            name: math.inf
            if name in self.bare
            else epsilon(charges(e for e in self.events.values() if e.channel == name), delta)
            for name in names
        }
