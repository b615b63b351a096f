"""Resume: a run that was stopped anywhere goes on to the bits of one that was not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import fedcl
from fedcl.config import Experiment
from fedcl.core.engine import Engine
from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site
from tests.ray_house import RayHouse
from tests.tiny import (
    EXACT_FILES,
    Interrupted,
    assert_same_folders,
    interrupt_after,
    read_csv,
    scenario,
    tiny,
)

LATE = {"checkpoint.seconds": 1e9}  # commits at stage ends alone
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
    for file in EXACT_FILES[1:]:
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
