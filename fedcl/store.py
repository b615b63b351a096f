"""The checkpoint of a run: method state, clients' memories, rows and position in one SQLite file.

It is the truth while a run goes on. What one commit writes is there as a whole or not at all; all
that was written after the last commit is gone when the process ends, however it ends.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcl.core.errors import ConfigError, ResumeError
from fedcl.record import COSTS, EVALUATIONS, Row

# A missing table or column is an error of SQL's: nobody but fedcl makes them.
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
_MEMORIES = "memories (client INTEGER PRIMARY KEY, data BLOB)"
# SQLite overwrites a value of the same size in place, as REPLACE would not.
_WRITE = "INSERT INTO {} VALUES (?, ?) ON CONFLICT ({}) DO UPDATE SET data = excluded.data"
# Changes that change no result: how many workers run, how often is saved, what is held in RAM.
_FREE = ("engine.workers", "engine.address", "checkpoint.seconds", "memory.cache", "memory.limit")


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read.

    Attributes:
        stage: Stage of the next round.
        round: Next round of that stage.
        rounds: Finished rounds of the whole run.
        seconds: Wall time spent so far.
        state: Encoded state of method and channel.
        events: Skipped and repeated rounds so far.
        rejected: Replies left out so far.
    """

    stage: int
    round: int
    rounds: int
    seconds: float
    state: bytes
    events: list[Any]
    rejected: list[Any]


@dataclass(frozen=True)
class Table:
    """Encoded memories by client (`fedcl.core.memories.Shelf`), in the transaction that is open.

    Attributes:
        db: The database.
        guard: Turns its errors into ours.
    """

    db: sqlite3.Connection
    guard: Callable[[], AbstractContextManager[None]]

    def read(self, client: int) -> bytes | None:
        """Returns a client's memory as it was written last; None when it has none."""
        with self.guard():
            query = "SELECT data FROM memories WHERE client = ?"
            row = self.db.execute(query, (client,)).fetchone()
            return None if row is None else row[0]

    def empty(self) -> bool:
        """Returns whether nobody has a memory."""
        with self.guard():
            return self.db.execute("SELECT 1 FROM memories LIMIT 1").fetchone() is None

    def write(self, client: int, data: bytes | None) -> None:
        """Replaces a client's memory; None takes it away."""
        with self.guard():
            _begin(self.db)
            if data is None:
                self.db.execute("DELETE FROM memories WHERE client = ?", (client,))
            else:
                self.db.execute(_WRITE.format("memories", "client"), (client, data))

    def mark(self) -> None:
        """Begins what `keep` lets stand and `undo` takes back."""
        with self.guard():
            _begin(self.db)
            self.db.execute("SAVEPOINT step")

    def keep(self) -> None:
        """Lets stand what was written since `mark`."""
        with self.guard():
            self.db.execute("RELEASE step")

    def undo(self) -> None:
        """Takes back what was written since `mark`."""
        with self.guard():
            self.db.execute("ROLLBACK TO step")
            self.db.execute("RELEASE step")


def _begin(db: sqlite3.Connection) -> None:
    if not db.in_transaction:
        db.execute("BEGIN IMMEDIATE")


class Store:
    """The checkpoint of one run, in `checkpoint/state.sqlite`.

    Raises:
        ResumeError: From any function: the file is damaged, or cannot be written.

    Attributes:
        memories: The clients' memories; what is written there is a part of the next commit.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.sqlite"
        with self._guard(), ExitStack() as undo:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, isolation_level=None)
            undo.callback(self._db.close)
            self._open()
            undo.pop_all()
        self.memories = Table(self._db, self._guard)

    def _open(self) -> None:
        # Memories and states are large: larger pages are written faster than the usual 4 kB.
        self._db.execute("PRAGMA page_size = 32768")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        # A log that one large round has made long does not stay so.
        self._db.execute("PRAGMA journal_size_limit = 67108864")
        evaluations, costs = ", ".join(EVALUATIONS), ", ".join(COSTS)
        self._db.execute("BEGIN")
        for table in (
            "meta (key TEXT PRIMARY KEY, value TEXT)",
            "state (id INTEGER PRIMARY KEY CHECK (id = 0), data BLOB)",
            _MEMORIES,
            f"evaluations ({evaluations})",
            f"costs ({costs})",
        ):
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        self._db.execute("COMMIT")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        run = self._path.parent.parent
        try:
            yield
        except (sqlite3.Error, json.JSONDecodeError, OSError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if isinstance(error, OSError) or code not in _DAMAGE:
                raise ResumeError(
                    f"checkpoint {self._path} cannot be used: {error}; see to it that the disk has "
                    "room, the file may be written and no other run uses it, then add --resume"
                ) from error
            raise ResumeError(
                f"checkpoint {self._path} is damaged: {error}; remove the folder {run} and start "
                "anew, or name another --out"
            ) from error

    def commit(
        self,
        meta: Mapping[str, Any],
        state: bytes,
        evaluations: Iterable[Row],
        costs: Iterable[Row],
    ) -> None:
        """Makes permanent what was written to `memories`, with everything else, or nothing."""
        run = self._db.execute
        with self._guard():
            try:
                _begin(self._db)
                for key, value in meta.items():
                    run("REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))
                run(_WRITE.format("state", "id"), (0, state))
                for table, columns, rows in (
                    ("evaluations", EVALUATIONS, evaluations),
                    ("costs", COSTS, costs),
                ):
                    marks = ", ".join("?" * len(columns))
                    values = (tuple(row[column] for column in columns) for row in rows)
                    self._db.executemany(f"INSERT INTO {table} VALUES ({marks})", values)
                run("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite ends it by itself when the disk is full
                    run("ROLLBACK")
                raise

    def meta(self, key: str) -> Any:
        """Returns a value of the last commit, or None before the first."""
        with self._guard():
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            return None if row is None else json.loads(row[0])

    def saved(self) -> Saved | None:
        """Returns the last commit, without its memories and rows, or None when there is none."""
        with self._guard():
            row = self._db.execute("SELECT data FROM state").fetchone()
        if row is None:
            return None
        names = ("stage", "round", "rounds", "seconds", "events", "rejected")
        return Saved(state=row[0], **{name: self.meta(name) for name in names})

    def rows(self, table: str, columns: Sequence[str]) -> Iterator[Row]:
        """Yields all rows of `evaluations` or `costs` in the order of their writing."""
        with self._guard():
            listed = self._db.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY rowid")
            for row in listed:
                yield dict(zip(columns, row, strict=True))

    def close(self) -> None:
        """Closes the file; what was not committed is gone."""
        self._db.close()


def scratch() -> Table:
    """Returns memories in a file without a name, which is made when needed and ends with us."""
    db = sqlite3.connect("", isolation_level=None)
    db.execute("PRAGMA page_size = 32768")
    db.execute("PRAGMA cache_size = -2000")  # kB, as files with a name have
    db.execute(f"CREATE TABLE {_MEMORIES}")
    return Table(db, _scratch_guard)


@contextmanager
def _scratch_guard() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ConfigError(
            f"the clients' memories have no room on disk ({error}): name a folder with --out, let "
            "TMPDIR name a place with more room, or raise memory.cache"
        ) from error


def check_same(store: Store, resolved: Mapping[str, Any], version: str) -> None:
    """Raises ResumeError when another config or version made the checkpoint; names what differs."""
    before = store.meta("version")
    if before is not None and before != version:
        raise ResumeError(
            f"the checkpoint was made by fedcl {before}, this is {version}: resume with that "
            "version, or name another --out to start anew"
        )
    old = store.meta("config")
    if old is not None:
        check_config(old, resolved, "the checkpoint")


def check_config(old: Any, resolved: Mapping[str, Any], what: str) -> None:
    """Raises ResumeError when two configs would not give the same bits; names what differs.

    Args:
        old: The resolved config as it was read from JSON.
        resolved: The resolved config of now.
        what: What belongs to the old one.
    """
    for place in _differences(old, json.loads(json.dumps(resolved)), ""):
        if place.split(" ")[0] not in _FREE:
            raise ResumeError(
                f"{what} belongs to another config: {place}; undo the change, or name another "
                "--out to start anew"
            )


def _differences(old: Any, new: Any, place: str) -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    elif old != new:
        yield f"{place} was {old!r} and is {new!r}"
