"""Workers, and the process that they work for, are killed in the middle of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest

import fedcl
from fedcl.core.errors import FedclError
from tests.commands import ROOT, write_config
from tests.ray_house import RayHouse
from tests.tiny import assert_same_runs, tiny

pytestmark = pytest.mark.ray


def mortal(folder: Path | str, times: int, **tables: Any) -> Any:
    """Returns an experiment of which every client runs in every round, in five fold blocks."""
    method = {"name": "tests.engines.plugins_for_ray:Mortal", "folder": str(folder), "times": times}
    return tiny({"training.cohort": 0, "training.fold": 1}, method=method, **tables)


@pytest.mark.parametrize("inner", ["serial", "vectorized"])
def test_a_worker_that_is_killed_in_a_run_changes_no_bit(
    inner: Literal["serial", "vectorized"], ray_house: RayHouse, tmp_path: Path
) -> None:
    plain = fedcl.run(mortal("", 0, engine={"name": inner}))
    assert_same_runs(fedcl.run(ray_house.on(mortal(tmp_path, 2), 2, inner)), plain)
    assert len(list(tmp_path.iterdir())) == 2


def test_clients_that_cost_one_worker_after_the_other_end_the_run(
    ray_house: RayHouse, tmp_path: Path
) -> None:
    with pytest.raises(FedclError, match=r"program 'train' of clients 1 to 1 in stage 0, round 0"):
        fedcl.run(ray_house.on(mortal(tmp_path, 9), 2, "vectorized"))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.apart
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at all processes")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_run_that_is_stopped(how: signal.Signals, tmp_path: Path) -> None:
    mark = f"FEDCL_TEST={uuid4().hex}"
    changes = {"training.rounds": 50, "stream.tasks": 100, "evaluation.every": 0}
    config = write_config(tmp_path, {**changes, "engine": {"name": "ray", "workers": 2}})
    # Where a shell has told its children to ignore Ctrl-C, Python would too.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from fedcl.__main__ import main; main()"
    )
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "run", str(config), "--out", str(tmp_path / "out")],
            cwd=ROOT,
            env={**os.environ, **dict([mark.split("=")])},
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    try:
        while not (tmp_path / "out" / "costs.csv").exists():  # a stage is finished
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        while len(found := workers(mark)) != 2:  # a title that is being written hides its worker
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        if how is signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does
        else:
            process.send_signal(how)
        status = process.wait(60)
        while left := workers(mark):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    if how is signal.SIGINT:
        assert status == 130
        assert (tmp_path / "said").read_text().splitlines()[-1].startswith("stopped; ")


def workers(mark: str) -> list[str]:
    """Returns the ids of the workers that have a variable in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mine = mark.encode() in (folder / "environ").read_bytes().split(b"\0")
            if mine and (folder / "cmdline").read_text().startswith("ray::Worker"):
                found.append(folder.name)
        except OSError:  # it has ended, or is none of ours
            continue
    return found
