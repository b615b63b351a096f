"""What a run's folder tells while the run goes on: read without a lock and without a write.

The checkpoint is a SQLite file in write-ahead mode. While a run writes it there is a log beside it,
of which a reader takes a snapshot and writes nothing, not even its own marks (`readonly_shm`).
Without a log nobody writes, and the file is read as it is (`immutable`).
"""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import tomllib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedcl.core.errors import ConfigError

Row = Mapping[str, Any]
_EVALUATIONS = ("round", "stage", "client", "model", "task", "split", "metric", "value", "n")
# What clients do not do in a round, and so no part of its time.
_ASIDE = ("evaluation", "decomposition")
_META = ("stage", "round", "rounds", "events", "rejected")


@dataclass(frozen=True)
class Told:
    """What lies in a run's folder.

    Attributes:
        folder: The folder.
        config: The resolved config; empty where there is none yet.
        summary: Contents of summary.json, or None while the run goes on.
        live: Contents of live.json, or None in a simulation.
        meta: What the checkpoint says of the run's place: stage and round that come next, finished
            `rounds`, `events`, and `rejected` replies; empty before the first commit.
        evaluations: Accuracies, with the columns that the metrics need.
        traffic: Bytes by direction.
        seconds: Time of the last round's exchanges, or None.
        privacy: Rows of privacy.csv: as of the last stage's end.
        heard: When something was written last, in seconds since the epoch, or None.
        trouble: What could not be read, and why; nothing when all could.
    """

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    live: Mapping[str, Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    evaluations: tuple[Row, ...] = ()
    traffic: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None
    privacy: tuple[Row, ...] = ()
    heard: float | None = None
    trouble: str = ""


def read(folder: Path) -> Told:
    """Returns what a run's folder tells now.

    Raises:
        ConfigError: It is no run's folder.
    """
    checkpoint = folder / "checkpoint" / "state.sqlite"
    if not (folder / "config.toml").is_file() and not checkpoint.is_file():
        raise ConfigError(
            f"{folder} is no run's folder: it has neither config.toml nor a checkpoint. Name a "
            "folder that a run writes to (fedcl run CONFIG --out FOLDER)"
        )
    files: dict[str, Any] = {}
    trouble: list[str] = []
    for name, load in (("config.toml", tomllib.loads), ("summary.json", json.loads)):
        files[name] = _load(folder / name, load, trouble)
    live = _load(folder / "live.json", json.loads, trouble)
    privacy = _load(folder / "privacy.csv", _table, trouble) or []
    finished = files["summary.json"] is not None
    tables: dict[str, Any] = {}
    try:
        tables = _exported(folder) if finished else _committed(checkpoint)
    except (sqlite3.Error, OSError, ValueError, KeyError) as error:
        trouble.append(f"{'the tables' if finished else 'the checkpoint'}: {error}")
    return Told(
        folder,
        config=files["config.toml"] or {},
        summary=files["summary.json"],
        live=live if isinstance(live, dict) else None,
        privacy=tuple(privacy),
        heard=_heard(folder, checkpoint),
        trouble="; ".join(trouble),
        **tables,
    )


def _load(path: Path, load: Any, trouble: list[str]) -> Any:
    """Returns what a file holds, or None; files are written whole, so the next look may do."""
    try:
        return load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, csv.Error) as error:
        trouble.append(f"{path.name}: {error}")
        return None


def _table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _heard(folder: Path, checkpoint: Path) -> float | None:
    written = []
    places = ("live.json", "config.toml", "summary.json")
    logs = (checkpoint.with_name(checkpoint.name + suffix) for suffix in ("", "-wal"))
    for path in (*(folder / name for name in places), *logs):
        try:
            written.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(written, default=None)


def _committed(path: Path) -> dict[str, Any]:
    """Returns what the last commit says."""
    if not path.is_file():
        return {}
    logs = [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]
    how = "readonly_shm" if all(log.exists() for log in logs) else "immutable"
    address = f"file:{quote(str(path.resolve()))}?mode=ro&{how}=1"
    with closing(sqlite3.connect(address, uri=True, timeout=0)) as db:
        made = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if not {"meta", "evaluations", "costs"} <= made:  # it has just begun
            return {}
        db.execute("BEGIN")  # one snapshot for all that follows
        meta = {
            key: json.loads(value)
            for key, value in db.execute("SELECT key, value FROM meta WHERE key != 'config'")
            if key in _META
        }
        columns = ", ".join(_EVALUATIONS)
        rows = db.execute(
            f"SELECT {columns} FROM evaluations WHERE metric = 'accuracy' AND model != 'local'"
        )
        evaluations = tuple(dict(zip(_EVALUATIONS, row, strict=True)) for row in rows)
        sums = "SELECT direction, SUM(bytes) FROM costs WHERE direction != '' GROUP BY direction"
        traffic = dict(db.execute(sums).fetchall())
        aside = ", ".join("?" * len(_ASIDE))
        (seconds,) = db.execute(
            "SELECT SUM(seconds) FROM costs WHERE direction = '' AND round = "
            f"(SELECT MAX(round) FROM costs) AND payload NOT IN ({aside})",
            _ASIDE,
        ).fetchone()
    return {
        "meta": meta,
        "evaluations": evaluations,
        "traffic": traffic,
        "seconds": seconds,
    }


def _exported(folder: Path) -> dict[str, Any]:
    """Returns what the tables of a finished run say."""
    evaluations = _table((folder / "evaluations.csv").read_text(encoding="utf-8"))
    costs = _table((folder / "costs.csv").read_text(encoding="utf-8"))
    traffic = {"up": 0, "down": 0}
    for row in costs:
        if row["direction"]:
            traffic[row["direction"]] += int(row["bytes"] or 0)
    last = max((int(row["round"]) for row in costs), default=0)
    times = [
        float(row["seconds"])
        for row in costs
        if row["seconds"] and int(row["round"]) == last and row["payload"] not in _ASIDE
    ]
    return {
        "evaluations": tuple(
            row for row in evaluations if row["metric"] == "accuracy" and row["model"] != "local"
        ),
        "traffic": traffic,
        "seconds": sum(times) if times else None,
    }
