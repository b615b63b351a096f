"""The privacy ledger: what was released under which mechanism, and what all of it costs together.

An event is written before its release, so that nothing is released that was not charged. Events
that share one draw of the cohort are one mechanism whose sample was drawn once: their noise is
combined before sampling is credited (amplification for each of them alone would claim too much).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fedcl.core.accounting import Charge, epsilon, epsilon_rdp
from fedcl.core.banded import coefficients, sensitivity, separation_of
from fedcl.core.distributed import Discrete, Shares, charge_of
from fedcl.core.errors import ConfigError
from fedcl.core.recordledger import RecordLedger
from fedcl.core.renyi import Renyi, composed

Place = tuple[int, int, int, int]  # stage, round, attempt, exchange: as time goes
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
        shares: How clients add the noise themselves, in shares of whole numbers; None where the
            door adds Gaussian noise.
    """

    noise_multiplier: float
    sensitivity: float
    delta: float
    budget: float = 0.0
    seeded: bool = False
    bands: int = 1
    programs: tuple[str, ...] = ()
    shares: Shares | None = None


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
        attempt: 0, or how often this round was repeated: a repeated one releases anew.
        discrete: What its noise is, where clients add it as whole numbers: such sums are credited
            no sampling, and are known by their Rényi divergences alone.
    """

    stage: int
    round: int
    exchange: int
    channel: str
    noise_multiplier: float
    sensitivity: float
    draw: Draw
    attempt: int = 0
    discrete: Discrete | None = None

    @property
    def place(self) -> Place:
        """Where in the run; a run that is resumed comes there again, with the same noise."""
        return self.stage, self.round, self.attempt, self.exchange


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
    drawn: dict[tuple[int, int], list[Event]] = defaultdict(list)
    turns: dict[tuple[int, int, int], dict[int, float]] = defaultdict(lambda: defaultdict(float))
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
    events: dict[Place, Event] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    note: Callable[[str], None] = lambda channel: None
    records: RecordLedger = field(default_factory=RecordLedger)
    _last: Place = field(default=(-1, -2, -1, -1), init=False)

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
        # No count decides on a release of the server's noise, so that no such round is repeated.
        if event.place <= self._last or (event.attempt and event.discrete is None):
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
