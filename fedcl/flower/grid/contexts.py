"""What nodes keep between messages, in memory or in a folder from which a run can go on."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, RecordDict

from fedcl.core.errors import ConfigError, ResumeError
from fedcl.flower.grid.letters import Kept
from fedcl.flower.grid.node import read_state, write_state

FILE = "contexts.sqlite"
_FORMAT = "1"
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS contexts (
    node INTEGER PRIMARY KEY, answered INTEGER NOT NULL, state BLOB NOT NULL
);
"""
_SERVER = 0  # the row of the server app's own context


class Contexts:
    """The contexts of all nodes; only those that were asked occupy space.

    Attributes:
        run: Flower's id of the run, the same in every sitting.
        server: The server app's own context, whose state is committed with the nodes'.
    """

    def __init__(self, folder: Path | None, resume: bool, **identity: object) -> None:
        """Opens a folder's contexts, or begins new ones.

        Args:
            folder: Where they lie; None keeps them in memory.
            resume: Whether the folder may hold those of an earlier sitting.
            identity: What must be the same when a run goes on, such as the number of clients.

        Raises:
            ConfigError: The folder cannot be used.
            ResumeError: Its contexts belong to another run.
        """
        self.server: Context | None = None
        self._folder, self._changed = folder, dict[int, Kept]()
        self._database = _open(folder)
        try:
            self.run = self._begin(resume, {name: str(value) for name, value in identity.items()})
        except BaseException:
            self._database.close()
            raise

    def _begin(self, resume: bool, identity: dict[str, str]) -> int:
        """Checks whose contexts these are and returns the run's id."""
        identity = {**identity, "format": _FORMAT}
        with self._database:
            self._database.executescript(_TABLES)
            known = dict(self._database.execute("SELECT name, value FROM facts"))
            if not known:
                known = {**identity, "run": str(int.from_bytes(os.urandom(7), "big"))}
                self._database.executemany("INSERT INTO facts VALUES (?, ?)", known.items())
            elif not resume:
                raise ConfigError(
                    f"folder {self._folder} holds the contexts of an earlier run: add --resume to "
                    "go on with them, or name another --state"
                )
        for name, value in identity.items():
            if known.get(name) != value:
                raise ResumeError(
                    f"the contexts in {self._folder} have {name} = {known.get(name)}, this run has "
                    f"{value}: make them equal, or name another --state"
                )
        return int(known["run"])

    def server_state(self) -> RecordDict:
        """Returns the state that the server app's context has been committed with."""
        return read_state(self.of(_SERVER).state)

    def of(self, node: int) -> Kept:
        """Returns what is kept of a node."""
        if node in self._changed:
            return self._changed[node]
        rows = self._database.execute("SELECT answered, state FROM contexts WHERE node = ?", [node])
        row = rows.fetchone()
        return Kept() if row is None else Kept(*row)

    def change(self, kept: Mapping[int, Kept]) -> None:
        """Keeps something else of some nodes from now on; `commit` makes it last."""
        self._changed.update(kept)

    def commit(self) -> None:
        """Writes all that has changed, and the server's own state, in one transaction."""
        if self.server is not None and self._folder is not None:
            server = Kept(0, write_state(self.server.state))
            if server != self.of(_SERVER):
                self._changed[_SERVER] = server
        rows = [(node, kept.answered, kept.state) for node, kept in self._changed.items()]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO contexts VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise OSError(f"contexts cannot be written to {self._folder}: {error}") from error
        self._changed.clear()

    def close(self) -> None:
        """Lets go of the folder; what was not committed is dropped."""
        self._database.close()


def _open(folder: Path | None) -> sqlite3.Connection:
    """Returns the database of a folder, held against other processes."""
    if folder is None:
        return sqlite3.connect(":memory:", check_same_thread=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(folder / FILE, timeout=0.0, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"folder {folder} cannot be written ({error}): name another --state"
        ) from error
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.Error as error:
        database.close()
        raise ConfigError(
            f"the contexts in {folder} cannot be opened ({error}): another run may use them; wait "
            "for it, or name another --state"
        ) from error
    return database
