"""The privacy ledger: what was released under which mechanism, and what all of it costs together.

An event is written before its release, so that nothing is released that was not charged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedcl.core.accounting.charging import charges as charges
from fedcl.core.accounting.composition import epsilon, epsilon_rdp
from fedcl.core.accounting.events import Draw as Draw
from fedcl.core.accounting.events import Event as Event
from fedcl.core.accounting.events import Mechanism as Mechanism
from fedcl.core.accounting.events import Place as Place
from fedcl.core.accounting.events import Sampling as Sampling
from fedcl.core.accounting.recordledger import RecordLedger
from fedcl.core.errors import ConfigError


@dataclass
class Ledger:
    """All releases of a run.

    Attributes:
        keep: Writes an event where it lasts; called before the release.
        events: By place.
        bare: Channels that were sent without an event.
        note: Writes the name of such a channel where it lasts.
        records: What replies spent of single records, where a trainer protects these.
        sittings: How often a live run with this ledger was begun before.
    """

    keep: Callable[[Event], None] = lambda event: None
    events: dict[Place, Event] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    note: Callable[[str], None] = lambda channel: None
    records: RecordLedger = field(default_factory=RecordLedger)
    sittings: int = 0
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
        is not charged again. Within one sitting a run only goes forward. A live run that is resumed
        asks the round that was cut off anew, as another attempt, with other noise.

        Raises:
            ConfigError: It would exceed the budget, another event was charged at its place, or its
                place lies behind: what was released there would be released with the same noise
                once more.
        """
        # No count decides on a release of the server's noise, so that no such round is repeated.
        repeated = event.attempt > 0 and event.discrete is None and not self.sittings
        if event.place <= self._last or repeated:
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
