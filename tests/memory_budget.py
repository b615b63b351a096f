"""Peak memory of a real run of `replay`, against the same run in which nobody remembers anything.

python -m tests.memory_budget --clients 10000 --cache 50000000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

ROOT = Path(__file__).parent.parent
FEATURES, CLASSES, TASKS = 784, 10, 5
ROW = 4 * FEATURES + 8 + 8 + CLASSES  # inputs, label, stage, head
_PROGRAM = "import sys, fedcl; fedcl.run(fedcl.load_config(sys.argv[1]), sys.argv[2])"


class Spent(NamedTuple):
    """What a process has needed.

    Attributes:
        peak: Bytes of RAM at most.
        disk: Bytes of the checkpoint that it left.
        seconds: Wall time.
    """

    peak: int
    disk: int
    seconds: float


def spent(folder: Path, clients: int, remembered: int, cache: int, engine: str = "serial") -> Spent:
    """Runs `replay` in a process of its own, with all clients in each round.

    Args:
        folder: Where its files go.
        clients: Number of clients; each gets a fifth of `remembered` new examples a stage, or ten
            when it is to remember none.
        remembered: Examples of 784 floats that each client remembers in the end.
        cache: Bytes of `[memory]`.
        engine: How clients run.
    """
    table: dict[str, Any] = {
        "dataset": {
            "name": "synthetic",
            "classes": CLASSES,
            "features": [FEATURES],
            "train": clients * 10,
            "test": 100,
        },
        "stream": {"name": "domain_incremental", "tasks": TASKS, "clients": clients},
        "model": {"name": "mlp", "hidden": [16]},
        "method": {"name": "replay", "budget": remembered * ROW},
        "training": {
            "rounds": 1,
            "local": {"name": "sgd", "lr": 0.05, "batch_size": 50},
        },
        "engine": {"name": engine},
        "evaluation": {"every": 0, "clients": 0},
        "memory": {"cache": cache},
    }
    name = f"{engine}-{remembered}-{cache}"
    config = folder / f"{name}.toml"
    config.write_text(tomli_w.dumps(table), encoding="utf-8")
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", _PROGRAM, str(config), str(folder / name)]
    process = subprocess.Popen(words, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    disk = sum(file.stat().st_size for file in (folder / name / "checkpoint").iterdir())
    unit = 1 if sys.platform == "darwin" else 1024
    return Spent(usage.ru_maxrss * unit, disk, time.perf_counter() - start)


def main(words: Sequence[str] | None = None) -> None:
    """Prints what the given number of clients needs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--remembered", type=int, default=50)
    parser.add_argument("--cache", type=int, default=50_000_000)
    parser.add_argument("--engine", default="serial")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        forgetful = spent(Path(folder), given.clients, 0, given.cache, given.engine)
        full = spent(Path(folder), given.clients, given.remembered, given.cache, given.engine)
    for name, value, unit in (
        ("memories of all clients", given.clients * given.remembered * ROW / 1e6, "MB"),
        ("cache", given.cache / 1e6, "MB"),
        ("peak without memories", forgetful.peak / 1e6, "MB"),
        ("peak with memories", full.peak / 1e6, "MB"),
        ("difference", (full.peak - forgetful.peak) / 1e6, "MB"),
        ("checkpoint", full.disk / 1e6, "MB"),
        ("time without memories", forgetful.seconds, "s"),
        ("time with memories", full.seconds, "s"),
    ):
        print(f"{name:25}{value:9.1f} {unit}")


if __name__ == "__main__":
    main()
