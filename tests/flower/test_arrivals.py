"""Devices whose own data arrive: each answers as the same client of a prepared simulation does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.client import Model
from fedcl.core.local import CrossEntropy, Local
from fedcl.core.request import Position, Request
from fedcl.core.survey import Examination, findings
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.node.client_app import Find, evaluate, introduce, respond, tell_arrivals
from fedcl.flower.protocol import arrivals, evaluation
from fedcl.flower.protocol.agreement import fingerprints
from fedcl.flower.protocol.introductions import Introduced, Introduction
from fedcl.flower.protocol.messages import Coded, read_failure, read_reply
from tests.arriving_data import deliver, house, live
from tests.commands import write_config
from tests.flower.nodes import EXPERIMENT, device, question_of
from tests.tiny import first_parameters, same, tiny

CLIENT = 3


@pytest.fixture
def experiment() -> Experiment:
    """The server's: it has no folder of arrivals."""
    return live("")


@pytest.fixture
def find(tmp_path: Path, experiment: Experiment) -> Find:
    """A device, in whose folder nothing has arrived."""
    (tmp_path / "run.toml").write_text(experiment.toml)
    (tmp_path / "data").mkdir()
    own = {"client": CLIENT, "data": str(tmp_path / "data")}
    return device(tmp_path / "run.toml", tmp_path / "state", **own)  # type: ignore[arg-type]


def bring(tmp_path: Path, number: int) -> None:
    """Lets the same file arrive at the device and in the simulation."""
    path = deliver(tmp_path / "brought", CLIENT, number)
    shutil.move(path, tmp_path / "data" / path.name)


def training(experiment: Experiment, stage: int, round: int = 0) -> Request:
    at = Position(stage, round, 0)
    return Request(at, Local(CrossEntropy()), Model(first_parameters(experiment)))


def answer(find: Find, experiment: Experiment, request: Request) -> Any:
    content = respond(question_of(experiment, request).write(), find)
    assert read_failure(content) is None
    return read_reply(content, request.position, vocabulary(experiment.method))[0]


def is_ready(find: Find, experiment: Experiment, stage: int) -> Any:
    question = arrivals.Question(EXPERIMENT, fingerprints(experiment.resolved), stage)
    told = tell_arrivals(question.write(), find).config_records["arrivals"]
    assert told["stage"] == stage
    return told["ready"]


def test_an_introduction_counts_what_has_arrived(
    tmp_path: Path, experiment: Experiment, find: Find
) -> None:
    asked = Introduction.of(EXPERIMENT, experiment.resolved).write()
    for number in range(3):
        assert Introduced.read(introduce(asked, find)).arrived == number
        bring(tmp_path, number)
        answer(find, experiment, training(experiment, number))  # what is learnt goes on to count


def test_a_device_answers_as_in_a_prepared_simulation(
    tmp_path: Path, experiment: Experiment, find: Find
) -> None:
    site = build_site(live(house(tmp_path / "house")), tmp_path / "keep")
    first, second = training(experiment, 0), training(experiment, 1)
    assert not is_ready(find, experiment, 0)
    bring(tmp_path, 0)
    assert is_ready(find, experiment, 0)
    before = answer(find, experiment, first)
    assert same(before, site.answer(first, CLIENT, None, first.message).reply)
    assert is_ready(find, experiment, 0) and not is_ready(find, experiment, 1)
    bring(tmp_path, 1)
    assert is_ready(find, experiment, 1)
    assert same(answer(find, experiment, first), before)  # asked again, it is the same
    assert same(
        answer(find, experiment, second), site.answer(second, CLIENT, None, second.message).reply
    )
    assert same(answer(find, experiment, first), before)  # the server rolled back
    (diary,) = (tmp_path / "state").rglob("arrivals.json")
    assert [entry["name"] for entry in json.loads(diary.read_text())["entries"]] == [
        "000.npz",
        "001.npz",
    ]


def test_a_device_evaluates_old_tasks_as_in_a_prepared_simulation(
    tmp_path: Path, experiment: Experiment, find: Find
) -> None:
    site = build_site(live(house(tmp_path / "house")), tmp_path / "keep")
    for stage in range(2):
        bring(tmp_path, stage)
        request = training(experiment, stage)
        answer(find, experiment, request)
        site.answer(request, CLIENT, None, request.message)
    state = experiment.method.init(first_parameters(experiment))
    view = experiment.method.for_prediction(state)
    words = vocabulary(experiment.method)
    for stage in range(2):
        question = evaluation.Question(
            EXPERIMENT,
            fingerprints(experiment.resolved),
            Coded.of(view, words),
            (stage, 1),
            ("test",),
            1024,
        )
        content = evaluate(question.write(), find)
        assert read_failure(content) is None
        found = evaluation.read_findings(content, (stage, 1))
        asked = Examination(stage, 1, ("test",), 1024, view)
        assert found == findings(experiment.method, site, asked, CLIENT)
        assert [one.task for one in found] == list(range(stage + 1))


def test_a_device_without_data_says_so(experiment: Experiment, find: Find) -> None:
    content = respond(question_of(experiment, training(experiment, 0)).write(), find)
    failure = read_failure(content)
    assert failure is not None
    assert failure[0] == "AbsentError" and "no data have arrived" in failure[1]


@pytest.mark.parametrize(
    "plain", [{}, {"experiment": EXPERIMENT}, {"experiment": EXPERIMENT, "stage": "1"}]
)
def test_what_is_no_question_is_refused(plain: dict[str, Any], find: Find) -> None:
    content = RecordDict({"question": ConfigRecord(plain), "config": ConfigRecord()})
    failure = read_failure(tell_arrivals(content, find))
    assert failure is not None and "the question cannot be read" in failure[1]


def test_whose_data_do_not_arrive_says_so(tmp_path: Path) -> None:
    find = device(write_config(tmp_path), tmp_path / "state")
    question = arrivals.Question(EXPERIMENT, fingerprints(tiny().resolved), 0)
    failure = read_failure(tell_arrivals(question.write(), find))
    assert failure is not None and "the client's do not arrive" in failure[1]


class Nodes:
    """A link to nodes that answer at once."""

    def __init__(self, answers: dict[int, RecordDict]) -> None:
        self.answers = answers
        self.experiment = EXPERIMENT
        self.config: Mapping[str, str] = {"version": "1"}

    def ask(
        self, kind: str, contents: Any, timeout: float | None = None
    ) -> tuple[dict[int, RecordDict], dict[int, str], dict[int, str]]:
        assert kind == "query.arrivals" and timeout
        assert all(arrivals.Question.read(content).stage == 2 for content in contents.values())
        return {id: told for id, told in self.answers.items() if id in contents}, {}, {}


def test_only_who_says_yes_for_this_stage_is_ready() -> None:
    said: list[dict[str, Any]] = [
        {"stage": 2, "ready": True},
        {"stage": 2, "ready": False},
        {"stage": 1, "ready": True},
        {"stage": 2, "ready": 1},
        {},
    ]
    told = {id: RecordDict({"arrivals": ConfigRecord(one)}) for id, one in enumerate(said)}
    told[5] = RecordDict()
    told[6] = told[0]
    assert arrivals.ask(Nodes(told), range(6), 2) == [0]
