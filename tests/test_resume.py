"""Resume: a run that was stopped anywhere goes on to the bits of one that was not."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import fedcl
from fedcl.config import Experiment
from fedcl.core.engine import BlockResult, Engine, Request, Site
from fedcl.core.errors import ConfigError, ResumeError
from fedcl.core.population import Memories
from tests.ray_house import RayHouse
from tests.tiny import (
    Interrupted,
    interrupt_after,
    read_csv,
    scenario,
    timeless,
    tiny,
)

LATE = {"checkpoint.seconds": 1e9}  # commits at stage ends alone
EXACT = ("config.toml", "evaluations.csv", "privacy.csv", "model.safetensors")
# Everything that a run can carry from round to round.
METHODS: dict[str, dict[str, Any]] = {
    "server optimizer": {"name": "fedavg", "server": "adam", "server_lr": 0.02},
    "memories": {"name": "replay", "budget": 1000},
    "bases and local models": {
        "name": "fot",
        "statistics_model": "local",
        "statistics_clients": "cohort",
        "gpse": "sketch",
        "server": "momentum",
    },
    "its start": {"name": "joint"},
    "personal models": {"name": "tests.plugins:Personal"},
}


def assert_same_folders(a: Path, b: Path) -> None:
    """Asserts that two finished runs left the same, but for their wall times."""
    for file in EXACT:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file
    assert timeless(read_csv(a / "costs.csv")) == timeless(read_csv(b / "costs.csv"))
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (a, b)]
    for summary in summaries:
        assert summary.pop("seconds") > 0
    assert summaries[0] == summaries[1]


@dataclass
class Breaking:
    """An engine that breaks down in the middle of one of its exchanges."""

    inner: Engine
    at: int
    asked: int = 0

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Opens the inner engine."""
        self.inner.open(site, launch)

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the first block of the fatal exchange, then fails."""
        self.asked += 1
        for result in self.inner.run(request, ids, memories):
            yield result
            if self.asked == self.at:
                raise Interrupted

    def close(self) -> None:
        """Closes the inner engine."""
        self.inner.close()


def whole(experiment: Experiment, folder: Path) -> Path:
    fedcl.run(experiment, folder)
    return folder


def resumed_rounds(experiment: Experiment, folder: Path) -> list[int]:
    """Resumes a run and returns the rounds that were left to do."""
    done: list[int] = []
    fedcl.run(experiment, folder, resume=True, watch=lambda now: done.append(now.done))
    return done


# --- Equality. ---


@pytest.mark.parametrize("seconds", [0, 1e9], ids=["every round", "stage ends"])
@pytest.mark.parametrize("carried", list(METHODS))
def test_stopped_after_any_round(carried: str, seconds: float, tmp_path: Path) -> None:
    def made() -> Experiment:
        return tiny({"checkpoint.seconds": seconds}, method=METHODS[carried])

    expected = whole(made(), tmp_path / "whole")
    for rounds in (1, 2, 3, 4):
        folder = tmp_path / f"stopped after {rounds}"
        with pytest.raises(Interrupted):
            fedcl.run(made(), folder, watch=interrupt_after(rounds))
        assert not (folder / "summary.json").exists()
        fedcl.run(made(), folder, resume=True)
        assert_same_folders(folder, expected)


@pytest.mark.parametrize("carried", ["memories", "its start", "bases and local models"])
def test_stopped_in_the_middle_of_an_exchange(carried: str, tmp_path: Path) -> None:
    """Nothing of a round that did not end is kept: no memory, no row, no cost."""
    experiment = tiny(method=METHODS[carried])
    expected = whole(experiment, tmp_path / "whole")
    for at in range(1, 7):
        folder = tmp_path / f"stopped in {at}"
        broken = replace(experiment, engine=Breaking(experiment.engine, at))
        try:
            fedcl.run(broken, folder)
        except Interrupted:
            fedcl.run(experiment, folder, resume=True)
        assert_same_folders(folder, expected)


def test_stopped_again_and_again(tmp_path: Path) -> None:
    experiment = tiny({"training.rounds": 4, **LATE}, method=METHODS["memories"])
    expected = whole(experiment, tmp_path / "whole")
    folder = tmp_path / "stopped"
    for rounds in (2, 3, 5, 5, 7):
        with pytest.raises(Interrupted):
            fedcl.run(experiment, folder, resume=True, watch=interrupt_after(rounds))
    fedcl.run(experiment, folder, resume=True)
    assert_same_folders(folder, expected)


@pytest.mark.parametrize("engine", ["vectorized", "auto"])
def test_other_engines(engine: str, tmp_path: Path) -> None:
    experiment = tiny(LATE, method=METHODS["memories"], engine={"name": engine})
    expected = whole(experiment, tmp_path / "whole")
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fedcl.run(experiment, folder, watch=interrupt_after(3))
    fedcl.run(experiment, folder, resume=True)
    assert_same_folders(folder, expected)


@pytest.mark.ray
def test_ray_resumes_with_other_workers(ray_house: RayHouse, tmp_path: Path) -> None:
    def made(workers: int) -> Experiment:
        table = {"name": "ray", "workers": workers, "inner": "serial"}
        experiment = tiny(method=METHODS["memories"], engine=table)
        return ray_house.on(experiment, workers, "serial")

    expected = whole(tiny(method=METHODS["memories"]), tmp_path / "whole")
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fedcl.run(made(1), folder, watch=interrupt_after(3))
    fedcl.run(made(2), folder, resume=True)
    for file in EXACT[1:]:
        assert (folder / file).read_bytes() == (expected / file).read_bytes()
    assert "workers = 2" in (folder / "config.toml").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"training.availability": 0.4, "training.minimum": 2, "training.rounds": 4},
        {
            "training.availability": 0.4,
            "training.minimum": 2,
            "training.rounds": 4,
            "training.shortfall": "repeat",
        },
        {"training.sampling": "poisson", "training.rounds": 4},
        {"training.sampling": "round_robin", "training.rounds": 4},
        {"stream.order": {"name": "shuffled"}},
        {"stream.order": {"name": "staggered"}, "training.rounds": 1},
        {**scenario("class"), "stream.validation": 0.2, "evaluation.splits": ["validation"]},
        {"training.dtype": "float64", "evaluation.every": 0},
    ],
)
def test_other_circumstances(changes: dict[str, Any], tmp_path: Path) -> None:
    for commits in ({}, LATE):
        experiment = tiny({**changes, **commits}, method=METHODS["memories"])
        expected = whole(experiment, tmp_path / f"whole {len(commits)}")
        folder = tmp_path / f"stopped {len(commits)}"
        with pytest.raises(Interrupted):
            fedcl.run(experiment, folder, watch=interrupt_after(3))
        fedcl.run(experiment, folder, resume=True)
        assert_same_folders(folder, expected)


def test_the_channels_state_is_resumed(tmp_path: Path) -> None:
    channel = [{"name": "tests.plugins:Growing"}]
    experiment = tiny({"training.local.lr": 0.01}, channel=channel)
    expected = whole(experiment, tmp_path / "whole")
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fedcl.run(experiment, folder, watch=interrupt_after(3))
    fedcl.run(experiment, folder, resume=True)
    assert_same_folders(folder, expected)


def test_the_checkpoint_is_the_truth_not_the_tables(tmp_path: Path) -> None:
    experiment = tiny()
    expected = whole(experiment, tmp_path / "whole")
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fedcl.run(experiment, folder, watch=interrupt_after(3))
    (folder / "evaluations.csv").write_text("round,stage\n7,7\n")
    (folder / "costs.csv").unlink()
    (folder / "config.toml").write_text("seed = 99\n")
    fedcl.run(experiment, folder, resume=True)
    assert_same_folders(folder, expected)


def test_tables_are_written_at_stage_ends_for_those_who_look(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fedcl.run(tiny(), tmp_path / "run", watch=interrupt_after(3))
    assert {row["round"] for row in read_csv(tmp_path / "run" / "evaluations.csv")} == {
        "0",
        "1",
        "2",
    }


# --- Where it begins. ---


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    experiment = tiny(method=METHODS["memories"])
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
    monkeypatch.setattr("fedcl.journal.__version__", "9.9.9")
    with pytest.raises(ResumeError, match=r"9\.9\.9"):
        fedcl.run(tiny(), stopped, resume=True)


def test_a_damaged_checkpoint_is_refused(stopped: Path) -> None:
    db = sqlite3.connect(stopped / "checkpoint" / "state.sqlite")
    db.execute("UPDATE state SET data = ?", (b"\x08\0\0\0\0\0\0\0{}      ",))
    db.commit()
    db.close()
    with pytest.raises(ResumeError, match="is damaged"):
        fedcl.run(tiny(), stopped, resume=True)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / "state.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(ResumeError, match="checkpoint"):
        fedcl.run(tiny(), tmp_path / "run", resume=True)
