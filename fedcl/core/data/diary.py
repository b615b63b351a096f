"""Which arrival a client learns at which place of a run: decided once, at the first question there.

Every later question about that place, repeated or after the server rolled back, finds the decision
and so the same examples. A client takes its arrivals one after the other, in the order of their
names, at most one at each place; where nothing new is there it goes on with its last one.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedcl.core import durable
from fedcl.core.data.arrival import Source
from fedcl.core.errors import ConfigError, ResumeError

FILE = "arrivals.json"
Place = tuple[int, int]  # stage and round; round 0 stands for all of a stage with borders
_START: Place = (-1, 0)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """An arrival that a client has taken.

    Attributes:
        name: Its name.
        digest: Hash of its content.
        stage: Stage at which it was first learnt.
        round: Round of it.
        classes: Classes that occur in it.
        rows: Examples of it that are learnt.
    """

    name: str
    digest: str
    stage: int
    round: int
    classes: tuple[int, ...]
    rows: int

    @property
    def place(self) -> Place:
        """Where it was first learnt."""
        return self.stage, self.round


@dataclass(frozen=True)
class Diary:
    """What a client has decided.

    Attributes:
        decided: The last place that is decided.
        entries: What it took, in the order of places.
        refused: Why arrivals cannot be used, by name, each with its stamp: one that is replaced is
            looked at again.
    """

    decided: Place = _START
    entries: tuple[Entry, ...] = ()
    refused: tuple[tuple[str, str, str], ...] = ()

    def until(self, place: Place) -> tuple[Entry, ...]:
        """Returns what was taken up to and with a place."""
        return tuple(entry for entry in self.entries if entry.place <= place)

    def fresh(self, source: Source, client: int) -> list[str]:
        """Returns the names of a client's arrivals that it has neither taken nor refused."""
        taken = {entry.name for entry in self.entries}
        refused = {(name, stamp) for name, stamp, _ in self.refused}
        return [
            name
            for name in source.names(client)
            if name not in taken and (name, _stamp(source, client, name)) not in refused
        ]

    def decide(self, source: Source, client: int, place: Place) -> Diary:
        """Returns the diary with a place decided: with the first new arrival that can be used.

        Those that cannot are named in the log, and skipped.
        """
        if place <= self.decided:
            return self
        found = replace(self, decided=place)
        for name in self.fresh(source, client):
            stamp = _stamp(source, client, name)
            try:
                arrival = source.load(client, name)
            except ConfigError as error:
                _LOG.warning("client %d skips arrival %r: %s", client, name, error)
                others = tuple(one for one in found.refused if one[0] != name)
                found = replace(found, refused=(*others, (name, stamp, str(error))))
                continue
            rows = len(arrival.train.labels)
            taken = Entry(name, arrival.digest, *place, arrival.classes, rows)
            return replace(found, entries=(*found.entries, taken))
        return found

    def text(self) -> str:
        """Returns the diary as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def of(cls, text: str, where: str) -> Diary:
        """Reads a diary.

        Args:
            text: As `text` gives it.
            where: Where it comes from, for errors.

        Raises:
            ResumeError: It is damaged.
        """
        try:
            found: dict[str, Any] = json.loads(text)
            stage, round = found["decided"]
            entries = tuple(
                Entry(**{**entry, "classes": tuple(entry["classes"])}) for entry in found["entries"]
            )
            refused = tuple((name, stamp, why) for name, stamp, why in found["refused"])
            return cls((int(stage), int(round)), entries, refused)
        except (ValueError, KeyError, TypeError) as error:
            raise ResumeError(
                f"the diary of arrivals {where} is damaged ({type(error).__name__}: {error}): put "
                "it back, or begin another run"
            ) from error


def read_diary(folder: Path, source: Source, client: int) -> Diary:
    """Returns the diary in a client's folder; without one, that of the run that it repeats.

    Raises:
        ResumeError: It is damaged.
    """
    path = folder / FILE
    try:
        return Diary.of(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        planned = source.plan(client)
        return Diary() if planned is None else Diary.of(planned, f"among the data of {client}")


def decided_at(folder: Path, source: Source, client: int, place: Place) -> tuple[Entry, ...]:
    """Returns what a client has taken up to and with a place, which it decides where it is new.

    Args:
        folder: The client's folder; what is decided is on the disk before this comes back.
        source: Where its examples arrive.
        client: Its id.
        place: Where in the run.

    Raises:
        ResumeError: The diary is damaged.
    """
    diary = read_diary(folder, source, client)
    found = diary.decide(source, client, place)
    if found is not diary:
        durable.make_folder(folder)
        durable.write(folder / FILE, found.text().encode())
    return found.until(place)


def _stamp(source: Source, client: int, name: str) -> str:
    try:
        return source.stamp(client, name)
    except OSError:  # it is gone again
        return ""
