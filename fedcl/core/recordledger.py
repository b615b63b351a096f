"""The privacy ledger by record: what each client's replies cost a single one of its records.

Unit: one record of one client. Neighbouring runs differ in a record that is there or contributes
nothing (zero-out); how many records a client has at each stage is public. Clients hold records of
their own, so what other clients send costs a record nothing (parallel composition): the epsilon of
a run is the largest one of any client's record. A record that was met at a stage is charged for all
that its client sent at this stage, and later only for programs that trained on remembered records.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fedcl.core.accounting import Charge, epsilon_rdp
from fedcl.core.client import Spent
from fedcl.core.errors import ConfigError
from fedcl.core.examples import ExampleMechanism
from fedcl.core.worst import Signature, charges_of, worst

Place = tuple[int, int, int, int]
Pattern = tuple[int, ...]  # how often a record is among its client's examples, by stage

# Steps by (noise multiplier, rate), by (stage, whether on remembered records too), by client.
Table = dict[int, dict[tuple[int, bool], Counter[tuple[float, float]]]]


@dataclass(frozen=True)
class RecordEvent:
    """What the replies of one exchange spent.

    Attributes:
        stage: Stage.
        round: Round of the stage; -1 and `rounds` begin and end it.
        exchange: Number of the exchange in this round.
        attempt: 0, or how often the round was repeated.
        channel: Name of the program that made the replies.
        groups: What clients spent, with the ids of those that spent the same, ascending.
    """

    stage: int
    round: int
    exchange: int
    attempt: int
    channel: str
    groups: tuple[tuple[Spent, tuple[int, ...]], ...]

    @property
    def place(self) -> Place:
        """Where in the run; a run that is resumed comes there again, with the same noise."""
        return self.stage, self.round, self.exchange, self.attempt

    @property
    def moment(self) -> Place:
        """The same as a point in time: a repeated round comes after its first attempt."""
        return self.stage, self.round, self.attempt, self.exchange


def grouped(spent: Mapping[int, Spent]) -> tuple[tuple[Spent, tuple[int, ...]], ...]:
    """Returns the clients that spent the same together, in an order of size."""
    groups: dict[Spent, list[int]] = defaultdict(list)
    for id in sorted(spent):
        groups[spent[id]].append(id)
    return tuple((one, tuple(ids)) for one, ids in sorted(groups.items(), key=_size))


def _size(group: tuple[Spent, list[int]]) -> tuple[float, float, int, bool]:
    one, _ = group
    return one.noise_multiplier, one.rate, one.steps, one.earlier


@dataclass
class RecordLedger:
    """What was spent of every client's records.

    Attributes:
        keep: Writes an event where it lasts; called before anything is handed out.
        events: By place; a place has several where a repeated exchange brought other replies.
        met: How often records of a client are among its examples at each stage: the patterns that
            matter. None means that each record is met at one stage, once.
        bare: Programs whose replies came without protection.
        note: Writes the name of such a program where it lasts.
    """

    keep: Callable[[RecordEvent], None] = lambda event: None
    events: dict[Place, list[RecordEvent]] = field(default_factory=dict)
    met: Callable[[int], Collection[Pattern]] | None = None
    bare: set[str] = field(default_factory=set)
    note: Callable[[str], None] = lambda channel: None
    _last: Place = field(default=(-1, -2, -1, -1), init=False)

    def __post_init__(self) -> None:
        self._table: Table = {}
        for event in self.every():
            _add(self._table, event)

    def uncharged(self, channel: str) -> None:
        """Takes note of a program whose replies came without protection."""
        if channel not in self.bare:
            self.note(channel)
            self.bare.add(channel)

    def every(self) -> Iterator[RecordEvent]:
        """Yields all events."""
        for events in self.events.values():
            yield from events

    def intend(self, event: RecordEvent, promise: ExampleMechanism) -> None:
        """Charges an event before its replies are handed out; never twice for the same one.

        A run that is resumed repeats its replies to the bit. Others at the same place, as of
        devices that were asked again, are charged anew.

        Raises:
            ConfigError: It would exceed the budget, or its place lies behind in this sitting: its
                clients would have drawn the noise of another reply once more.
        """
        if event.moment <= self._last:
            raise ConfigError(
                f"program {event.channel!r} asks a second time at stage {event.stage}, round "
                f"{event.round}, exchange {event.exchange}, where clients draw the noise of the "
                "first: a method uses the `fed` of its own round, and repeats none"
            )
        self._last = event.moment
        before = self.events.get(event.place, [])
        if event in before:
            return
        if promise.budget:
            ids = {id for _, own in event.groups for id in own}
            wanted: Table = {
                id: {key: Counter(steps) for key, steps in self._table.get(id, {}).items()}
                for id in ids
            }
            _add(wanted, event)
            found = worst(self._signatures(wanted), promise.delta, promise.budget)
            if found > promise.budget:
                raise ConfigError(
                    f"program {event.channel!r} at stage {event.stage}, round {event.round} would "
                    f"spend epsilon = {found:.4g} of a record, above the budget of "
                    f"{promise.budget:g}: its replies were not handed out; raise noise_multiplier, "
                    "run fewer rounds, or raise the budget"
                )
        self.keep(event)
        self.events[event.place] = [*before, event]
        _add(self._table, event)

    def epsilon(self, delta: float) -> float:
        """Returns the largest epsilon of a record; an infinite one where replies came bare."""
        return math.inf if self.bare else worst(self._signatures(self._table), delta)

    def dearest(self, delta: float) -> list[Charge]:
        """Returns what the record was charged that costs most, as Rényi divergences see it."""
        found = [charges_of(one) for one in self._signatures(self._table)]
        return max(found, key=lambda own: epsilon_rdp(own, delta), default=[])

    def epsilon_rdp(self, delta: float) -> float:
        """Returns the same by Rényi divergences, to be at least `epsilon`."""
        if self.bare:
            return math.inf
        found = self._signatures(self._table)
        return max((epsilon_rdp(charges_of(one), delta) for one in found), default=0.0)

    def matrix(self, stages: int, delta: float) -> list[list[float | None]]:
        """Returns the largest epsilon of records met at stage s, after stage t, as [s][t].

        It is the bound from above to what attacks find; None before the stage.
        """
        if self.bare:
            return [[math.inf if t >= s else None for t in range(stages)] for s in range(stages)]
        return [
            [
                worst(self._signatures(self._table, s, t), delta) if t >= s else None
                for t in range(stages)
            ]
            for s in range(stages)
        ]

    def by_channel(self, delta: float) -> dict[str, float]:
        """Returns the largest epsilon by each program alone, infinite for those sent bare."""
        tables: dict[str, Table] = defaultdict(dict)
        for event in self.every():
            _add(tables[event.channel], event)
        return {
            name: math.inf
            if name in self.bare
            else worst(self._signatures(tables.get(name, {})), delta)
            for name in sorted(tables.keys() | self.bare)
        }

    def _signatures(
        self, table: Table, stage: int | None = None, last: int | None = None
    ) -> set[Signature]:
        """Returns what records cost: of all, or of those met at a stage; up to a last stage."""
        found: set[Signature] = set()
        for client, rows in table.items():
            for pattern in self._patterns(client, rows):
                if stage is None or (stage < len(pattern) and pattern[stage]):
                    found.add(signature(rows, pattern, last))
        return found - {()}

    def _patterns(
        self, client: int, rows: Mapping[tuple[int, bool], object]
    ) -> Collection[Pattern]:
        if self.met is not None:
            return self.met(client)
        # A client that remembers may be asked at a stage of which the record is no part.
        stages = range(1 + max(stage for stage, _ in rows))
        return [tuple(int(s == own) for s in stages) for own in stages]


def signature(
    rows: Mapping[tuple[int, bool], Mapping[tuple[float, float], int]],
    pattern: Pattern,
    last: int | None = None,
) -> Signature:
    """Returns what a record cost whose client sent these things.

    A record that stands m times among the examples moves a sum by m times the bound at most, and is
    in a step unless all of its m copies are left out: together (z / m, 1 - (1 - q)^m), since a
    mixture of smaller moves is no worse (joint convexity).

    Args:
        rows: Steps by (noise multiplier, rate), by (stage, whether on remembered records too).
        pattern: How often the record is among its client's examples, by stage.
        last: The last stage to count.
    """
    found: Counter[tuple[float, float]] = Counter()
    for (stage, earlier), steps in rows.items():
        if last is not None and stage > last:
            continue
        copies = pattern[stage] if stage < len(pattern) else 0
        copies += sum(pattern[:stage]) if earlier else 0
        for (noise, rate), number in steps.items():
            if copies == 1:
                found[noise, rate] += number
            elif copies:
                joint = -math.expm1(copies * math.log1p(-rate)) if rate < 1 else 1.0
                found[noise / copies, joint] += number
    return tuple((noise, rate, number) for (noise, rate), number in sorted(found.items()) if number)


def _add(table: Table, event: RecordEvent) -> None:
    for spent, ids in event.groups:
        for id in ids:
            rows = table.setdefault(id, {})
            steps = rows.setdefault((event.stage, spent.earlier), Counter())
            steps[spent.noise_multiplier, spent.rate] += spent.steps


def most_of(patterns: Iterable[Pattern]) -> list[Pattern]:
    """Returns the patterns that no other one exceeds: the others cost no more."""
    kept: list[Pattern] = []
    for one in sorted(set(patterns), key=sum, reverse=True):
        if not any(all(a <= b for a, b in zip(one, other, strict=True)) for other in kept):
            kept.append(one)
    return kept
