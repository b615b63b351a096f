"""The privacy ledger by record: what each client's replies cost a single one of its records.

Unit: one record of one client. Neighbouring runs differ in a record that is there or contributes
nothing (zero-out); how many records a client has at each stage is public. Clients hold records of
their own, so what other clients send costs a record nothing (parallel composition): the epsilon of
a run is the largest one of any client's record. A record that was met at a stage is charged for all
that its client sent at this stage, and later only for programs that trained on remembered records.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fedcl.core.accounting.composition import Charge, epsilon_rdp
from fedcl.core.accounting.recordtable import Pattern as Pattern
from fedcl.core.accounting.recordtable import Place as Place
from fedcl.core.accounting.recordtable import RecordEvent as RecordEvent
from fedcl.core.accounting.recordtable import Table, add, charged, copied
from fedcl.core.accounting.recordtable import grouped as grouped
from fedcl.core.accounting.recordtable import signature as signature
from fedcl.core.accounting.worst import Signature, charges_of, worst
from fedcl.core.errors import ConfigError
from fedcl.core.privacy.examples import ExampleMechanism


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
    _last: tuple[int, int, int, int, bool] = field(default=(-1, -2, -1, -1, False), init=False)

    def __post_init__(self) -> None:
        self._table: Table = {}
        add(self._table, self.every())

    def uncharged(self, channel: str) -> None:
        """Takes note of a program whose replies came without protection."""
        if channel not in self.bare:
            self.note(channel)
            self.bare.add(channel)

    def every(self) -> Iterator[RecordEvent]:
        """Yields all that is charged; of questions what no answer has taken the place of."""
        for events in self.events.values():
            yield from charged(events)

    def intend(self, event: RecordEvent, promise: ExampleMechanism) -> None:
        """Charges an event before its replies are handed out; never twice for the same one.

        A run that is resumed repeats its replies to the bit. Others at the same place, as of
        devices that were asked again, are charged anew. Where clients were charged for the question
        already, their replies are charged instead.

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
        after = [*before, event]
        if promise.budget:
            wanted = copied(self._table, set().union(*(one.clients for one in after)))
            add(wanted, charged(before), -1)
            add(wanted, charged(after))
            found = worst(self._signatures(wanted), promise.delta, promise.budget)
            if found > promise.budget:
                told = "nobody was asked" if event.asked else "its replies were not handed out"
                raise ConfigError(
                    f"program {event.channel!r} at stage {event.stage}, round {event.round} would "
                    f"spend epsilon = {found:.4g} of a record, above the budget of "
                    f"{promise.budget:g}: {told}; raise noise_multiplier, run fewer rounds, or "
                    "raise the budget"
                )
        self.keep(event)
        self.events[event.place] = after
        add(self._table, charged(before), -1)
        add(self._table, charged(after))

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
            add(tables[event.channel], [event])
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


def most_of(patterns: Iterable[Pattern]) -> list[Pattern]:
    """Returns the patterns that no other one exceeds: the others cost no more."""
    kept: list[Pattern] = []
    for one in sorted(set(patterns), key=sum, reverse=True):
        if not any(all(a <= b for a, b in zip(one, other, strict=True)) for other in kept):
            kept.append(one)
    return kept
