"""Ctrl-C ends a run with one line that says how to go on, and going on gives the same bits."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT, call, write_config


@pytest.fixture
def interrupted(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A config of a long run, and a process that has finished the first of its stages."""
    changes = {"training.rounds": 200, "evaluation.every": 0, "checkpoint.seconds": 0.2}
    config = write_config(tmp_path, changes)
    # Where a shell has told its children to ignore Ctrl-C, Python would too.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from fedcl.__main__ import main; main()"
    )
    words = [sys.executable, "-c", program, "run", str(config), "--out", str(tmp_path / "o u t")]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("stage 1/2: 200 of 400 rounds")
    time.sleep(0.05)  # in the middle of a stage, not of this line
    process.send_signal(signal.SIGINT)
    yield config, process
    process.kill()
    process.communicate()


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX has them")
def test_ctrl_c_says_how_to_go_on_and_a_resumed_run_ends_as_if_nothing_had_been(
    interrupted: tuple[Path, subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, process = interrupted
    monkeypatch.setitem(sys.modules, "fedcl.report", None)  # figures take their time
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    (line,) = err.splitlines()
    start, command = line.split("go on with: ")
    assert start == "stopped; "
    words = shlex.split(command)
    assert words[:2] == ["fedcl", "run"] and words[-1] == "--resume"
    assert not (tmp_path / "o u t" / "summary.json").exists()
    assert call(*words[1:], "--quiet").status == 0
    assert call("run", config, "--out", tmp_path / "whole", "--quiet").status == 0
    for name in ("config.toml", "evaluations.csv", "model.safetensors"):
        resumed, whole = tmp_path / "o u t" / name, tmp_path / "whole" / name
        assert resumed.read_bytes() == whole.read_bytes(), name
