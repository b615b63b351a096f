"""Clients of a live federation evaluate on their own data, as in a simulation if all are there."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

import fedcl
from fedcl.config import Experiment
from fedcl.flower.protocol.evaluation import EVALUATION
from fedcl.progress import Progress
from fedcl.watching.frame import Frame, frame_of
from fedcl.watching.sources import read
from tests.flower.house import Answers, House, opened_house
from tests.tiny import assert_same_runs, read_csv, tiny

pytestmark = pytest.mark.flower

OWN = {
    "engine.name": "flower",
    "engine.grace": 60.0,
    "replies.bad": "reject",
    "training.cohort": 0,
    "evaluation.where": "clients",
}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    (tmp_path / "house").mkdir()
    with opened_house(tmp_path / "house") as opened:
        yield opened


def of(changes: Mapping[str, Any] | None = None, **tables: Any) -> Experiment:
    """Returns a tiny experiment as a ServerApp would run it."""
    return tiny({**OWN, **(changes or {})}, **tables)


def simulated(experiment: Experiment) -> fedcl.Record:
    """Returns the run of the same experiment in the plain loop."""
    return fedcl.run(fedcl.config.parse({**experiment.resolved, "engine": {"name": "serial"}}))


def evaluated(record: fedcl.Record) -> dict[int, set[int]]:
    """Returns the clients that have rows, by round."""
    found: dict[int, set[int]] = {}
    for row in record.evaluations:
        if row["client"] is not None:
            found.setdefault(row["round"], set()).add(row["client"])
    return found


@pytest.mark.parametrize(
    "method", [{"name": "replay"}, {"name": "tests.plugins:Personal"}], ids=["one", "their own"]
)
def test_with_everybody_there_it_is_the_simulation(
    method: dict[str, Any], house: House, tmp_path: Path
) -> None:
    experiment = of(method=method)
    for id in range(5):
        house.join(house.device(id, experiment))
    frames: list[Frame] = []

    def then(now: Progress) -> None:
        frames.append(frame_of(read(tmp_path / "run"), time.time()))

    record = house.run(experiment, tmp_path / "run", then=then)
    assert_same_runs(record, simulated(experiment))
    kinds = [kind for _, kind in house.asked]
    assert kinds.count(EVALUATION) == 25, "five evaluations of five clients"
    assert record.summary["forgetting"] is not None
    # Who looks on sees it.
    assert [frame.done for frame in frames] == [1, 2, 3, 4]
    assert frames[-1].connected == (0, 1, 2, 3, 4)
    assert frames[-1].forgetting == pytest.approx(record.summary["forgetting"], abs=1e-15)
    assert (frames[-1].by, frames[-1].rejected, frames[-1].failures) == ("clients", 0, {})


def spoilt(answers: Answers, what: str) -> Answers:
    """Returns how a client answers that says something odd, or nothing, of its own data."""

    def others(message: Message) -> RecordDict | None:
        content = answers(message)
        if message.metadata.message_type != EVALUATION or content is None:
            return content
        findings = content.config_records["findings"]
        if what == "silent":
            return None
        if what == "nothing":
            return RecordDict()
        if what == "too good":
            findings["accuracies"] = [1.5 for _ in findings["accuracies"]]  # type: ignore[union-attr]
        if what == "not met":
            findings["tasks"] = [1 for _ in findings["tasks"]]  # type: ignore[union-attr]
        if what == "stale":
            findings["place"] = [0, 7]
        if what == "large":
            findings["more"] = "x" * 60_000
        return content

    return others


ODD = {
    "nothing": "its answer does not tell what it found",
    "too good": "its accuracy 1.5 on task 0 (test, global) does not lie in [0, 1]",
    "not met": "it tells of task 1 (test, global), a task that it has not met",
    "stale": "its answer is stale: it is about (stage, round) = [0, 7], not [0, -1]",
    "large": "bytes, of which 50000 are allowed",
}


@pytest.mark.parametrize("what", [*ODD, "silent"])
def test_what_a_client_says_amiss_is_left_out_and_named(
    what: str, house: House, tmp_path: Path
) -> None:
    timeout = 0.5 if what == "silent" else 60.0
    tasks = {"stream.tasks": 1, "training.rounds": 1}
    experiment = of({**tasks, "engine.limit": 50_000, "engine.timeout": timeout})
    for id in range(5):
        own = house.device(id, experiment)
        house.join(spoilt(own, what) if id == 3 else own)
    record = house.run(experiment, tmp_path / "run")
    assert evaluated(record) == {0: {0, 1, 2, 4}, 1: {0, 1, 2, 4}}
    if what == "silent":
        assert record.summary["rejected_replies"] == 0
        return
    rows = read_csv(tmp_path / "run" / "rejected.csv")
    assert [(row["program"], row["client"]) for row in rows] == [("evaluation", "3")] * len(rows)
    assert ODD[what] in rows[0]["reason"]


def test_who_has_left_has_no_rows_and_others_go_on(house: House, tmp_path: Path) -> None:
    experiment = of({"training.minimum": 3})
    nodes = [house.join(house.device(id, experiment)) for id in range(5)]

    def then(now: Progress) -> None:
        if now.done == 2:
            house.engine.presence.grace = 0.0
            house.leave(nodes[2])
            house.await_clients(0, 1, 3, 4)

    record = house.run(experiment, tmp_path / "run", then=then)
    everybody, others = {0, 1, 2, 3, 4}, {0, 1, 3, 4}
    assert evaluated(record) == {0: everybody, 1: everybody, 2: everybody, 3: others, 4: others}
    assert record.summary["forgetting"] is not None
    assert record.summary["clients"]["forgetting"]["count"] == 4
