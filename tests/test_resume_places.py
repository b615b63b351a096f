"""Where a resumed run begins, and which folders are refused."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

import fedcl
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError, ResumeError
from fedcl.experiment import Progress
from tests.tiny import (
    Interrupted,
    assert_same_folders,
    interrupt_after,
    tiny,
)

LATE = {"checkpoint.seconds": 1e9}  # commits at stage ends alone


def whole(experiment: Experiment, folder: Path) -> Path:
    fedcl.run(experiment, folder)
    return folder


def resumed_rounds(experiment: Experiment, folder: Path) -> list[int]:
    """Resumes a run and returns the rounds that were left to do."""
    done: list[int] = []
    fedcl.run(experiment, folder, resume=True, watch=lambda now: done.append(now.done))
    return done


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    experiment = tiny(method={"name": "replay", "budget": 1000})
    folder = whole(experiment, tmp_path / "run")
    shutil.copytree(folder, tmp_path / "copy")
    assert resumed_rounds(experiment, folder) == []
    assert_same_folders(folder, tmp_path / "copy")


def test_without_a_commit_it_starts_anew(tmp_path: Path) -> None:
    experiment = tiny(LATE)
    expected = whole(experiment, tmp_path / "whole")
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        fedcl.run(experiment, tmp_path / name, resume=True)
        assert_same_folders(tmp_path / name, expected)
    folder = tmp_path / "stopped early"
    with pytest.raises(Interrupted):
        fedcl.run(experiment, folder, watch=interrupt_after(1))
    assert resumed_rounds(experiment, folder) == [1, 2, 3, 4]
    assert_same_folders(folder, expected)


def test_it_goes_on_where_it_was_committed(tmp_path: Path) -> None:
    for seconds, first in ((0, 4), (1e9, 3)):
        experiment = tiny({"checkpoint.seconds": seconds})
        folder = tmp_path / str(seconds)
        with pytest.raises(Interrupted):
            fedcl.run(experiment, folder, watch=interrupt_after(3))
        assert resumed_rounds(experiment, folder) == list(range(first, 5))


def test_seconds_of_all_sittings_are_added(tmp_path: Path) -> None:
    experiment = tiny()
    with pytest.raises(Interrupted):
        fedcl.run(experiment, tmp_path / "run", watch=interrupt_after(2))
    db = sqlite3.connect(tmp_path / "run" / "checkpoint" / "state.sqlite")
    db.execute("UPDATE meta SET value = '1000.0' WHERE key = 'seconds'")
    db.commit()
    db.close()
    assert 1000 < fedcl.run(experiment, tmp_path / "run", resume=True).summary["seconds"] < 1100


# --- Refusals. ---


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a run that was stopped."""
    with pytest.raises(Interrupted):
        fedcl.run(tiny(), tmp_path / "run", watch=interrupt_after(3))
    return tmp_path / "run"


def test_a_folder_in_use_is_refused(stopped: Path) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"is not empty: add --resume"):
        fedcl.run(tiny(), stopped)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_a_folder_in_which_a_run_goes_on_is_refused(tmp_path: Path) -> None:
    """Two that write one checkpoint would leave every row twice."""
    experiment = tiny({"training.rounds": 4})
    refused: list[str] = []

    def meddle(now: Progress) -> None:
        if now.done == 3:
            with pytest.raises(ConfigError, match="in use by another run") as caught:
                fedcl.run(experiment, tmp_path / "run", resume=True)
            refused.append(str(caught.value))

    fedcl.run(experiment, tmp_path / "run", watch=meddle)
    assert len(refused) == 1
    assert_same_folders(tmp_path / "run", whole(experiment, tmp_path / "whole"))
    assert resumed_rounds(experiment, tmp_path / "run") == []


def test_another_config_is_refused_by_the_name_of_the_difference(stopped: Path) -> None:
    for changes, message in (
        ({"seed": 1}, r"seed was 0 and is 1"),
        ({"training.rounds": 3}, r"training.rounds was 2 and is 3"),
        ({"training.local.lr": 0.3}, r"training.local.lr was 0.2 and is 0.3"),
        ({"method.name": "replay"}, r"method"),
        ({"engine.name": "vectorized"}, r"engine"),
    ):
        with pytest.raises(ResumeError, match=message):
            fedcl.run(tiny(changes), stopped, resume=True)
    fedcl.run(tiny(LATE), stopped, resume=True)  # how often is saved changes no result


def test_another_version_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcl.runfolder.__version__", "9.9.9")
    with pytest.raises(ResumeError, match=r"9\.9\.9"):
        fedcl.run(tiny(), stopped, resume=True)


def test_a_damaged_checkpoint_is_refused(stopped: Path) -> None:
    db = sqlite3.connect(stopped / "checkpoint" / "state.sqlite")
    db.execute("UPDATE state SET data = ?", (b"\x08\0\0\0\0\0\0\0{}      ",))
    db.commit()
    db.close()
    with pytest.raises(ResumeError, match="cannot be read, being damaged"):
        fedcl.run(tiny(), stopped, resume=True)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / "state.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(ResumeError, match="checkpoint"):
        fedcl.run(tiny(), tmp_path / "run", resume=True)
