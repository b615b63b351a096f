"""Runs on data that arrive: files come while they go on, and all that follows is as if prepared."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import fedcl
from fedcl.core.errors import AbsentError, ConfigError, ExposureError
from fedcl.experiment import Progress
from tests.arriving_data import deliver, house, live
from tests.tiny import Interrupted, assert_same_runs, interrupt_after, same, watched

CLIENTS = range(5)


class Courier:
    """Brings each stage's files from a thread of its own, once the stage before is over."""

    def __init__(self, root: Path, stages: int = 3) -> None:
        house(root, arrivals=0)
        self.root, self.stages = root, stages
        self.over = [threading.Event() for _ in range(stages + 1)]
        self.over[0].set()
        self.thread = threading.Thread(target=self._bring)

    def __enter__(self) -> Courier:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for event in self.over:
            event.set()
        self.thread.join()

    def _bring(self) -> None:
        for stage in range(self.stages):
            self.over[stage].wait()
            for client in CLIENTS:
                deliver(self.root, client, stage)
                time.sleep(0.01)

    def watch(self, progress: Progress) -> None:
        if progress.round == progress.rounds:
            self.over[progress.stage + 1].set()


@pytest.mark.parametrize("method", ["replay", "fot"])
def test_files_that_come_in_time_give_the_run_of_prepared_ones(method: str, tmp_path: Path) -> None:
    changes = {"method.name": method, "stream.arrivals": 5}
    prepared = fedcl.run(live(house(tmp_path / "prepared"), changes))
    with Courier(tmp_path / "arriving") as courier:
        arriving = fedcl.run(live(courier.root, changes), watch=courier.watch)
    assert_same_runs(arriving, prepared)
    matrix = prepared.summary["accuracy_matrix"]
    assert [[value is None for value in row] for row in matrix] == [
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]
    assert prepared.summary["forgetting"] is not None
    assert prepared.summary["forward_transfer"] is None  # nobody has what has not arrived


def test_without_borders_a_run_is_repeated_by_its_diaries(tmp_path: Path) -> None:
    root = house(tmp_path / "arriving", arrivals=1)
    changes = {"method.name": "replay", "stream.borders": False, "training.cohort": 0}

    def watch(progress: Progress) -> None:
        if progress.done in (2, 3):
            deliver(root, progress.done, 1)  # for one client alone, between two rounds
            deliver(root, progress.done, 2)

    first = fedcl.run(live(root, changes), tmp_path / "run", watch=watch)
    took = {}
    for client in CLIENTS:
        diary = tmp_path / "run" / "checkpoint" / "clients" / str(client) / "arrivals.json"
        entries = json.loads(diary.read_text())["entries"]
        took[client] = [(entry["stage"], entry["round"]) for entry in entries]
        shutil.copy(diary, root / str(client))
    assert len(took[2]) > 1 and all(place > (0, 1) for place in took[2][1:])
    assert any(round for own in took.values() for _, round in own)  # inside a stage
    assert_same_runs(fedcl.run(live(root, changes)), first)
    for client in CLIENTS:
        (root / str(client) / "arrivals.json").unlink()
    assert not same(dict(fedcl.run(live(root, changes)).params), dict(first.params))


def test_a_resumed_run_meets_the_same_data(tmp_path: Path) -> None:
    changes = {"method.name": "replay", "stream.borders": False, "checkpoint.seconds": 1000}
    whole = fedcl.run(live(house(tmp_path / "whole"), changes))
    root = house(tmp_path / "cut")
    with pytest.raises(Interrupted):
        fedcl.run(live(root, changes), tmp_path / "run", watch=interrupt_after(4))
    for client in CLIENTS:  # what sorts before all others comes too late for what was decided
        shutil.copy(root / str(client) / "000.npz", root / str(client) / "00.npz")
    resumed = fedcl.run(live(root, changes), tmp_path / "run", resume=True)
    rows = [row for row in resumed.evaluations if row["round"] <= 4]
    assert rows == [row for row in whole.evaluations if row["round"] <= 4]


def test_engines_agree(tmp_path: Path) -> None:
    root = house(tmp_path / "house")
    changes = {"training.dtype": "float64", "method.name": "replay"}
    serial = fedcl.run(live(root, changes))
    batched = fedcl.run(live(root, {**changes, "engine.name": "vectorized"}))
    for name, value in serial.params.items():
        assert (value - batched.params[name]).abs().max() < 1e-9


def test_a_damaged_file_stops_nobody(tmp_path: Path) -> None:
    root = house(tmp_path / "house")
    (root / "2" / "0001.npz").write_bytes(b"PK no archive")
    with_it = fedcl.run(live(root, {"training.cohort": 0}))
    (root / "2" / "0001.npz").unlink()
    assert_same_runs(with_it, fedcl.run(live(root, {"training.cohort": 0})))


def test_clients_without_data_are_missing_until_they_have_some(tmp_path: Path) -> None:
    root = house(tmp_path / "house", arrivals=0)
    for number in range(3):
        for client in (1, 4):
            deliver(root, client, number)

    def watch(progress: Progress) -> None:
        if progress.stage == 0:
            for number in range(3):
                deliver(root, 2, number)

    changes = {"training.cohort": 0, "stream.arrivals": 2}
    record, engine = watched(live(root, changes))
    assert record.summary["rounds"] == 6
    assert len(engine.requests) == 6
    assert [id for result in engine.results for id in result.ids] == [1, 4] * 6
    assert {id for result in engine.results for id in result.failures} == {0, 2, 3}
    told = {(row["client"], row["task"]) for row in record.evaluations if row["round"] == 6}
    assert told == {(c, t) for c in (None, 1, 4) for t in range(3)}
    late = fedcl.run(live(root, changes), watch=watch)
    own = {(row["task"], row["stage"]) for row in late.evaluations if row["client"] == 2}
    assert own == {(1, 1), (1, 2), (2, 2)}


def test_a_stage_waits_for_enough_clients_and_then_begins_with_fewer(tmp_path: Path) -> None:
    root = house(tmp_path / "house", arrivals=1)
    deliver(root, 3, 1)  # one has something for stage 1, nobody for stage 2
    changes = {"stream.arrivals": 2, "stream.patience": 0.2, "training.cohort": 0}
    with pytest.raises(AbsentError, match=r"no client has new data for stage 2 after 0.2 s: res"):
        fedcl.run(live(root, changes), tmp_path / "run")
    for client in CLIENTS:
        deliver(root, client, 2)
    resumed = fedcl.run(live(root, changes), tmp_path / "run", resume=True)
    last = {row["task"]: row["n"] for row in resumed.evaluations if row["round"] == 6}
    assert resumed.summary["rounds"] == 6 and set(last) == {0, 1, 2}


def test_clients_are_protected_and_then_nobody_evaluates(tmp_path: Path) -> None:
    root = house(tmp_path / "house")
    channel = [{"name": "central_dp", "clip": 1.0, "noise_multiplier": 1.0}]
    changes: dict[str, Any] = {"stream.arrivals": 0, "channel": channel}
    with pytest.raises(ExposureError, match=r"past .* 'central_dp'"):
        live(root, changes)
    changes["evaluation"] = {"where": "server"}
    record = fedcl.run(live(root, changes))
    assert record.evaluations == [] and record.summary["evaluated_by"] is None
    assert record.summary["epsilon"] > 0 and record.summary["accuracy_matrix"] is None
    with pytest.raises(ConfigError, match=r"part of no proof: set stream.arrivals = 0"):
        fedcl.run(live(root, {**changes, "stream.arrivals": 1}))


def test_that_nobody_drawn_has_data_does_not_show(tmp_path: Path) -> None:
    root = house(tmp_path / "house", arrivals=0)
    for number in range(3):
        deliver(root, 3, number)
    channel = [{"name": "central_dp", "clip": 1.0, "noise_multiplier": 1.0}]
    changes = {"stream.arrivals": 0, "channel": channel, "evaluation": {}, "training.cohort": 1}
    record = fedcl.run(live(root, changes))
    everybody = fedcl.run(live(house(tmp_path / "full"), changes))
    assert record.summary["epsilon"] == everybody.summary["epsilon"] > 0
    assert record.summary["skipped_or_repeated_rounds"] == []


def test_there_must_be_somewhere_for_data_to_arrive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing can arrive here: set it to a folder"):
        fedcl.run(live(""), tmp_path / "run")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "server": ({"evaluation.where": "server"}, 'set evaluation.where = "clients"'),
    "joint": ({"method.name": "joint"}, "'joint' is a reference"),
    "audit": ({"audit": [{"name": "membership"}]}, "leave audits out"),
    "attackers": ({"adversary": {"attack": "label_flip", "clients": [1]}}, "leave it out"),
    "records": (
        {
            "training.local": {"name": "dp_sgd", "noise_multiplier": 1.0, "clip": 1.0},
            "evaluation.where": "server",
        },
        "no epsilon is proven",
    ),
    "tuning": ({"engine": {"name": "vectorized", "tune": True}}, "tune trains the first clients"),
    "reference": ({"evaluation.reference": "runs/joint"}, "there is none: leave it out"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_rows_on_the_server_is_refused_at_start(what: str, tmp_path: Path) -> None:
    changes, why = REFUSED[what]
    with pytest.raises(ConfigError, match=why) as error:
        fedcl.run(live(house(tmp_path / "house", arrivals=0), changes), tmp_path / "run")
    assert "live" in str(error.value) and not (tmp_path / "run").exists()
