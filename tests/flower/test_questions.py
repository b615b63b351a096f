"""Questions and answers: plain values only, answered by a node from its own config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import Array, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.client import Kept, Model
from fedcl.core.local import CrossEntropy, Local, Proximal
from fedcl.core.request import Position, Request
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.node.client_app import respond
from fedcl.flower.node.memories import ClientMemory
from fedcl.flower.protocol.agreement import fingerprints
from fedcl.flower.protocol.messages import Coded, Question, read_failure, read_reply
from fedcl.flower.simulation.nodes import enter, leave
from tests.conformance import every_method, light
from tests.flower.lying import repacked, structured
from tests.flower.nodes import simulated
from tests.flower_trial import Own
from tests.tiny import first_parameters, same, tiny, watched

TRIAL = {"name": "tests.flower_trial:Trial", "fails": 2}


def question_of(
    experiment: Experiment, request: Request, base: Kept | None = None, name: str = "test"
) -> Question:
    """Returns a request as a client is asked it."""
    words = vocabulary(experiment.method)
    coded = Coded.of((request.program, request.message, request.told), words)
    config = fingerprints(experiment.resolved)
    return Question(
        name, config, coded, request.position, base, request.committed, blank=request.blank
    )


def training(experiment: Experiment) -> Request:
    """Returns local training from the first parameters."""
    message = Model(first_parameters(experiment))
    return Request(Position(0, 0, 0), Local(CrossEntropy(), Proximal(0.1)), message)


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., RecordDict]:
    """Asks a client that has the tiny experiment's config, or another one."""

    def ask(question: Question, id: int = 0, own: Experiment | None = None) -> RecordDict:
        if not (tmp_path / question.experiment).exists():
            resolved = (own or tiny()).resolved
            enter(tmp_path, question.experiment, resolved, tmp_path / "clients")
        return respond(question.write(), simulated(tmp_path, id))

    return ask


def assert_plain(content: RecordDict) -> None:
    """Asserts that nothing but numbers, text and tensors as safetensors is inside."""
    assert not content.metric_records
    for record in content.config_records.values():
        for value in record.values():
            for part in value if isinstance(value, list) else [value]:
                assert isinstance(part, int | float | str), type(part)
    for arrays in content.array_records.values():
        for array in arrays.values():
            assert isinstance(array, Array)
            assert array.data.startswith(b"\x93NUMPY"), "no pickle"
            assert array.numpy().dtype == np.uint8
            safetensors.torch.load(array.numpy().tobytes())  # raises for anything else
    assert set(content) == {*content.array_records, *content.config_records}


@every_method
def test_all_that_a_method_asks_travels_as_plain_values(name: str) -> None:
    experiment = tiny(method=light(name), **_public(name))
    words = vocabulary(experiment.method)
    _, engine = watched(experiment)
    for request, _ in engine.requests:
        question = replace(question_of(experiment, request), base=Kept((0, -1, 0, 2)))
        content = question.write()
        assert_plain(content)
        # As Flower's own protocol carries it between machines.
        arrived = Question.read(recorddict_from_proto(recorddict_to_proto(content)))
        assert (arrived.position, arrived.base) == (question.position, question.base)
        assert (arrived.experiment, arrived.config) == (question.experiment, question.config)
        found = arrived.request(words)
        assert found.program == request.program
        assert (found.told, found.secret) == (request.told, request.secret)
        assert found.blank == request.blank
        assert same(found.message, request.message)


def _public(name: str) -> dict[str, Any]:
    from fedcl.config import find

    stream = {**tiny().resolved["stream"], "public": 0.1}
    return {"stream": stream} if getattr(find("methods", name), "needs_public", False) else {}


def test_a_node_answers_as_a_site_does(node: Callable[..., RecordDict]) -> None:
    experiment = tiny()
    request = training(experiment)
    content = node(question_of(experiment, request), id=1)
    assert_plain(content)
    reply, remembered = read_reply(content, request.position, vocabulary(experiment.method))
    assert same(reply, build_site(experiment).answer(request, 1, None, request.message).reply)
    assert not remembered


def test_asking_again_gives_the_same_answer_and_memory(
    node: Callable[..., RecordDict], tmp_path: Path
) -> None:
    experiment = tiny({"method.name": "replay"})
    (first, _), (second, _) = watched(experiment)[1].requests[:2]
    words = vocabulary(experiment.method)
    memory = ClientMemory(tmp_path / "clients" / "0", words)
    once = node(question_of(experiment, first), own=experiment)
    kept = Kept((0, 0, 0, 0))
    before = memory.read(kept)
    later = question_of(experiment, second, kept)
    answers = [node(later) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2] != once
    assert memory.moments() == [(0, 0, 0, 0), (0, 1, 0, 0)]
    assert same(memory.read(kept), before)
    # A run that was cut off and starts again from the beginning.
    assert node(question_of(experiment, first)) == once
    assert memory.moments() == [(0, 0, 0, 0)]


def test_where_only_the_form_is_wanted_no_memory_changes(
    node: Callable[..., RecordDict], tmp_path: Path
) -> None:
    experiment = tiny({"method.name": "replay"})
    (first, _), (second, _) = watched(experiment)[1].requests[:2]
    words = vocabulary(experiment.method)
    memory = ClientMemory(tmp_path / "clients" / "0", words)
    once = node(question_of(experiment, first), own=experiment)
    probe = node(question_of(experiment, replace(first, blank=True)))
    assert read_reply(once, first.position, words)[1]
    assert not read_reply(probe, first.position, words)[1]
    later = question_of(experiment, replace(second, blank=True), Kept((0, 0, 0, 0)))
    assert not read_reply(node(later), second.position, words)[1]
    assert memory.moments() == [(0, 0, 0, 0)]


def test_another_config_is_refused_with_both_values(node: Callable[..., RecordDict]) -> None:
    experiment, other = tiny(), tiny({"training.local.lr": 0.1})
    failure = read_failure(node(question_of(experiment, training(experiment)), own=other))
    assert failure is not None
    kind, reason, _ = failure
    assert kind == "ConfigError"
    mine, asked = (fingerprints(e.resolved)["training"] for e in (other, experiment))
    assert mine != asked
    assert f"(training: {mine} here, {asked} asked for); give both the same" in reason


def test_the_server_may_evaluate_and_commit_as_it_likes(node: Callable[..., RecordDict]) -> None:
    other = tiny({"evaluation.every": 3, "checkpoint.seconds": 5.0, "engine.name": "vectorized"})
    assert read_failure(node(question_of(tiny(), training(tiny())), own=other)) is None


@pytest.mark.parametrize("name", ["unknown", "../test", "..", "a/b"])
def test_a_name_leads_nowhere_but_into_the_folder(
    name: str, node: Callable[..., RecordDict], tmp_path: Path
) -> None:
    enter(tmp_path, "test", tiny().resolved, tmp_path)
    failure = read_failure(
        respond(question_of(tiny(), training(tiny())).write(), simulated(tmp_path, 0))
    )
    assert failure is None
    stranger = question_of(tiny(), training(tiny()), name=name)
    failure = read_failure(respond(stranger.write(), simulated(tmp_path / "test", 0)))
    assert failure is not None and failure[0] == "ConfigError"
    assert f"no config of experiment {name!r}" in failure[1]
    leave(tmp_path, "test")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_fails_is_told(node: Callable[..., RecordDict]) -> None:
    experiment = tiny(method=TRIAL)
    method: Any = experiment.method
    asked = [
        question_of(experiment, Request(Position(1, 0, 0), method.look, Own(id))) for id in (1, 2)
    ]
    failure = read_failure(node(asked[1], id=2, own=experiment))
    assert failure is not None
    assert failure[:2] == ("program", "no luck today")
    assert "in look" in failure[2]
    assert read_failure(node(asked[0], id=1)) is None


def test_a_name_that_a_node_does_not_know_is_not_looked_up(
    node: Callable[..., RecordDict],
) -> None:
    question = question_of(tiny(), training(tiny()))
    coded = Coded(repacked(question.coded.arrays, structured('{"function": "os:system"}')))
    failure = read_failure(node(replace(question, coded=coded)))
    assert failure is not None
    assert "function 'os:system' is not known here" in failure[1]


def test_fingerprints_tell_what_decides_an_answer() -> None:
    prints = fingerprints(tiny().resolved)
    assert {"version", "seed", "dataset", "stream", "model", "method", "training"} <= set(prints)
    other = fingerprints(tiny({"seed": 1}).resolved)
    assert {name for name in prints if prints[name] != other[name]} == {"seed"}


def test_arrays_keep_every_bit() -> None:
    words = vocabulary()
    values = {
        "odd": torch.tensor([0.1, -0.0, float("nan"), float("inf"), 5e-324], dtype=torch.float64),
        "turned": torch.arange(6, dtype=torch.int64).view(2, 3).T,
        "one": torch.tensor(3.5),
        "none": torch.zeros((0, 4)),
        "mask": torch.tensor([True, False]),
    }
    assert same(Coded.of(values, words).read(words), values)
