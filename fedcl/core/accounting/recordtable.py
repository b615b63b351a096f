"""What clients spent of their records, added up: by client, by stage, by noise and rate of a step.

A live federation charges clients before it asks them: from then on an answer may be on its way,
whether it counts, comes late, is refused or is never looked at. What an answer that is read says of
itself takes the place of what was charged for the question.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedcl.core.accounting.worst import Signature
from fedcl.core.client import Spent

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
        asked: Whether they were charged for the question, before any answer.
    """

    stage: int
    round: int
    exchange: int
    attempt: int
    channel: str
    groups: tuple[tuple[Spent, tuple[int, ...]], ...]
    asked: bool = False

    @property
    def place(self) -> Place:
        """Where in the run; a run that is resumed comes there again, with the same noise."""
        return self.stage, self.round, self.exchange, self.attempt

    @property
    def moment(self) -> tuple[int, int, int, int, bool]:
        """The same as a point in time: a repeated round comes after its first attempt."""
        return self.stage, self.round, self.attempt, self.exchange, not self.asked

    @property
    def clients(self) -> set[int]:
        """Whom it charges."""
        return {id for _, ids in self.groups for id in ids}

    def without(self, clients: Collection[int]) -> RecordEvent:
        """Returns what is left of it when some clients are not charged."""
        left = ((spent, tuple(id for id in ids if id not in clients)) for spent, ids in self.groups)
        return replace(self, groups=tuple((spent, ids) for spent, ids in left if ids))


def grouped(spent: Mapping[int, Spent]) -> tuple[tuple[Spent, tuple[int, ...]], ...]:
    """Returns the clients that spent the same together, in an order of size."""
    groups: dict[Spent, list[int]] = defaultdict(list)
    for id in sorted(spent):
        groups[spent[id]].append(id)
    return tuple((one, tuple(ids)) for one, ids in sorted(groups.items(), key=_size))


def _size(group: tuple[Spent, list[int]]) -> tuple[float, float, int, bool]:
    one, _ = group
    return one.noise_multiplier, one.rate, one.steps, one.earlier


def charged(events: Sequence[RecordEvent]) -> list[RecordEvent]:
    """Returns what the events of one place charge: questions only where no answer was read."""
    answered: set[int] = set()
    for event in events:
        if not event.asked:
            answered |= event.clients
    found = [event.without(answered) if event.asked else event for event in events]
    return [event for event in found if event.groups]


def add(table: Table, events: Iterable[RecordEvent], times: int = 1) -> None:
    """Adds what events charge to a table, or takes it away with `times` = -1."""
    for event in events:
        for spent, ids in event.groups:
            for id in ids:
                rows = table.setdefault(id, {})
                steps = rows.setdefault((event.stage, spent.earlier), Counter())
                steps[spent.noise_multiplier, spent.rate] += times * spent.steps


def copied(table: Table, clients: Collection[int]) -> Table:
    """Returns the part of a table that tells of some clients, to be changed by itself."""
    return {id: {key: Counter(steps) for key, steps in table.get(id, {}).items()} for id in clients}


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
