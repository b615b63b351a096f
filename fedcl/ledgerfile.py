"""The privacy ledger of a run on disk: its secret root, and each event before its release."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fedcl.core.accounting.appearances import appearances
from fedcl.core.accounting.ledger import Draw, Event, Ledger, Mechanism
from fedcl.core.accounting.recordledger import Place, RecordEvent, RecordLedger
from fedcl.core.client import Spent
from fedcl.core.errors import ResumeError
from fedcl.core.privacy.distributed import Discrete
from fedcl.core.privacy.noise import secret_root, seeded_root
from fedcl.core.site import Site
from fedcl.store import check_config


@contextmanager
def opened_ledger(
    folder: Path | None,
    mechanism: Mechanism | None,
    seed: int,
    resolved: Mapping[str, Any] | None = None,
    site: Site | None = None,
    *,
    live: bool = False,
) -> Iterator[tuple[bytes | None, Ledger]]:
    """Opens a run's ledger for the time of the run; yields the secret root and the ledger.

    The root is None where nothing protects clients or their records: then nothing is written.

    Args:
        folder: The run's folder; None for a run without files, whose root is forgotten at its end.
        mechanism: What protects clients, or None.
        seed: The experiment's seed, for noise that is to be repeatable.
        resolved: The resolved config. Other sums at places that were charged would get the noise of
            the first ones.
        site: Where clients run; its trainer may protect single records.
        live: Whether clients are devices, who are never asked twice at one place: sittings count.

    Raises:
        ResumeError: The file is of a run of another config, damaged, or cannot be written.
    """
    promise = None if site is None else site.promise
    seeded = [one.seeded for one in (mechanism, promise) if one is not None]
    if not seeded:
        yield None, Ledger()
        return
    met = None if site is None else appearances(site.population.stream)  # type: ignore[attr-defined]
    if folder is None:
        records = RecordLedger(met=met)
        yield seeded_root(seed) if all(seeded) else secret_root(), Ledger(records=records)
        return
    file = LedgerFile(folder / "checkpoint")
    try:
        if resolved is not None:
            file.belong(resolved)
        root = seeded_root(seed) if all(seeded) else file.root()
        bare, note = file.bare("bare_records"), partial(file.note, table="bare_records")
        records = RecordLedger(file.append_records, file.record_events(), met, bare, note)
        sittings = file.sit() if live else 0
        yield root, Ledger(file.append, file.events(), file.bare(), file.note, records, sittings)
    finally:
        file.close()


def is_charged(folder: Path) -> bool:
    """Returns whether the folder of a checkpoint has a ledger with charges, or one to look into."""
    if not (folder / "ledger.sqlite").exists():
        return False
    try:
        file = LedgerFile(folder)
        try:
            return bool(file.events() or file.record_events())
        finally:
            file.close()
    except ResumeError:
        return True


class LedgerFile:
    """The file `ledger.sqlite` beside a checkpoint; what is written there lasts at once.

    It is apart from the checkpoint, whose last commit may be older than the last release. Nobody
    but its owner may read it: who knows the root can take the noise away.

    Raises:
        ResumeError: From any function: the file is damaged, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ledger.sqlite"
        with self._guard():
            folder.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            self._path.chmod(0o600)
            self._db = sqlite3.connect(self._path, isolation_level=None)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("CREATE TABLE IF NOT EXISTS root (id INTEGER PRIMARY KEY, data BLOB)")
            self._db.execute("CREATE TABLE IF NOT EXISTS events (data TEXT)")
            self._db.execute("CREATE TABLE IF NOT EXISTS records (data TEXT)")
            for name in ("bare", "bare_records"):
                self._db.execute(f"CREATE TABLE IF NOT EXISTS {name} (name TEXT PRIMARY KEY)")
            self._db.execute("CREATE TABLE IF NOT EXISTS sittings (id INTEGER PRIMARY KEY)")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS config (id INTEGER PRIMARY KEY, data TEXT)"
            )

    def belong(self, resolved: Mapping[str, Any]) -> None:
        """Binds the file to a config, for as long as anything is charged.

        Raises:
            ResumeError: It is bound to another one.
        """
        with self._guard():
            old = self._db.execute("SELECT data FROM config").fetchone()
            both = "SELECT 1 FROM events UNION SELECT 1 FROM records LIMIT 1"
            charged = self._db.execute(both).fetchone()
            if old is not None and charged is not None:
                check_config(json.loads(old[0]), resolved, f"the privacy ledger {self._path}")
            self._db.execute("REPLACE INTO config VALUES (0, ?)", (json.dumps(resolved),))

    def root(self) -> bytes:
        """Returns the run's secret root, made at the first call."""
        with self._guard():
            self._db.execute("INSERT OR IGNORE INTO root VALUES (0, ?)", (secret_root(),))
            return bytes(self._db.execute("SELECT data FROM root").fetchone()[0])

    def sit(self) -> int:
        """Returns how many sittings there were, and begins another one."""
        with self._guard():
            before = self._db.execute("SELECT COUNT(*) FROM sittings").fetchone()[0]
            self._db.execute("INSERT INTO sittings VALUES (?)", (before,))
            return int(before)

    def events(self) -> dict[Place, Event]:
        """Returns all events by their place, in the order of their writing."""
        found = {}
        with self._guard():
            for (data,) in self._db.execute("SELECT data FROM events ORDER BY rowid"):
                values = json.loads(data)
                values["draw"] = Draw(**values["draw"])
                if values.get("discrete") is not None:
                    values["discrete"] = Discrete(**values["discrete"])
                event = Event(**values)
                found[event.place] = event
        return found

    def append(self, event: Event) -> None:
        """Writes an event, and comes back when it is on the disk."""
        with self._guard():
            self._db.execute("INSERT INTO events VALUES (?)", (json.dumps(asdict(event)),))

    def bare(self, table: str = "bare") -> set[str]:
        """Returns the channels that were sent without an event."""
        with self._guard():
            return {name for (name,) in self._db.execute(f"SELECT name FROM {table}")}

    def note(self, channel: str, table: str = "bare") -> None:
        """Writes the name of a channel that was sent without an event."""
        with self._guard():
            self._db.execute(f"INSERT OR IGNORE INTO {table} VALUES (?)", (channel,))

    def record_events(self) -> dict[Place, list[RecordEvent]]:
        """Returns all events of records by their place, in the order of their writing."""
        found: dict[Place, list[RecordEvent]] = {}
        with self._guard():
            for (data,) in self._db.execute("SELECT data FROM records ORDER BY rowid"):
                values = json.loads(data)
                groups = tuple((Spent(**spent), tuple(ids)) for spent, ids in values["groups"])
                event = RecordEvent(**{**values, "groups": groups})
                found.setdefault(event.place, []).append(event)
        return found

    def append_records(self, event: RecordEvent) -> None:
        """Writes an event of records, and comes back when it is on the disk."""
        with self._guard():
            self._db.execute("INSERT INTO records VALUES (?)", (json.dumps(asdict(event)),))

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, TypeError, KeyError) as error:
            raise ResumeError(
                f"the privacy ledger {self._path} cannot be used: {error}; see to it that the disk "
                "has room and the file may be written, then add --resume; if it is damaged, start "
                "anew in another --out"
            ) from error
