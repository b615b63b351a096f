"""A live federation, watched from outside: time, memory, and what became of its messages."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from bench.crowd import crowd, dismissed
from bench.memory import megabytes
from bench.processes import processor_seconds
from bench.superlink import SuperLink, superlink

FEATURES, HIDDEN, CLASSES, OWN = 40, 256, 10, 20
SIZE = 4 * ((FEATURES + 1) * HIDDEN + (HIDDEN + 1) * CLASSES)  # bytes of the model
_PATIENCE = 900.0  # seconds that a round may take
_LOOK = 0.1  # seconds between two looks at `live.json`


@dataclass
class Load:
    """What was measured.

    Attributes:
        nodes: Number of nodes.
        rounds: How many rounds were wanted.
        ends: Seconds since all nodes were connected, of the end of each round.
        memory: MB by program, then.
        work: Seconds of processor time by program, then.
        failures: Why clients have not answered, as the ServerApp told at the end of a round.
        kept: Rows of the SuperLink's database by table, when the run was over; none without a file.
        told: What the nodes say that they did; see `bench.crowd.dismissed`.
        up: Bytes of models that the ServerApp has recorded from clients, by round.
        down: The same to clients.
        rejected: Replies that the ServerApp has refused.
        status: How the run ended.
    """

    nodes: int
    rounds: int
    ends: list[float] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)
    work: list[dict[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    up: dict[int, int] = field(default_factory=dict)
    down: dict[int, int] = field(default_factory=dict)
    rejected: int = 0
    status: str = ""


def table(nodes: int, rounds: int) -> dict[str, Any]:
    """Returns the config: everybody is asked in every round, and has 20 examples of its own."""
    return {
        "dataset": {"name": "synthetic", "features": FEATURES, "train": OWN * nodes, "test": 200},
        "stream": {"name": "domain_incremental", "tasks": 1, "clients": nodes},
        "model": {"name": "mlp", "hidden": [HIDDEN]},
        "method": {"name": "fedavg"},
        "training": {
            "rounds": rounds,
            "cohort": 0,
            "minimum": nodes,
            "device": "cpu",
            "local": {"name": "sgd", "epochs": 1, "batch_size": 10, "lr": 0.05},
        },
        "evaluation": {"every": 0},
        "engine": {"name": "flower"},
    }


def measure(nodes: int, rounds: int, out: Path, durable: bool) -> Load:
    """Runs a federation once.

    Args:
        nodes: How many.
        rounds: How many.
        out: An empty folder; the run's own is `run` in it.
        durable: Whether the SuperLink keeps its state in a file.

    Raises:
        RuntimeError: Nodes or SuperLink end, the run does not end well, or a round takes too long.
    """
    out = out.resolve()
    config = out / "config.toml"
    config.write_text(tomli_w.dumps(table(nodes, rounds)), encoding="utf-8")
    load = Load(nodes, rounds)
    with (
        superlink(out / "superlink", durable) as link,
        crowd(link.address, nodes, config, out) as people,
    ):
        run = link.run({"config": config, "out": out / "run"})
        _follow(load, link, people, run, out)
        load.kept = link.rows()
        load.told = dismissed(people)
    _read(load, out / "run")
    save(load, out)
    return load


def _follow(
    load: Load, link: SuperLink, people: subprocess.Popen[str], run: int, out: Path
) -> None:
    """Notes time, memory and failures at the end of each round, in `out/load.json` too."""
    begun = last = asked = time.monotonic()
    while True:
        now = time.monotonic()
        live = _live(out / "run")
        if live.get("done", 0) > len(load.ends):
            load.ends.append(now - begun)
            load.memory.append(megabytes())
            load.work.append(processor_seconds())
            load.failures += live["failures"].values()
            save(load, out)
            last = now
        if now - last > _PATIENCE or people.poll() is not None:
            raise RuntimeError(f"nothing goes on after {len(load.ends)} rounds:\n{link.log()}")
        if now - asked > 20 * _LOOK:  # each of these questions costs the SuperLink time, too
            asked = now
            load.status = link.status(run)
            if load.status.startswith("finished"):
                return
        time.sleep(_LOOK)


def save(load: Load, out: Path) -> None:
    """Writes what has been measured so far: an hour's work that breaks off has told that much."""
    (out / "load.json").write_text(json.dumps(dataclasses.asdict(load)), encoding="utf-8")


def _live(folder: Path) -> Mapping[str, Any]:
    path = folder / "live.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _read(load: Load, folder: Path) -> None:
    """Reads what the ServerApp has recorded."""
    with (folder / "costs.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["payload"] == "model":
                sums = {"up": load.up, "down": load.down}[row["direction"]]
                sums[int(row["round"])] = sums.get(int(row["round"]), 0) + int(row["bytes"])
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    load.rejected = summary["rejected_replies"]
    load.failures += map(str, summary["skipped_or_repeated_rounds"])
