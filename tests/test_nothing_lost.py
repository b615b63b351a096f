"""Whatever ends a run, nothing is lost: killed processes, full disks. All of it is real."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import fedcl
from fedcl.store import Store
from tests.commands import ROOT, assert_refused, call, write_config
from tests.killing import CASES, assert_same_results, killed, start, survive
from tests.tiny import EXACT_FILES, Interrupted, assert_same_folders, interrupt_after

# --- Killed processes. ---


@pytest.mark.slow
@pytest.mark.parametrize(("case", "kills"), [("memories", 3), ("state", 2)])
def test_a_run_that_is_killed_at_random_moments(case: str, kills: int, tmp_path: Path) -> None:
    """Fifty moments each: python -m tests.killing."""
    survive(write_config(tmp_path, CASES[case]), tmp_path, kills, seed=len(case))


def descendants(pid: int) -> set[tuple[int, str]]:
    """Returns the processes below one: their ids, and when they were started."""
    found = {int(f.name): status(int(f.name)) for f in Path("/proc").iterdir() if f.name.isdigit()}
    alive = {child: known for child, known in found.items() if known is not None}
    below = {pid}
    while more := {child for child, (parent, _) in alive.items() if parent in below} - below:
        below |= more
    return {(child, alive[child][1]) for child in below - {pid}}


def status(pid: int) -> tuple[int, str] | None:
    """Returns a living process's parent and when it was started; None when it is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] in "ZX" else (int(words[1]), words[19])


def is_agent(pid: int) -> bool:
    """Whether a process is one of the two of Ray that look once a minute whether their node is."""
    try:
        return b"Agent" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.ray
@pytest.mark.apart
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_driver_leaves_no_workers_behind(tmp_path: Path) -> None:
    config = write_config(tmp_path, CASES["ray"])
    serial = {**CASES["ray"], "engine": {"name": "serial"}}
    fedcl.run(fedcl.load_config(write_config(tmp_path, serial, "s.toml")), tmp_path / "whole")
    process = start(config, tmp_path / "killed")
    assert process.stderr is not None
    process.stderr.readline()  # a stage is done
    started = {(pid, when) for pid, when in descendants(process.pid) if not is_agent(pid)}
    assert killed(process, random.Random(1).uniform(0, 0.2))
    assert len(started) >= 4, "Ray's own processes, and two workers"
    deadline = time.monotonic() + 60
    while left := {pid for pid, when in started if (status(pid) or (0, ""))[1] == when}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert call("run", config, "--out", tmp_path / "killed", "--quiet", "--resume").status == 0
    assert_same_results(tmp_path / "killed", tmp_path / "whole", EXACT_FILES[1:])


# --- Full disks. ---

FULL: dict[str, Any] = {
    "training.rounds": 20,
    "method": {"name": "replay", "budget": 1000},
    "memory.cache": 4000,
}
# The system refuses to let a file grow further, as it does for a quota.
_LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); "


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config of a run, which had room for its files in the folder `whole`."""
    path = write_config(tmp_path, FULL)
    fedcl.run(fedcl.load_config(path), tmp_path / "whole")
    return path


def spoken(words: list[str]) -> str:
    """Runs a command that fails, and returns the one line that it says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode == 77:
        pytest.skip(f"a disk of one's own takes the right to mount one: {done.stderr.strip()}")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    return line


def assert_nothing_lost(config: Path, folder: Path) -> None:
    store = Store(folder / "checkpoint")
    saved = store.saved()
    store.close()
    assert saved is not None and 1 <= saved.rounds < 40, "take another size"
    done: list[int] = []
    experiment = fedcl.load_config(config)
    fedcl.run(experiment, folder, resume=True, watch=lambda now: done.append(now.done))
    assert done == list(range(saved.rounds + 1, 41))
    assert_same_folders(folder, config.parent / "whole")


def test_a_checkpoint_that_may_not_grow(config: Path, tmp_path: Path) -> None:
    program = _LIMITED + "from fedcl.__main__ import main; main()"
    folder = tmp_path / "run"
    words = [sys.executable, "-c", program, "run", str(config), "--out", str(folder), "--quiet"]
    line = spoken(words)
    assert line.startswith(f"error: checkpoint {folder}/checkpoint/state.sqlite cannot be used")
    assert "see to it that the disk has room" in line and line.endswith("then add --resume")
    assert_nothing_lost(config, folder)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a disk in memory")
def test_a_disk_without_room(config: Path, tmp_path: Path) -> None:
    """What lay on the disk is copied to where there is room, and goes on there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=2m tmpfs {disk} || exit 77; "
        f"{sys.executable} -m fedcl run {config} --out {disk}/run --quiet; status=$?; "
        f"cp -r {disk}/run {tmp_path}; exit $status"
    )
    try:
        line = spoken(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script])
    except FileNotFoundError:
        pytest.skip("a disk of one's own takes unshare")
    assert "cannot be used: database or disk is full; see to it that the disk has room" in line
    assert_nothing_lost(config, tmp_path / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize(
    "file", ["evaluations.csv", "costs.csv", "privacy.csv", "model.safetensors", "summary.json"]
)
def test_a_file_without_room(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fedcl.report", None)  # figures take their time
    path = write_config(tmp_path)
    experiment = fedcl.load_config(path)
    fedcl.run(experiment, tmp_path / "whole")
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        fedcl.run(experiment, folder, watch=interrupt_after(3))
    words: list[str | Path] = ["run", path, "--out", folder, "--quiet", "--resume"]
    (folder / f".{file}.part").symlink_to("/dev/full")
    assert_refused(call(*words), "No space left on device", "add --resume to go on", status=1)
    assert not (folder / "summary.json").exists()
    (folder / f".{file}.part").unlink()
    assert call(*words).status == 0
    assert_same_results(folder, tmp_path / "whole")


def test_memories_without_a_folder_and_without_room(tmp_path: Path) -> None:
    changes = {**FULL, "dataset.train": 4000, "dataset.features": [784], "training.rounds": 1}
    config = write_config(tmp_path, {**changes, "method.budget": 10**7})
    program = _LIMITED + (
        "import sys, fedcl\n"
        "try: fedcl.run(fedcl.load_config(sys.argv[1]))\n"
        "except fedcl.ConfigError as error: print(error, file=sys.stderr); sys.exit(2)"
    )
    line = spoken([sys.executable, "-c", program, str(config)])
    assert line.startswith("the clients' memories have no room on disk")
