"""Reads and writes a run's folder: config, tables, summary, model, and the checkpoint behind them.

SQLite is the truth while a run goes on: method state, clients' memories, rows and position are
committed together. The CSV files are exports of it, written whole and renamed; `summary.json` comes
last and marks completion.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from fedcl.core.errors import ConfigError, ResumeError

EVALUATIONS = (
    "round",
    "stage",
    "client",
    "client_stage",
    "model",
    "task",
    "split",
    "metric",
    "value",
    "n",
)
COSTS = (
    "round",
    "stage",
    "client",
    "direction",
    "payload",
    "bytes",
    "steps",
    "examples",
    "seconds",
)
PRIVACY = ("channel", "mechanism", "unit", "epsilon", "delta", "note")

# A missing table or column is an error of SQL's: nobody but fedcl makes them.
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

Row = Mapping[str, Any]


@dataclass
class Record:
    """What a run leaves: the long tables and the summary.

    Attributes:
        evaluations: Rows of evaluations.csv (METRICS.md, section 1).
        costs: Rows of costs.csv.
        summary: Contents of summary.json; empty while the run goes on.
        params: The final global model.
        folder: Where the files lie, or None.
    """

    evaluations: list[Row] = field(default_factory=list)
    costs: list[Row] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    params: Mapping[str, Tensor] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read.

    Attributes:
        stage: Stage of the next round.
        round: Next round of that stage.
        rounds: Finished rounds of the whole run.
        seconds: Wall time spent so far.
        state: Encoded state of method and channel.
        memories: Encoded memories by client.
        events: Skipped and repeated rounds so far.
    """

    stage: int
    round: int
    rounds: int
    seconds: float
    state: bytes
    memories: Mapping[int, bytes]
    events: list[Any]


class Store:
    """The checkpoint of one run, in `checkpoint/state.sqlite`.

    Raises:
        ResumeError: From any function: the file is damaged, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.sqlite"
        with self._guard(), ExitStack() as undo:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, isolation_level=None)
            undo.callback(self._db.close)
            self._open()
            undo.pop_all()

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        evaluations, costs = ", ".join(EVALUATIONS), ", ".join(COSTS)
        for table in (
            "meta (key TEXT PRIMARY KEY, value TEXT)",
            "state (id INTEGER PRIMARY KEY CHECK (id = 0), data BLOB)",
            "memories (client INTEGER PRIMARY KEY, data BLOB)",
            f"evaluations ({evaluations})",
            f"costs ({costs})",
        ):
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {table}")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        run = self._path.parent.parent
        try:
            yield
        except (sqlite3.Error, json.JSONDecodeError, OSError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
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
        memories: Mapping[int, bytes | None],
        evaluations: Iterable[Row],
        costs: Iterable[Row],
    ) -> None:
        """Writes everything since the last commit in one transaction."""
        run = self._db.execute
        with self._guard():
            run("BEGIN IMMEDIATE")
            try:
                for key, value in meta.items():
                    run("REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))
                run("REPLACE INTO state VALUES (0, ?)", (state,))
                for client, data in memories.items():
                    if data is None:
                        run("DELETE FROM memories WHERE client = ?", (client,))
                    else:
                        run("REPLACE INTO memories VALUES (?, ?)", (client, data))
                for table, columns, rows in (
                    ("evaluations", EVALUATIONS, evaluations),
                    ("costs", COSTS, costs),
                ):
                    marks = ", ".join("?" * len(columns))
                    values = [tuple(row[column] for column in columns) for row in rows]
                    self._db.executemany(f"INSERT INTO {table} VALUES ({marks})", values)
            except BaseException:
                run("ROLLBACK")
                raise
            run("COMMIT")

    def meta(self, key: str) -> Any:
        """Returns a value of the last commit, or None before the first."""
        with self._guard():
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            return None if row is None else json.loads(row[0])

    def saved(self) -> Saved | None:
        """Returns the last commit, or None when there is none."""
        with self._guard():
            row = self._db.execute("SELECT data FROM state").fetchone()
            if row is None:
                return None
            memories = dict(self._db.execute("SELECT client, data FROM memories ORDER BY client"))
        names = ("stage", "round", "rounds", "seconds", "events")
        return Saved(state=row[0], memories=memories, **{name: self.meta(name) for name in names})

    def rows(self, table: str, columns: Sequence[str]) -> list[Row]:
        """Returns all rows of `evaluations` or `costs` in the order of their writing."""
        with self._guard():
            listed = self._db.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY rowid")
            return [dict(zip(columns, row, strict=True)) for row in listed]

    def close(self) -> None:
        """Closes the file."""
        self._db.close()


def open_folder(folder: Path, resume: bool) -> None:
    """Makes a run's folder, or checks that it may be used.

    Raises:
        ConfigError: The folder holds something already and `resume` is not asked for, or holds no
            checkpoint to resume from, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = [path.name for path in folder.iterdir()]
        if held and not resume:
            raise ConfigError(
                f"folder {folder} is not empty: add --resume to go on, or name another --out"
            )
        if held and "checkpoint" not in held:
            raise ConfigError(
                f"folder {folder} holds no checkpoint to go on from: name the folder of a run, or "
                "another --out without --resume"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise ConfigError(
            f"folder {folder} cannot be written: {error.strerror or error}; name another --out"
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
    if old is None:
        return
    for place in _differences(old, json.loads(json.dumps(resolved)), ""):
        # How many workers run the blocks, and how often is saved, changes no result.
        if place.split(" ")[0] not in ("engine.workers", "engine.address", "checkpoint.seconds"):
            raise ResumeError(
                f"the checkpoint belongs to another config: {place}; undo the change, or name "
                "another --out to start anew"
            )


def _differences(old: Any, new: Any, place: str) -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    elif old != new:
        yield f"{place} was {old!r} and is {new!r}"


def write_text(path: Path, text: str) -> None:
    """Writes a file whole and then gives it its name, so that no reader meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Writes a CSV file; missing values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row[column] is None else row[column] for column in columns])
    write_text(path, text.getvalue())


def export(record: Record, privacy: Iterable[Row]) -> None:
    """Writes the CSV files of a record's folder."""
    assert record.folder is not None
    write_rows(record.folder / "evaluations.csv", EVALUATIONS, record.evaluations)
    write_rows(record.folder / "costs.csv", COSTS, record.costs)
    write_rows(record.folder / "privacy.csv", PRIVACY, privacy)


def finish(record: Record) -> None:
    """Writes the final model and, last of all, the summary."""
    assert record.folder is not None
    tensors = {name: value.detach().cpu().contiguous() for name, value in record.params.items()}
    partial = record.folder / ".model.safetensors.part"
    safetensors.torch.save_file(tensors, partial)
    partial.replace(record.folder / "model.safetensors")
    write_text(
        record.folder / "summary.json", json.dumps(record.summary, indent=2, allow_nan=False) + "\n"
    )
