"""A device answers from its own config, data and state; its secrets lie below its own root."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.app.user_config import UserConfig

from fedcl.assembly import build_site
from fedcl.config import Experiment, load_config
from fedcl.core.client import Kept, Model, Reply
from fedcl.core.local import CrossEntropy, Local
from fedcl.core.privacy.noise import key_of
from fedcl.core.request import Position, Request
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.device import app, at_home
from fedcl.flower.node import client_app
from fedcl.flower.node.client_app import introduce, respond
from fedcl.flower.node.memories import ClientMemory
from fedcl.flower.protocol.introductions import Introduced, Introduction
from fedcl.flower.protocol.messages import read_failure, read_reply
from tests.commands import write_config
from tests.flower.lying import repacked, structured
from tests.flower.nodes import EXPERIMENT, context, device, question_of
from tests.tiny import first_parameters, same, tiny, watched

PRIVATE = {
    "training.local": {"name": "dp_sgd", "clip": 0.5, "noise_multiplier": 0.6, "batch_size": 6}
}


def training(experiment: Experiment, position: Position | None = None) -> Request:
    """Returns local training from the first parameters."""
    at = position or Position(0, 0, 0)
    return Request(at, Local(CrossEntropy()), Model(first_parameters(experiment)))


def answered(content: RecordDict, request: Request, experiment: Experiment) -> tuple[Reply, bool]:
    """Returns a reply; fails with what the client told instead."""
    assert read_failure(content) is None
    return read_reply(content, request.position, vocabulary(experiment.method))


def refused(content: RecordDict) -> tuple[str, str]:
    """Returns kind and reason of a failure."""
    failure = read_failure(content)
    assert failure is not None
    return failure[0], failure[1]


def test_a_device_answers_as_a_site_does(tmp_path: Path) -> None:
    experiment, request = tiny(), training(tiny())
    find = device(write_config(tmp_path), tmp_path / "state", client=2)
    found, remembered = answered(
        respond(question_of(experiment, request).write(), find), request, experiment
    )
    assert same(found, build_site(experiment).answer(request, 2, None, request.message).reply)
    assert not remembered


def test_what_it_remembers_lies_in_its_state_folder_and_is_found_by_the_next_process(
    tmp_path: Path,
) -> None:
    changes = {"method.name": "replay"}
    experiment = tiny(changes)
    (first, _), (second, _) = watched(experiment)[1].requests[:2]
    config, state = write_config(tmp_path, changes), tmp_path / "a" / "state"
    assert answered(
        respond(question_of(experiment, first).write(), device(config, state)), first, experiment
    )[1]
    memory = ClientMemory(state / "experiments" / EXPERIMENT / "0", vocabulary(experiment.method))
    assert memory.moments() == [(0, 0, 0, 0)]
    # The next message finds another context, and nothing that this process still knows.
    later = question_of(experiment, second, Kept((0, 0, 0, 0)))
    once = respond(later.write(), device(config, state))
    assert answered(once, second, experiment)[1]
    assert respond(later.write(), device(config, state)) == once
    site = build_site(experiment)
    before = memory.read(Kept((0, 0, 0, 0)))
    alone = site.answer(second, 0, before, second.message)
    assert same(answered(once, second, experiment)[0], alone.reply)
    assert same(memory.read(Kept((0, 1, 0, 0))), alone.memory)


def test_the_app_answers_messages_of_flower(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    own = context(5, client=1, config=str(config), state=str(tmp_path / "state"))
    experiment, request = tiny(), training(tiny())

    def ask(content: RecordDict, kind: str) -> RecordDict:
        now = time.time()
        asked = make_message(Metadata(1, "1", 2, 5, "", "", now, 60.0, kind, 3, 4), content)
        return app(asked, own).content

    met = ask(Introduction.of(EXPERIMENT, experiment.resolved).write(), "query.introduction")
    assert Introduced.read(met).client == 1
    question = question_of(experiment, request)
    answered(ask(question.write(), "query.exchange"), request, experiment)


def test_its_own_changes_data_and_needs(tmp_path: Path) -> None:
    """The node's `set` and `data` change its config; engine and audits are the server's."""
    changes = {
        "engine": {"name": "no_such_engine"},
        "audit": [{"name": "no_such_audit"}],
        "dataset": {"name": "npz", "root": "/nowhere"},
    }
    config = write_config(tmp_path, changes)
    own = partial(device, config, tmp_path / "state")
    words = 'training.local.lr=0.1 engine.name="ray" stream.partition={ name = "iid" }'
    with own(set=words, data="/here")(EXPERIMENT) as home:
        found = home.own.experiment.resolved
    assert found["training"]["local"]["lr"] == 0.1
    assert found["stream"]["partition"]["name"] == "iid"
    assert found["dataset"]["root"] == "/here"
    assert (found["engine"]["name"], found["audit"]) == ("serial", [])
    _, reason = refused(introduce(Introduction.of(EXPERIMENT, tiny().resolved).write(), own()))
    assert "dataset.classes: nothing here, 4 asked for" in reason


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({}, "the node config names no client: say --node-config 'client=0 config="),
        ({"client": "0"}, "client must be a whole number of at least 0, not '0'"),
        ({"client": True}, "client must be a whole number of at least 0, not True"),
        ({"client": 3}, "the node config of client 3 names no config, its own copy"),
        ({"client": 3, "config": "x.toml"}, "of client 3 names no state, the folder for all"),
        ({"client": 3, "config": 7}, "config in the node config or run config is text, not 7"),
        ({"client": 3, "config": "x", "state": "y", "budget": -1}, "budget must be a whole num"),
        ({"partition-id": 1}, "the run config names no config: say --run-config"),
    ],
)
def test_what_a_node_is_not_told_is_asked_for(own: dict[str, Any], reason: str) -> None:
    asked = Introduction(EXPERIMENT).write()
    kind, found = refused(introduce(asked, partial(at_home, context(**own))))
    assert kind == "ConfigError"
    assert reason in found


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    find = device(tmp_path / "no.toml", tmp_path / "state")
    _, reason = refused(introduce(Introduction(EXPERIMENT).write(), find))
    assert f"client 0: config {tmp_path}/no.toml: No such file or directory; give the" in reason


@pytest.mark.parametrize("id", ["../secrets", "0123456", "ABCDEF0123", "g" * 16, "a" * 65])
def test_an_experiment_is_asked_by_its_id(id: str, tmp_path: Path) -> None:
    question = question_of(tiny(), training(tiny()), name=id)
    kind, reason = refused(
        respond(question.write(), device(write_config(tmp_path), tmp_path / "state"))
    )
    assert kind == "ConfigError"
    assert "ids are 8 to 64 hexadecimal digits" in reason


Change = Callable[[RecordDict], object]


def _set(**values: Any) -> Change:
    return lambda content: content["question"].update(values)


def _structure(text: str) -> Change:
    return lambda content: content.update(
        {"message": repacked(content.array_records["message"], structured(text))}
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.clear(), "KeyError('question')"),
        (lambda content: content.pop("config"), "KeyError('config')"),
        (lambda content: content.pop("message"), "KeyError('message')"),
        (_set(position=[0, 0, 0]), "[0, 0, 0] are not 4 whole numbers"),
        (_set(position=[0.0, 0.0, 0.0, 0.0]), "are not 4 whole numbers"),
        (_set(position=[-1, 0, 0, 0]), "are not 4 whole numbers"),
        (_set(position=7), "TypeError"),
        (_set(base=["../..", "x", "y", "z"]), "are not 4 whole numbers"),
        (_set(committed=[0]), "are not 2 whole numbers"),
        (_set(experiment=5), "experiment is no str but 5"),
        (_set(experiment=""), "it names no experiment"),
        (_set(blank="yes"), "blank is no bool but 'yes'"),
        (_set(secret="xyz"), "non-hexadecimal"),
        (_structure('{"tuple": ["cut'), "cannot be read: Unterminated"),
        (_structure('{"function": "os:system"}'), "'os:system' is not known here"),
        (_structure('{"tuple": [1, 2]}'), "not enough values"),
        (_structure("[" * 100_000), "cannot be read"),
        (lambda content: content["message"].clear(), "its arrays are [], not 'value' alone"),
        (_set(position=[2, 0, 0, 0]), "stage 2, round 0 is asked for, but the config has 2 stage"),
        (_set(position=[0, 3, 0, 0]), "stage 0, round 3 is asked for"),
        (_set(base=[0, 0, 0, 0]), "0_0_0_0.memory is gone"),
    ],
)
def test_whatever_a_question_holds_the_node_answers(
    change: Change, reason: str, tmp_path: Path
) -> None:
    find = device(write_config(tmp_path), tmp_path / "state")
    content = question_of(tiny(), training(tiny())).write()
    change(content)
    kind, found = refused(respond(content, find))
    assert kind != "program", found
    assert reason in found
    assert not list(tmp_path.rglob("*.memory"))


def test_arrays_that_are_none_are_a_failure(tmp_path: Path) -> None:
    find = device(write_config(tmp_path), tmp_path / "state")
    content = question_of(tiny(), training(tiny())).write()
    arrays = content.array_records["message"]
    first = next(iter(arrays.values()))
    first.data = b"\x80\x04cos\nsystem\n(S'true'\ntR."  # what would be run, were it unpickled
    assert "cannot be read" in refused(respond(content, find))[1]


def test_a_question_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = device(write_config(tmp_path), tmp_path / "state")
    question = question_of(tiny(), training(tiny())).write()
    monkeypatch.setattr(client_app, "LIMIT", 1000)
    _, reason = refused(respond(question, find))
    assert "bytes, of which 1000 are allowed (by fedcl)" in reason
    assert not (tmp_path / "state").exists()


def test_a_client_that_the_stream_does_not_have_is_told(tmp_path: Path) -> None:
    find = device(write_config(tmp_path), tmp_path / "state", client=5)
    _, reason = refused(respond(question_of(tiny(), training(tiny())).write(), find))
    assert reason.startswith("client 5 is none of the stream's 5 clients, whose ids begin with 0")


def test_a_memory_beyond_the_budget_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    changes = {"method.name": "replay"}
    experiment = tiny(changes)
    (first, _), (second, _) = watched(experiment)[1].requests[:2]
    config, state = write_config(tmp_path, changes), tmp_path / "state"
    roomy, tight = device(config, state, budget=10**6), device(config, state, budget=10)
    answered(respond(question_of(experiment, first).write(), roomy), first, experiment)
    later = question_of(experiment, second, Kept((0, 0, 0, 0)))
    kind, reason = refused(respond(later.write(), tight))
    assert kind == "ConfigError"
    assert "of the 10 bytes that the client may keep: raise budget in the node config" in reason
    files = [path.name for path in state.rglob("*.memory*")]
    assert files == ["0_0_0_0.memory"]
    answered(respond(later.write(), roomy), second, experiment)


def test_an_answer_whose_form_alone_is_wanted_holds_zeros(tmp_path: Path) -> None:
    experiment = tiny(PRIVATE)
    find = device(write_config(tmp_path, PRIVATE), tmp_path / "state")
    request = replace(training(experiment), blank=True)
    reply, _ = answered(
        respond(question_of(experiment, request).write(), find), request, experiment
    )
    assert {n: v.shape for n, v in reply.tensors.items()} == {
        n: v.shape for n, v in first_parameters(experiment).items()
    }
    assert not any(value.any() for value in reply.tensors.values())
    assert reply == Reply(reply.tensors)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., torch.Tensor]:
    """Asks a device that trains privately, and returns its answer as one vector."""
    folder = tmp_path_factory.mktemp("noisy")
    config, experiment = write_config(folder, PRIVATE), tiny(PRIVATE)

    def ask(state: str = "state", **changes: Any) -> torch.Tensor:
        request = replace(training(experiment), **changes.pop("request", {}))
        question = replace(question_of(experiment, request), **changes)
        content = respond(question.write(), device(config, folder / state))
        reply, _ = answered(content, request, experiment)
        return torch.cat([value.flatten() for value in reply.tensors.values()])

    return ask


def test_the_same_question_gets_the_same_noise(noisy: Callable[..., torch.Tensor]) -> None:
    assert torch.equal(noisy(), noisy())
    # A resumed run may ask it again with another place where it would start.
    assert torch.equal(noisy(), noisy(committed=(0, 1)))


def test_what_a_server_sends_as_a_secret_is_not_used(noisy: Callable[..., torch.Tensor]) -> None:
    experiment, request = tiny(PRIVATE), training(tiny(PRIVATE))
    sent = key_of(bytes(32), "sent")
    assert torch.equal(noisy(), noisy(secret=sent))
    with_sent = build_site(experiment).answer(
        replace(request, secret=sent), 0, None, request.message
    )
    known = torch.cat([value.flatten() for value in with_sent.reply.tensors.values()])
    assert not torch.equal(noisy(secret=sent), known)


def test_any_other_question_gets_new_noise(noisy: Callable[..., torch.Tensor]) -> None:
    """Data and message are all but the same, so that what differs is the noise."""
    experiment = tiny(PRIVATE)
    params = first_parameters(experiment)
    nudged = {name: value + 1e-6 for name, value in params.items()}
    others = {
        "attempt": noisy(request={"position": Position(0, 0, 0, 1)}),
        "exchange": noisy(request={"position": Position(0, 0, 1)}),
        "round": noisy(request={"position": Position(0, 1, 0)}),
        "message": noisy(request={"message": Model(nudged)}),
        "program": noisy(request={"program": Local(CrossEntropy(), name="tune")}),
        "experiment": noisy(experiment="fedcba9876543210"),
        "device": noisy("other"),
    }
    for name, other in others.items():
        distance = (noisy() - other).abs().max()
        assert distance > 1e-2, name


@pytest.mark.parametrize("out", [True, False])
def test_in_flowers_own_simulation_it_takes_the_run_config(
    out: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    changes = {"method.name": "replay"}
    config, experiment = write_config(tmp_path, changes), tiny({**changes, "training.rounds": 3})
    run: UserConfig = {"config": str(config), "set": "training.rounds=3"}
    run["out"] = str(tmp_path / "run") if out else ""
    find = partial(at_home, Context(1, 7, {"partition-id": 2}, RecordDict(), run))
    asked = Introduction.of(EXPERIMENT, experiment.resolved).write()
    assert Introduced.read(introduce(asked, find)) == Introduced(2)
    request = watched(experiment)[1].requests[0][0]
    content = respond(question_of(experiment, request).write(), find)
    reply = build_site(experiment).answer(request, 2, None, request.message).reply
    assert same(answered(content, request, experiment), (reply, True))
    place = "run/checkpoint/clients" if out else f"fedcl-simulation-{os.getuid()}"
    (memory,) = tmp_path.rglob("*.memory")
    assert memory == tmp_path / place / EXPERIMENT / "2" / "0_0_0_0.memory"
    assert not list(tmp_path.rglob("identity.json"))


def test_a_simulated_node_writes_into_nobody_elses_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"fedcl-simulation-{os.getuid()}").symlink_to(tmp_path / "theirs")
    run: UserConfig = {"config": str(write_config(tmp_path))}
    own = Context(1, 7, {"partition-id": 2}, RecordDict(), run)
    find = partial(at_home, own)
    assert "is somebody else's" in refused(introduce(Introduction().write(), find))[1]


def test_a_record_of_another_kind_is_no_question(tmp_path: Path) -> None:
    find = device(write_config(tmp_path), tmp_path / "state")
    content = RecordDict({"question": ArrayRecord(), "message": ConfigRecord()})
    assert "cannot be read" in refused(respond(content, find))[1]


def test_the_config_that_a_device_loads_is_the_one_of_its_file(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with device(config, tmp_path / "state")(EXPERIMENT) as home:
        assert home.own.experiment.resolved == load_config(config).resolved
