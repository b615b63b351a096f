"""Checkpoints and references that do not fit, and runs that fail: what is said, what stays."""

from __future__ import annotations

import errno
import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedcl
from fedcl import record
from tests.bad_configs import STRANGE
from tests.commands import assert_refused, call, contents, spawn, write_config
from tests.tiny import tiny

# --- Checkpoints. ---


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run, without its report, which takes its time."""
    monkeypatch.setitem(sys.modules, "fedcl.report", None)
    assert call("run", write_config(tmp_path), "--out", tmp_path / "out", "--quiet").status == 0
    return tmp_path / "out"


def resume(done: Path, **changes: Any) -> Any:
    """Goes on with a run, with values of its config replaced."""
    config = write_config(done.parent, {key.replace("__", "."): v for key, v in changes.items()})
    return call("run", config, "--out", done, "--resume")


def test_a_checkpoint_of_another_config_is_refused(done: Path) -> None:
    before = contents(done)
    called = resume(done, training__rounds=3)
    assert_refused(called, "another config: training.rounds was 2 and is 3", "undo the change")
    assert_refused(resume(done, method__name="joint"), "method.name was 'fedavg' and is 'joint'")
    assert_refused(resume(done, seed=1), "seed was 0 and is 1")
    assert contents(done) == before
    assert resume(done, checkpoint__seconds=5.0).status == 0


def test_a_checkpoint_of_another_version_is_refused(done: Path) -> None:
    with sqlite3.connect(done / "checkpoint" / "state.sqlite") as database:
        database.execute("UPDATE meta SET value = ? WHERE key = 'version'", (json.dumps("0.0.1"),))
    database.close()
    before = contents(done)
    called = resume(done)
    assert_refused(called, "made by fedcl 0.0.1", f"this is {fedcl.__version__}", "that version")
    assert contents(done) == before


def overwrite(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def cut(path: Path) -> None:
    """Takes away the second half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def spoil(statement: str) -> Callable[[Path], object]:
    """Returns what changes a database by a statement."""

    def change(path: Path) -> None:
        with sqlite3.connect(path) as database:
            database.execute(statement)
        database.close()

    return change


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(overwrite(b"no database at all, but long enough to be one\n" * 99), id="text"),
        pytest.param(cut, id="cut"),
        pytest.param(spoil("UPDATE state SET data = x'00ff'"), id="state"),
        pytest.param(spoil("UPDATE state SET data = NULL"), id="no state"),
        pytest.param(spoil("UPDATE meta SET value = '{' WHERE key = 'config'"), id="meta"),
        pytest.param(spoil("ALTER TABLE costs RENAME COLUMN bytes TO octets"), id="columns"),
    ],
)
def test_a_damaged_checkpoint_is_refused(damage: Callable[[Path], object], done: Path) -> None:
    damage(done / "checkpoint" / "state.sqlite")
    before = contents(done)
    assert_refused(resume(done), "checkpoint", str(done), "--out")
    assert contents(done) == before


def test_a_file_in_the_place_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "checkpoint").write_text("mine", encoding="utf-8")
    assert_refused(resume(out), f"checkpoint {out}", "cannot be used")
    assert contents(out) == {"checkpoint": b"mine"}


# --- References. ---


def test_a_reference_must_be_a_joint_run_on_the_same_stream(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {
        "fedavg": {},
        "longer": {"method.name": "joint", "stream.tasks": 3},
        "other": {"method.name": "joint", "stream.name": "class_incremental", "stream.tasks": 2},
        "tuned": {
            "method.name": "joint",
            "stream.validation": 0.2,
            "evaluation.splits": ["validation"],
        },
        "joint": {"method.name": "joint"},
    }
    for name, changes in runs.items():
        quick = {"training.rounds": 1, "evaluation.every": 0, **changes}
        fedcl.run(tiny(quick), tmp_path / name)
    for name, fact in {
        "fedavg": "it is a run of 'fedavg'",
        "longer": "it has 3 tasks, not 2",
        "tuned": "its split is 'validation', not 'test'",
        "other": "its stream is 'class_incremental', not 'domain_incremental'",
    }.items():
        config = write_config(tmp_path, {"evaluation.reference": str(tmp_path / name)})
        called = call("run", config, "--out", tmp_path / "out")
        assert_refused(called, "[evaluation] reference", fact, "name the folder of one")
    assert not (tmp_path / "out").exists()
    config = write_config(tmp_path, {"evaluation.reference": str(tmp_path / "joint")})
    assert call("run", config, "--out", tmp_path / "out", "--quiet").status == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["intransigence"] is not None


# --- Runs that fail. ---


def test_training_that_diverges_names_client_and_round_and_leaves_nothing(tmp_path: Path) -> None:
    config, out = write_config(tmp_path, {"training.local.lr": 1e9}), tmp_path / "out"
    called = call("run", config, "--out", out)
    assert_refused(called, "client ", "stage 0, round 0", "lower training.local.lr", status=1)
    assert not out.exists()
    out.mkdir()
    assert call("run", config, "--out", out).status == 1
    assert contents(out) == {}


def test_what_was_committed_before_a_failure_stays(tmp_path: Path) -> None:
    """The second task's inputs are huge, so that training diverges there and not before."""
    x = np.ones((80, 3), np.float32)
    x[40:] = 1e38
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(80) % 2, domain=np.arange(80) // 40)
    changes: dict[str, Any] = {
        "dataset": {"name": "npz", "root": str(tmp_path / "data.npz")},
        "stream.transform": "column",
    }
    called = call("run", write_config(tmp_path, changes), "--out", tmp_path / "out", "--quiet")
    assert_refused(called, "client ", "stage 1, round ", "lower training.local.lr", status=1)
    kept = contents(tmp_path / "out")
    assert "evaluations.csv" in kept and "summary.json" not in kept
    assert not [name for name in kept if name.endswith(".part")]


def test_a_full_disk_keeps_what_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = write_config(tmp_path), tmp_path / "out"

    def full(path: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(record, "write_rows", full)
        called = call("run", config, "--out", out, "--quiet")
    assert_refused(called, "No space left on device", "evaluations.csv", "--resume", status=1)
    assert "summary.json" not in contents(out)
    assert call("run", config, "--out", out, "--quiet", "--resume").status == 0
    assert "summary.json" in contents(out)


@pytest.mark.ray
def test_a_ray_session_that_is_not_there_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"engine": {"name": "ray", "address": "not-an-address"}})
    # In a process of its own: in this one, another test's session may be joined.
    called = spawn("run", config, "--out", tmp_path / "out")
    assert_refused(called, "[engine] Ray cannot be", "engine.address ('not-an-address')")
    assert not (tmp_path / "out").exists()


def test_a_method_that_looks_at_hidden_replies_is_stopped(tmp_path: Path) -> None:
    changes = {
        "method": {"name": f"{STRANGE}:AsksSecretly"},
        "channel": [{"name": "secure_aggregation"}],
    }
    called = call("run", write_config(tmp_path, changes), "--out", tmp_path / "out")
    assert_refused(called, "program 'train' asks for single replies", "use fed.aggregate")
    assert not (tmp_path / "out").exists()


def test_a_mistake_in_a_plug_in_keeps_its_traceback_and_leaves_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"method": {"name": f"{STRANGE}:Breaks"}})
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        call("run", config, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
