"""Real `fedcl run` processes that are killed at random moments, resumed, and killed again.

python -m tests.killing --kills 50 --case memories
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.commands import ROOT, write_config
from tests.tiny import EXACT_FILES, read_csv, timeless

LONG = {"training.rounds": 60, "evaluation.every": 20, "checkpoint.seconds": 0.1}
# What a run can carry from round to round: memories most of which have no room in RAM, rounds that
# were skipped, bases, what clients keep for the end of a stage, a channel's state.
CASES: dict[str, dict[str, Any]] = {
    "memories": {
        **LONG,
        "method": {"name": "replay", "budget": 1000},
        "memory.cache": 4000,
        "training.availability": 0.7,
        "training.minimum": 2,
        "training.shortfall": "repeat",
    },
    "state": {
        **LONG,
        "method": {
            "name": "fot",
            "statistics_model": "local",
            "statistics_clients": "cohort",
            "server": "adam",
            "server_lr": 0.01,
        },
        "channel": [{"name": "tests.plugins:Growing"}],
        "training.local.lr": 0.001,
    },
    "ray": {
        **LONG,
        "training.rounds": 30,
        "method": {"name": "replay", "budget": 1000},
        "memory.cache": 4000,
        "engine": {"name": "ray", "workers": 2, "inner": "serial"},
    },
}
# Says when it begins; figures would take longer than the run.
_PROGRAM = (
    "import sys; sys.modules['fedcl.report'] = None; import fedcl.experiment, fedcl.config; "
    "from fedcl.__main__ import main; print('ready', flush=True); main()"
)


def start(config: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    """Starts `fedcl run` and returns its process at the moment at which its work begins."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "run", str(config), "--out", str(folder), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def finish(process: subprocess.Popen[str]) -> None:
    """Waits until a process has ended well."""
    _, said = process.communicate()
    assert process.returncode == 0, said


def killed(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kills a process after so many seconds, and returns whether it had not ended before."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    finish(process)
    return False


def assert_same_results(folder: Path, expected: Path, files: Sequence[str] = EXACT_FILES) -> None:
    """Asserts that two runs left the same files, but for wall times."""
    for file in files:
        assert (folder / file).read_bytes() == (expected / file).read_bytes(), file
    costs = [timeless(read_csv(run / "costs.csv")) for run in (folder, expected)]
    assert costs[0] == costs[1]


def survive(config: Path, place: Path, kills: int, seed: int) -> int:
    """Kills runs at random moments and resumes them; each must end as one that was left alone.

    Args:
        config: What to run.
        place: Where the folders of runs go.
        kills: How often a process is killed.
        seed: Seed of the moments.

    Returns:
        How many runs came to their end.
    """
    moments = random.Random(seed)
    expected = place / "whole"
    process = start(config, expected, "--quiet")
    began = time.perf_counter()
    finish(process)
    length = time.perf_counter() - began
    runs = left = 0
    while left < kills or not runs:
        folder = place / f"killed {runs}"
        while left < kills and killed(
            start(config, folder, "--quiet", "--resume"), moments.uniform(0, length)
        ):
            left += 1
        if not (folder / "summary.json").exists():
            finish(start(config, folder, "--quiet", "--resume"))
        assert_same_results(folder, expected)
        runs += 1
    return runs


def main(words: Sequence[str] | None = None) -> None:
    """Kills as often as asked for, and says how many runs survived it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--case", choices=list(CASES), default="memories")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), CASES[given.case])
        runs = survive(config, Path(folder), given.kills, given.seed)
    print(f"{given.case}: {given.kills} kills, {runs} runs, all equal to the bit")


if __name__ == "__main__":
    main()
