"""Evaluation on clients' own data as it travels: plain values, to the simulation's bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core import wire
from fedcl.core.client import Kept, Model
from fedcl.core.errors import ExposureError, FedclError
from fedcl.core.memories import Memories
from fedcl.core.survey import Examination, Finding, findings
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.protocol.evaluation import (
    EVALUATION,
    Question,
    answer,
    ask,
    read_findings,
    write_findings,
)
from fedcl.flower.protocol.messages import Coded
from tests.flower.test_questions import assert_plain
from tests.test_survey import CLIENTS
from tests.tiny import Watching, assert_same_runs, first_parameters, tiny

PLACE = (1, 3)
FOUND = (
    Finding("global", "test", 0, 1 / 3, 0.1 + 0.2, 48),
    Finding("personal", "validation", 1, 1.0, 5e-324, 2**31),
)


def carried(content: RecordDict) -> RecordDict:
    """Returns a message as Flower's own protocol carries it between machines."""
    assert_plain(content)
    return recorddict_from_proto(recorddict_to_proto(content))


def question_of(experiment: Experiment, base: Kept | None = None) -> Question:
    words = vocabulary(experiment.method)
    coded = Coded.of(Model(first_parameters(experiment)), words)
    return Question("ab12", {"seed": "1"}, coded, PLACE, ("test", "validation"), 8, base)


# --- A run whose clients are asked by messages alone. ---


@dataclass
class Posted(Watching):
    """An engine whose clients evaluate elsewhere: each by itself, and only messages in between."""

    experiment: str = "ab12"
    config: Mapping[str, str] = field(default_factory=dict)
    live: bool = False
    kinds: set[str] = field(default_factory=set)

    def open(self, site: Any, launch: Mapping[str, Any]) -> None:
        super().open(site, launch)
        self.words = vocabulary(launch["method_object"])
        self.own = fedcl.config.parse(launch["resolved"])

    def present(self, clients: Sequence[int]) -> None:
        return None

    def evaluate(self, examination: Examination, ids: Sequence[int], memories: Memories) -> Any:
        self.memories = memories
        return ask(self, examination, ids, memories)

    def ask(self, kind: str, contents: Mapping[int, RecordDict]) -> Any:
        self.kinds.add(kind)
        return {id: carried(self.reply(id, carried(c))) for id, c in contents.items()}, {}, {}

    def reply(self, id: int, content: RecordDict) -> RecordDict:
        question = Question.read(content)
        assert (question.experiment, dict(question.config)) == ("ab12", {})
        return answer(question, build_site(self.own), vocabulary(self.own.method), id, self.recall)

    def recall(self, base: Kept | None) -> Any:
        raise AssertionError("no memory is needed for the global model")


@pytest.mark.parametrize(
    "method", ["fedavg", {"name": "analytic", "projection": 9}, "fot", "lingo"], ids=str
)
def test_a_run_is_the_simulations_to_the_bit(method: Any) -> None:
    table = {"method": {"name": method} if isinstance(method, str) else method}
    experiment = tiny({**CLIENTS, "stream.validation": 0.2}, **table)
    engine = Posted(experiment.engine)
    record = fedcl.run(replace(experiment, engine=engine))
    assert_same_runs(record, fedcl.run(experiment))
    assert engine.kinds == {EVALUATION}


# --- The question. ---


@pytest.mark.parametrize("base", [None, Kept((0, 1, 0, 2))])
def test_a_question_travels(base: Kept | None) -> None:
    question = question_of(tiny(), base)
    found = Question.read(carried(question.write()))
    assert replace(found, coded=question.coded) == question
    assert found.coded.digest() == question.coded.digest()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("splits", []),
        ("splits", ["train"]),
        ("splits", ["test", "test"]),
        ("batch", 0),
        ("batch", 1.5),
        ("place", [1]),
    ],
)
def test_what_is_no_question_is_not_answered(part: str, value: Any) -> None:
    content = question_of(tiny()).write()
    content.config_records["question"][part] = value
    with pytest.raises(ValueError):
        Question.read(content)


def test_a_client_whose_replies_are_hidden_answers_nobody() -> None:
    experiment = tiny({"channel": [{"name": "secure_aggregation"}]})
    words = vocabulary(experiment.method)
    with pytest.raises(ExposureError, match="client 2 tells nobody"):
        answer(question_of(experiment), build_site(experiment), words, 2, lambda base: None)


def test_a_model_of_its_own_is_made_of_the_memory_that_is_named() -> None:
    experiment = tiny({"stream.validation": 0.2}, method={"name": "tests.plugins:Personal"})
    words, site = vocabulary(experiment.method), build_site(experiment)
    mine = {k: v + 0.3 for k, v in first_parameters(experiment).items()}
    asked: list[Kept | None] = []

    def recall(base: Kept | None) -> Any:
        asked.append(base)
        return mine

    question = question_of(experiment, Kept((0, 1, 0, 2)))
    found = read_findings(carried(answer(question, site, words, 2, recall)), PLACE)
    asks = Examination(*PLACE, question.splits, 8, Model(first_parameters(experiment)))
    assert found == findings(experiment.method, site, asks, 2, mine)
    assert asked == [Kept((0, 1, 0, 2))]
    losses = {(one.model, one.split, one.task): one.loss for one in found}
    assert losses["global", "test", 0] != losses["personal", "test", 0]


# --- The answer. ---


def test_findings_travel() -> None:
    for found in (FOUND, ()):
        assert read_findings(carried(write_findings(PLACE, found)), PLACE) == found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"place": [1, 2]}, r"stale.*\[1, 2\], not \[1, 3\]"),
        ({"place": ["1", "3"]}, "stale"),
        ({"tasks": [0.0, 1.0]}, "its tasks are no list of int"),
        ({"tasks": 3}, "its tasks are no list"),
        ({"tasks": [True, False]}, "its tasks are no list of int"),
        ({"accuracies": [1, 1]}, "its accuracies are no list of float"),
        ({"losses": ["a", "b"]}, "its losses are no list of float"),
        ({"n": [1]}, "different lengths"),
        ({"models": ["local", "global"]}, r"models that there are not: \['local'\]"),
        ({"more": 1}, "does not tell"),
    ],
)
def test_an_odd_answer_is_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    content = write_findings(PLACE, FOUND)
    content.config_records["findings"].update(change)
    with pytest.raises(ValueError, match=reason):
        read_findings(content, PLACE)


def test_an_answer_to_something_else_is_refused() -> None:
    for content in (RecordDict(), RecordDict({"findings": ConfigRecord({"place": list(PLACE)})})):
        with pytest.raises(ValueError, match="does not tell"):
            read_findings(content, PLACE)


@dataclass
class Said:
    """A link over which everybody says what was prepared."""

    answers: Mapping[int, RecordDict]
    bad: Mapping[int, str]
    words: wire.Vocabulary
    live: bool = True
    experiment: str = "ab12"
    config: Mapping[str, str] = field(default_factory=dict)

    def ask(self, kind: str, contents: Mapping[int, RecordDict]) -> Any:
        return self.answers, {}, self.bad


def test_who_answers_badly_is_told_apart_from_who_does_not_answer() -> None:
    experiment = tiny()
    answers = {0: write_findings(PLACE, FOUND), 1: write_findings((0, 0), FOUND), 3: RecordDict()}
    link = Said(answers, {4: "too large"}, vocabulary(experiment.method))
    asked = Examination(*PLACE, ("test",), 8, Model(first_parameters(experiment)))
    found, wrong = ask(link, asked, range(5), Memories())
    assert found == {0: FOUND}
    assert wrong == {
        1: "its answer is stale: it is about (stage, round) = [0, 0], not [1, 3]",
        3: "its answer does not tell what it found",
        4: "too large",
    }
    with pytest.raises(FedclError, match="evaluation failed: too large"):
        ask(replace(link, live=False), asked, range(5), Memories())
