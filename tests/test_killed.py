"""The power cut: a process is killed in the middle of a run, and another goes on."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import fedcl
from tests.tiny import (
    read_csv,
    timeless,
    tiny,
)

ROOT = Path(__file__).parent.parent


def config_file(folder: Path, rounds: int) -> Path:
    experiment = tiny(
        {"training.rounds": rounds, "evaluation.every": 10}, method={"name": "replay"}
    )
    path = folder / "tiny.toml"
    path.write_text(experiment.toml)
    return path


def test_a_killed_process_resumes_to_the_bit(tmp_path: Path) -> None:
    """kill -9 in the middle of the run, then --resume."""
    config = config_file(tmp_path, rounds=90)
    expected = tmp_path / "whole"
    fedcl.run(fedcl.load_config(config), expected)
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "fedcl", "run", str(config), "--out", str(folder), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while _committed_rounds(folder) < 10:
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finally:
        process.kill()
        process.wait()
    assert not (folder / "summary.json").exists(), "it had finished: take more rounds"
    done = _committed_rounds(folder)
    assert 10 <= done < 180
    resumed = subprocess.run(
        [*command, "--resume"], env=environment, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    for file in ("config.toml", "evaluations.csv", "privacy.csv", "model.safetensors"):
        assert (folder / file).read_bytes() == (expected / file).read_bytes(), file
    costs = [timeless(read_csv(run / "costs.csv")) for run in (folder, expected)]
    assert costs[0] == costs[1]


def _committed_rounds(folder: Path) -> int:
    path = folder / "checkpoint" / "state.sqlite"
    if not path.exists():
        return 0
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        row = db.execute("SELECT value FROM meta WHERE key = 'rounds'").fetchone()
    except sqlite3.OperationalError:  # the table is not there yet, or it is being written
        return 0
    finally:
        db.close()
    return 0 if row is None else int(row[0])
