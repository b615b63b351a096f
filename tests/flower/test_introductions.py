"""Server and node meet: another config or version is refused, and an answer says whose it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedcl import __version__
from fedcl.core.client import Reply
from fedcl.core.errors import ConfigError
from fedcl.core.request import Position
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.node.client_app import introduce
from fedcl.flower.protocol.agreement import differences, fingerprints, shared
from fedcl.flower.protocol.introductions import Introduced, Introduction
from fedcl.flower.protocol.messages import read_failure, read_reply, write_reply
from fedcl.flower.simulation.nodes import enter
from tests.flower.nodes import simulated
from tests.tiny import tiny


def carried(content: RecordDict) -> RecordDict:
    """Returns a message as Flower's own protocol carries it between machines."""
    return recorddict_from_proto(recorddict_to_proto(content))


def test_both_sides_of_an_introduction_travel() -> None:
    asked = Introduction.of("ab12", tiny().resolved)
    assert Introduction.read(carried(asked.write())) == asked
    assert json.loads(asked.config) == shared(tiny().resolved)
    answer = Introduced(3, "f00d", 2)
    assert Introduced.read(carried(answer.write())) == answer


def test_a_config_is_compared_key_by_key() -> None:
    own = tiny({"training.local.lr": 0.1, "stream.tasks": 3, "method.name": "fedprox"})
    found = differences(own.resolved, json.loads(json.dumps(tiny().resolved)))
    assert found == (
        "method.mu: 0.01 here, nothing asked for, "
        'method.name: "fedprox" here, "fedavg" asked for, '
        "stream.tasks: 3 here, 2 asked for, "
        "training.local.lr: 0.1 here, 0.2 asked for"
    )
    assert differences(own.resolved, own.resolved) == ""


def test_lists_of_tables_are_compared_step_by_step() -> None:
    one = {"channel": [{"name": "clip", "norm": 1.0}, {"name": "clip", "norm": 2.0}]}
    other = {"channel": [one["channel"][0], {"name": "clip", "norm": 3.0}]}
    assert differences(one, other) == "channel[1].norm: 2.0 here, 3.0 asked for"
    shorter = differences(one, {"channel": one["channel"][:1]})
    assert shorter.startswith('channel[1].name: "clip" here, nothing asked for')
    assert differences(one, {"channel": []}).startswith("channel: nothing here, [] asked for")


def test_many_differences_are_counted() -> None:
    found = differences(tiny().resolved, {"seed": 0})
    assert found.count("here, nothing asked for") == 6
    assert found.endswith("more")


def test_own_affairs_are_not_compared() -> None:
    other = tiny(
        {
            "evaluation.every": 3,
            "checkpoint.seconds": 5.0,
            "engine.name": "vectorized",
            "memory.cache": 1,
            "replies.bad": "reject",
        }
    ).resolved
    other = {**other, "dataset": {**other["dataset"], "root": "/here"}}
    assert differences(other, tiny().resolved) == ""
    assert fingerprints(other) == fingerprints(tiny().resolved)
    assert "/here" not in Introduction.of("ab12", other).config


def test_another_config_is_refused_with_both_values(tmp_path: Path) -> None:
    enter(tmp_path, "test", tiny({"training.local.lr": 0.1}).resolved, tmp_path)
    failure = read_failure(
        introduce(Introduction.of("test", tiny().resolved).write(), simulated(tmp_path, 2))
    )
    assert failure is not None
    assert failure[:2] == (
        "ConfigError",
        "client and server have different configs (training.local.lr: 0.1 here, 0.2 asked for); "
        "give both the same",
    )
    agreed = Introduction.of("test", tiny({"training.local.lr": 0.1}).resolved)
    assert Introduced.read(introduce(agreed.write(), simulated(tmp_path, 2))) == Introduced(2)


def test_another_version_is_refused_with_both(tmp_path: Path) -> None:
    other = Introduction("test", Introduction.of("test", tiny().resolved).config, "0.0.1")
    with pytest.raises(ConfigError, match=rf"\({__version__} here, 0\.0\.1 asked for\); install"):
        other.check(tiny().resolved)


def test_before_there_is_an_experiment_nothing_is_compared(tmp_path: Path) -> None:
    asked = Introduction("", "no JSON", "0.0.1").write()
    assert Introduced.read(introduce(asked, simulated(tmp_path, 4))) == Introduced(4)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"introduction": ConfigRecord({"experiment": "test"})},
        {"introduction": ConfigRecord({"experiment": 1, "config": "{}", "version": "1"})},
        {"introduction": ConfigRecord({"experiment": "no", "config": "{}", "version": "1"})},
    ],
)
def test_a_bad_introduction_is_a_failure(content: dict[str, ConfigRecord], tmp_path: Path) -> None:
    assert read_failure(introduce(RecordDict(dict(content)), simulated(tmp_path, 0))) is not None


@pytest.mark.parametrize("config", ["no JSON", "[1]"])
def test_a_config_that_is_none_is_refused(config: str) -> None:
    with pytest.raises(ConfigError, match="the server's config is no"):
        Introduction("test", config).check(tiny().resolved)


@pytest.mark.parametrize(
    ("plain", "error"),
    [
        ({"client": 1, "token": ""}, KeyError),
        ({"client": "1", "token": "", "arrived": 0}, TypeError),
        ({"client": 1, "token": 5, "arrived": 0}, TypeError),
        ({"client": -1, "token": "", "arrived": 0}, ValueError),
    ],
)
def test_an_answer_that_is_none_is_an_error(
    plain: dict[str, str | int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Introduced.read(RecordDict({"introduction": ConfigRecord(dict(plain))}))


def test_an_answer_says_which_question_it_answers() -> None:
    words, position = vocabulary(), Position(1, -1, 2, 3)
    content = carried(write_reply(Reply({}), True, position, words))
    assert read_reply(content, position, words) == (Reply({}), True)
    with pytest.raises(ValueError, match=r"stale: it answers .* = \[1, -1, 2, 3\], not \[1, 0,"):
        read_reply(content, Position(1, 0, 2, 3), words)
