"""`fedcl watch`: runs that go on, have ended or were killed; it changes nothing of them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fedcl
from fedcl import metrics
from fedcl.evaluations import accuracy_matrix
from fedcl.watching.frame import Frame, frame_of
from fedcl.watching.learnt import TaskNow
from fedcl.watching.sources import read
from fedcl.watching.view import shown
from tests.commands import ROOT, assert_refused, call, write_config
from tests.killing import LONG, start
from tests.tiny import Interrupted, interrupt_after, tiny

THREE = {"stream.tasks": 3}


def look(folder: Path) -> Frame:
    return frame_of(read(folder), time.time())


def text(frame: Frame, width: int = 100) -> str:
    """Returns what a terminal without colours shows, without the panel's sides."""
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(shown(frame))
    lines = console.export_text().splitlines()
    return "\n".join(line.strip("│ ").rstrip() for line in lines)


def files(folder: Path) -> dict[str, bytes]:
    """Returns every file of a folder, SQLite's logs too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def cut(folder: Path, rounds: int, changes: Mapping[str, Any]) -> None:
    """Runs the tiny experiment until it is stopped after so many rounds."""
    with pytest.raises(Interrupted):
        fedcl.run(tiny(changes), folder, watch=interrupt_after(rounds))


# --- Frames. ---


@pytest.mark.parametrize("where", ["server", "clients"])
def test_a_finished_run_has_the_numbers_of_its_summary(tmp_path: Path, where: str) -> None:
    record = fedcl.run(tiny({**THREE, "evaluation.where": where}), tmp_path)
    frame, summary = look(tmp_path), record.summary
    assert frame.finished and (frame.stage, frame.stages, frame.round, frame.rounds) == (3, 3, 2, 2)
    assert (frame.done, frame.total, frame.evaluated) == (6, 6, 6)
    assert frame.accuracy == pytest.approx(summary["average_accuracy"], abs=1e-15)
    assert frame.forgetting == pytest.approx(summary["forgetting"], abs=1e-15)
    lost = [task.lost for task in frame.tasks]
    assert lost[2] is None and sum(lost[:2]) / 2 == pytest.approx(frame.forgetting)  # type: ignore[arg-type]
    assert (frame.up, frame.down) == (summary["bytes_up"], summary["bytes_down"])
    assert (frame.epsilon, frame.rejected, frame.skipped, frame.by) == (None, 0, 0, where)
    assert frame.connected is None and frame.failures == {} and frame.trouble == ""
    assert frame.seconds is not None and 0 < frame.seconds < summary["seconds"]


def test_within_a_stage_its_last_evaluation_stands_for_its_end(tmp_path: Path) -> None:
    cut(tmp_path, 5, THREE)
    frame = look(tmp_path)
    assert not frame.finished
    assert (frame.stage, frame.stages, frame.round, frame.done, frame.total) == (3, 3, 1, 5, 6)
    record = fedcl.run(tiny(THREE))
    until = [row for row in record.evaluations if row["round"] <= 5]
    table = accuracy_matrix(until)
    assert frame.forgetting == metrics.forgetting(table.matrix)
    assert [task.accuracy for task in frame.tasks] == table.curve[-1].tolist()
    assert frame.tasks[0].lost == table.matrix[:2, 0].max() - table.matrix[2, 0]
    sums = [row for row in record.costs if row["round"] <= 5]
    assert frame.up == sum(row["bytes"] for row in sums if row["direction"] == "up")
    assert frame.down == sum(row["bytes"] for row in sums if row["direction"] == "down")


def test_orders_of_their_own_have_no_common_stages(tmp_path: Path) -> None:
    table = {**THREE, "stream.order": {"name": "shuffled"}}
    cut(tmp_path / "cut", 4, table)
    frame = look(tmp_path / "cut")
    assert (frame.stage, frame.stages, frame.round, frame.total) == (3, None, 0, None)
    assert [task.lost for task in frame.tasks] == [None] * 3
    assert frame.forgetting is not None
    record = fedcl.run(tiny(table), tmp_path / "whole")
    whole = look(tmp_path / "whole")
    assert whole.forgetting == pytest.approx(record.summary["forgetting"], abs=1e-15)
    assert whole.accuracy == pytest.approx(record.summary["average_accuracy"], abs=1e-15)
    assert (whole.stage, whole.stages) == (3, 3)


def test_epsilon_is_as_of_the_last_stages_end(tmp_path: Path) -> None:
    table = {"channel": [{"name": "central_dp", "noise_multiplier": 2.0}]}
    cut(tmp_path / "cut", 3, table)
    record = fedcl.run(tiny(table), tmp_path / "whole")
    first, last = record.summary["epsilon_by_stage"]
    assert look(tmp_path / "cut").epsilon == pytest.approx(first)
    assert look(tmp_path / "whole").epsilon == last > first


# --- A live federation. ---

LIVE: dict[str, Any] = {
    "stage": 1,
    "stages": 3,
    "round": 1,
    "rounds": 2,
    "done": 3,
    "total": 6,
    "connected": [0, 2, 4],
    "waiting": "for 1 clients to answer",
    "answered": 2,
    "asked": 3,
    "failures": {"4": "no [bold]answer[/bold] within 3 s\x1b[2J"},
    "rejected_total": 7,
    "epsilon": 1.25,
    "bytes_up": 5_000_000,
    "bytes_down": 123,
    "time": 0.0,
}


def test_a_live_federation_tells_of_its_clients(tmp_path: Path) -> None:
    cut(tmp_path, 3, THREE)
    before = look(tmp_path)
    (tmp_path / "live.json").write_text(json.dumps(LIVE))
    frame = look(tmp_path)
    assert frame.connected == (0, 2, 4)
    assert (frame.stage, frame.round, frame.asked, frame.answered) == (2, 1, 3, 2)
    assert (frame.up, frame.down) == (5_000_000, before.down), "whichever is newer"
    assert (frame.rejected, frame.epsilon) == (7, 1.25)
    told = text(frame)
    for line in (
        "fedavg on domain_incremental, seed 0: running",
        "place       stage 2 of 3, round 1 of 2 (3 of 6 in all)",
        "connected   3 of 5 clients: 0, 2, 4",
        "exchange    2 of 3 clients have answered",
        "waiting     for 1 clients to answer",
        "traffic     5.00 MB up",
        "epsilon     1.25",
        "refused     7 messages",
        "1 client did not answer in the last round:",
        "client 4: no [bold]answer[/bold] within 3 s [2J",
    ):
        assert line in told, told
    assert "\x1b" not in told


def test_a_server_that_was_resumed_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    cut(tmp_path, 3, THREE)
    blank = dict.fromkeys(("stage", "stages", "round", "rounds", "done", "total"), 0)
    (tmp_path / "live.json").write_text(json.dumps({**LIVE, **blank, "connected": []}))
    frame = look(tmp_path)
    assert (frame.stage, frame.stages, frame.round, frame.done, frame.total) == (2, 3, 1, 3, 6)
    assert "0 of 5 clients" in text(frame)


@pytest.mark.parametrize("name", ["live.json", "checkpoint/state.sqlite"])
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    cut(tmp_path, 3, THREE)
    for log in (tmp_path / "checkpoint").glob("*-*"):
        log.unlink()
    (tmp_path / name).write_bytes(b"{" * 5000)
    frame = look(tmp_path)
    assert frame.trouble
    assert "could not be read just now" in text(frame)


# --- What is drawn. ---


def test_many_tasks_and_failures_fit_a_terminal(tmp_path: Path) -> None:
    cut(tmp_path, 3, THREE)
    frame = replace(
        look(tmp_path),
        tasks=tuple(TaskNow(t, 0.5, None if t == 99 else 0.25) for t in range(100)),
        failures={str(client): "it has left" for client in range(50)},
        connected=tuple(range(1000)),
        clients=1000,
        epsilon=float("inf"),
        silent=3725.0,
        seconds=61.0,
        down=999,
    )
    told = text(frame)
    assert len(told.splitlines()) < 40
    assert "1 to 85, mean" in told and "50.0 %     25.0 pp" in told
    assert "50 clients did not answer" in told and "and 45 more" in told
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ..." in told
    assert "epsilon     ∞" in told and "999 B down" in told
    assert "1 h 02 min ago" in told and "1 min 01 s of exchanges" in told
    assert all(len(line) <= 60 for line in text(frame, 60).splitlines())


def test_before_the_first_commit_there_is_little_to_see(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(tiny().toml)
    told = text(look(tmp_path))
    assert "begins" in told and "5, simulated" in told and "accuracy" not in told


# --- The command. ---


def test_once_shows_one_frame(tmp_path: Path) -> None:
    fedcl.run(tiny(THREE), tmp_path)
    before = files(tmp_path)
    called = call("watch", tmp_path, "--once")
    assert called.status == 0 and called.err == ""
    assert "seed 0: finished" in called.out and "forgetting" in called.out
    assert "seed 0: finished" in call("watch", tmp_path).out, "a run that has ended ends the watch"
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_what_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(call("watch", tmp_path / name), "is no run's folder", "fedcl run CONFIG --out")


def test_a_run_in_another_process_is_watched_and_killed(tmp_path: Path) -> None:
    config, folder = write_config(tmp_path, {**LONG, "checkpoint.seconds": 0}), tmp_path / "run"
    process, seen = start(config, folder, "--quiet"), list[Frame]()
    try:
        while len({frame.done for frame in seen}) < 4 and process.poll() is None:
            if (folder / "config.toml").exists():
                seen.append(look(folder))
    finally:
        process.kill()
        process.communicate()
    assert {frame.trouble for frame in seen} == {""}
    done = [frame.done for frame in seen]
    assert done == sorted(done) and done[-1] >= 1
    # What a killed run leaves is not touched either: not even SQLite's logs.
    before = files(folder)
    assert "checkpoint/state.sqlite-wal" in before
    frame = look(folder)
    assert frame.done >= done[-1] and f"({frame.done} of 120 in all)" in text(frame)
    assert files(folder) == before


class Terminal:
    """A command that draws on a terminal, which somebody reads."""

    def __init__(self, *words: str | Path) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedcl", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"},
            stdout=theirs,
            stderr=theirs,
            # Whoever runs these tests in the background of a script ignores it, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(theirs)
        self.out = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # it has ended
            while more := os.read(self._ours, 65536):
                self.out += more

    def shows(self, what: bytes) -> bool:
        """Waits until something is drawn; returns whether it is."""
        while what not in self.out and self.process.poll() is None:
            time.sleep(0.01)
        return what in self.out

    def end(self) -> None:
        """Ends it, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._ours)


def test_a_watch_ends_with_the_run_or_when_one_leaves(tmp_path: Path) -> None:
    cut(tmp_path, 3, THREE)
    leaves, stays = Terminal("watch", tmp_path), Terminal("watch", tmp_path, "--every", "0.1")
    try:
        assert leaves.shows(b"3 of 6 in all"), leaves.out
        leaves.process.send_signal(signal.SIGINT)
        assert leaves.process.wait(timeout=120) == 0
        assert b"Traceback" not in leaves.out
        assert stays.shows(b"3 of 6 in all"), stays.out
        fedcl.run(tiny(THREE), tmp_path, resume=True)
        assert stays.process.wait(timeout=120) == 0
        assert stays.shows(b"finished")
    finally:
        leaves.end()
        stays.end()
