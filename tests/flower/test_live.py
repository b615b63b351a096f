"""Clients that come and go, in one process: who takes part, who is refused, what is left out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

import fedcl
from fedcl.config import Experiment
from fedcl.core.errors import FedclError
from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.flower.protocol.messages import EXCHANGE, INTRODUCTION
from fedcl.flower.server import live
from fedcl.flower.server.guestbook import open_guestbook
from fedcl.flower.server.status import Status
from fedcl.journal import Journal
from fedcl.ledgerfile import LedgerFile
from fedcl.progress import Progress
from tests.flower.house import LATER, Answers, House, opened_house
from tests.flower.lying import LIES, lie
from tests.tiny import (
    Interrupted,
    Watching,
    assert_same_runs,
    interrupt_after,
    read_csv,
    same,
    tiny,
)

pytestmark = pytest.mark.flower

CLIENTS = 5
LONG = {"engine.grace": 60.0, "engine.patience": 60.0}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    (tmp_path / "house").mkdir()
    with opened_house(tmp_path / "house") as opened:
        yield opened


def of(changes: dict[str, Any] | None = None, **tables: Any) -> Experiment:
    """Returns a tiny experiment as a ServerApp would run it; all clients are asked."""
    own = {"engine.name": "flower", "replies.bad": "reject", "training.cohort": 0, **LONG}
    return tiny({**own, **(changes or {})}, **tables)


def simulated(experiment: Experiment, without: Sequence[int] = ()) -> fedcl.Record:
    """Returns the run of the same experiment in the plain loop, where some clients never answer."""

    @dataclass
    class Without(Watching):
        def run(
            self, request: Request, ids: Sequence[int], memories: Memories
        ) -> Iterator[BlockResult]:
            yield from super().run(request, [id for id in ids if id not in without], memories)

    serial = fedcl.config.parse({**experiment.resolved, "engine": {"name": "serial"}})
    return fedcl.run(replace(serial, engine=Without(serial.engine)))


def joined(house: House, experiment: Experiment, clients: Sequence[int]) -> dict[int, int]:
    """Lets honest clients in; returns their nodes."""
    return {id: house.join(house.device(id, experiment)) for id in clients}


def status_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "live.json").read_text())
    return found


@pytest.mark.parametrize("method", ["fedavg", "replay", "fot"])
def test_with_everybody_there_it_is_the_simulation(
    method: str, house: House, tmp_path: Path
) -> None:
    experiment = of(method={"name": method})
    joined(house, experiment, range(CLIENTS))
    record = house.run(experiment, tmp_path / "run")
    assert_same_runs(record, simulated(experiment))
    told = status_of(tmp_path / "run")
    assert told["connected"] == [0, 1, 2, 3, 4]
    assert (told["done"], told["total"], told["waiting"]) == (4, 4, "")
    assert (told["answered"], told["failures"], told["rejected_total"]) == (5, {}, 0)
    assert told["bytes_up"] == record.summary["bytes_up"]
    assert told["bytes_down"] == record.summary["bytes_down"]


def liar(device: Answers, lies: Sequence[str]) -> Answers:
    """Returns a client that answers each question with the next lie, and then goes on."""
    told = 0

    def answers(message: Message) -> RecordDict | None:
        nonlocal told
        honest = device(message)
        if message.metadata.message_type == INTRODUCTION or honest is None:
            return honest
        told += 1
        return lie(lies[(told - 1) % len(lies)], honest)

    return answers


def test_lies_are_refused_named_and_reach_no_aggregate(house: House, tmp_path: Path) -> None:
    # 68 rounds of one exchange: each lie four times in a row of 68.
    changes = {"training.rounds": 2 * len(LIES), "engine.limit": 60_000, "evaluation.every": 0}
    experiment = of(changes)
    joined(house, experiment, range(4))
    house.join(liar(house.device(4, experiment), list(LIES)))
    record = house.run(experiment, tmp_path / "run")
    honest = simulated(experiment, without=[4])
    assert same(dict(record.params), dict(honest.params))
    found = read_csv(tmp_path / "run" / "rejected.csv")
    assert len(found) == 4 * len(LIES) == record.summary["rejected_replies"]
    assert {row["client"] for row in found} == {"4"}
    for row, (what, reason) in zip(found, [*LIES.items()] * 4, strict=True):
        assert reason in row["reason"], what


BOTH = "training.local.lr: 0.9 here, 0.2 asked for"


def test_nodes_with_another_config_end_a_run_that_needs_them(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_AGAIN", 0.01)
    few = {"training.minimum": 2, "engine.patience": 1.0, "engine.grace": 1.0}
    house.join(house.device(0, of(few)))
    other, seen = house.device(1, of({**few, "training.local.lr": 0.9})), list[str]()

    def answers(message: Message) -> RecordDict | None:
        if (tmp_path / "run" / "live.json").exists():
            seen.append(status_of(tmp_path / "run")["waiting"])
        return other(message)

    house.join(answers)
    with pytest.raises(FedclError, match=rf"1 of the 2 clients .*{re.escape(BOTH)}.*resume=true"):
        house.run(of(few), tmp_path / "run")
    assert BOTH in seen[-1], "who looks on is told why nothing goes on"


def test_a_run_that_needs_fewer_goes_on_and_says_who_was_refused(house: House) -> None:
    experiment = of({"engine.grace": 1.0})
    house.join(house.device(0, experiment))
    house.join(house.device(1, of({"training.local.lr": 0.9})))
    record = house.run(experiment)
    alone = simulated(experiment, without=range(1, CLIENTS))
    assert same(dict(record.params), dict(alone.params))
    (refused,) = record.summary["refused_nodes"]
    assert (refused["stage"], refused["round"], refused["what"]) == (0, 0, "refused")
    assert BOTH in refused["why"]


def test_only_the_first_device_is_a_client(house: House) -> None:
    experiment = of()
    joined(house, experiment, range(CLIENTS))
    strangers: list[int] = []

    def then(now: Progress) -> None:
        if now.done == 1:
            for _ in range(2):  # told once, however often it comes
                strangers.append(house.join(house.device(2, experiment, state="another")))
            strangers.append(house.join(house.device(CLIENTS, experiment)))
            house.await_asked(*strangers)

    record = house.run(experiment, then=then)
    assert_same_runs(record, simulated(experiment))
    told = sorted(str(event["why"]) for event in record.summary["refused_nodes"])
    assert len(told) == 2
    assert "client 2 is another device" in told[0] and "client 5, but ids go" in told[1]
    assert all((node, EXCHANGE) not in house.asked for node in strangers)


def test_a_client_with_a_copied_state_is_there_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_AGAIN", 0.01)
    experiment = of({"training.rounds": 2})
    nodes = joined(house, experiment, range(CLIENTS))
    copies: list[int] = []

    def then(now: Progress) -> None:
        if now.done == 1:
            shutil.copytree(house.folder / "device-2", house.folder / "copy")
            copies.append(house.join(house.device(2, experiment, "copy")))
            while not house.engine.presence._news:
                house.engine.presence.refresh()

    record = house.run(experiment, then=then)
    assert_same_runs(record, simulated(experiment))
    assert [
        "client 2 is there twice" in str(e["why"]) for e in record.summary["refused_nodes"]
    ] == [True]
    asked = [node for node, kind in house.asked if kind == EXCHANGE]
    assert (asked.count(nodes[2]), asked.count(copies[0])) == (1, 3), "the newest counts"


def test_a_node_whose_introduction_is_lost_is_asked_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_AGAIN", 0.01)
    experiment = of()
    joined(house, experiment, range(4))
    honest, lost = house.device(4, experiment), list[Message]()

    def answers(message: Message) -> RecordDict | None:
        if message.metadata.message_type == INTRODUCTION and len(lost) < 3:
            lost.append(message)
            return None
        return honest(message)

    house.join(answers)
    assert_same_runs(house.run(experiment), simulated(experiment))
    assert len(lost) == 3


def test_a_late_joiner_takes_part_from_its_arrival_on(house: House) -> None:
    experiment = of({"engine.grace": 0.1, "training.rounds": 3, "training.minimum": 4})
    joined(house, experiment, range(4))

    def then(now: Progress) -> None:
        if now.done == 2:
            house.join(house.device(4, experiment))
            house.await_clients(0, 1, 2, 3, 4)

    house.run(experiment, then=then)
    # Fold blocks of two are cut anew of those whose replies are accepted.
    assert house.answered() == [(0, 1), (2, 3)] * 2 + [(0, 1), (2, 3), (4,)] * 4


def test_who_leaves_is_not_asked_and_may_come_back_elsewhere(house: House) -> None:
    experiment = of({"training.rounds": 3}, method={"name": "replay"})
    nodes = joined(house, experiment, range(CLIENTS))

    def then(now: Progress) -> None:
        if now.done == 1:
            house.engine.presence.grace = 0.0
            house.leave(nodes[3])
            house.await_clients(0, 1, 2, 4)
        if now.done == 3:
            house.join(house.device(3, experiment))
            house.await_clients(0, 1, 2, 3, 4)

    house.run(experiment, then=then)
    whole, without = [(0, 1), (2, 3), (4,)], [(0, 1), (2, 4)]
    assert house.answered() == whole + without * 2 + whole * 3


@pytest.mark.parametrize("again", ["elsewhere", "at the same node"])
def test_a_question_that_a_node_took_with_it_is_asked_again(again: str, house: House) -> None:
    experiment = of(method={"name": "replay"})
    joined(house, experiment, range(4))
    honest = house.device(4, experiment)
    killed: list[int] = []

    def answers(message: Message) -> RecordDict | None:
        if message.metadata.message_type == INTRODUCTION or killed:
            return honest(message)
        honest(message)  # its memory is written, but its answer never leaves
        killed.append(node)
        house.leave(node)
        if again == "elsewhere":
            house.join(honest)
        else:
            house.come_back(node, honest)
        return None

    node = house.join(answers)
    assert_same_runs(house.run(experiment), simulated(experiment))


def test_who_does_not_answer_in_time_is_missing_and_too_late(house: House, tmp_path: Path) -> None:
    experiment = of({"engine.timeout": 2.0})
    joined(house, experiment, range(4))
    slow = house.device(4, experiment)
    missed: list[int] = []

    def answers(message: Message) -> RecordDict | None:
        return slow(message) if message.metadata.message_type == INTRODUCTION or missed else LATER

    house.join(answers)

    def then(now: Progress) -> None:
        if now.done == 1:
            told = status_of(tmp_path / "run")
            assert told["failures"] == {"4": "no answer within 2 s"}
            assert (told["asked"], told["answered"]) == (5, 4)
            missed.append(now.done)

    house.run(experiment, tmp_path / "run", then=then)
    assert house.answered() == [(0, 1), (2, 3)] + [(0, 1), (2, 3), (4,)] * 3
    assert house.engine.late == 1


def test_of_more_than_are_needed_the_first_answers_count(house: House) -> None:
    changes = {"training.cohort": 3, "training.oversample": 0.5, "stream.tasks": 1}
    experiment = of({**changes, "training.rounds": 1})
    joined(house, experiment, (0, 2, 4))

    def late(device: Answers, message: Message) -> RecordDict | None:
        return device(message) if message.metadata.message_type == INTRODUCTION else LATER

    for id in (1, 3):
        house.join(partial(late, house.device(id, experiment)))
    house.run(experiment)
    ((request, asked),) = house.engine.requests
    assert (request.enough, asked) == (3, (0, 1, 2, 3, 4))
    assert house.answered() == [(0,), (2,), (4,)]
    missing = {id: why for result in house.engine.results for id, why in result.failures.items()}
    assert missing == dict.fromkeys((1, 3), "not needed: 3 others have answered")


@pytest.mark.parametrize("method", ["replay", "fot"])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(
    method: str, house: House, tmp_path: Path
) -> None:
    experiment = of(method={"name": method})
    joined(house, experiment, range(CLIENTS))
    with pytest.raises(Interrupted):
        house.run(experiment, tmp_path / "run", then=interrupt_after(1))
    first = open_guestbook(tmp_path / "run")
    assert Status(tmp_path / "run").now["done"] == 1
    record = house.run(experiment, tmp_path / "run", resume=True)
    assert_same_runs(record, simulated(experiment))
    assert open_guestbook(tmp_path / "run") == first, "the same experiment, the same clients"
    assert len(first.clients) == CLIENTS


def test_where_noise_protects_the_round_that_was_cut_off_is_another_attempt(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = [{"name": "central_dp", "noise_multiplier": 0.5}]
    experiment = of({"stream.tasks": 1, "training.rounds": 3}, channel=channel)
    joined(house, experiment, range(CLIENTS))

    def cut(self: Journal, state: Any, channel: Sequence[Any], following: tuple[int, int]) -> None:
        if following == (0, 2):  # released, and never committed
            raise Interrupted
        commit(self, state, channel, following)

    commit = Journal.commit
    monkeypatch.setattr(Journal, "commit", cut)
    with pytest.raises(Interrupted):
        house.run(experiment, tmp_path / "run")
    monkeypatch.undo()
    record = house.run(experiment, tmp_path / "run", resume=True)
    file = LedgerFile(tmp_path / "run" / "checkpoint")
    assert [place[:3] for place in file.events()] == [(0, 0, 0), (0, 1, 0), (0, 1, 20), (0, 2, 0)]
    file.close()
    asked = [request.position for request, _ in house.engine.requests]
    assert [(at.round, at.attempt) for at in asked] == [(1, 20), (2, 0)]
    # It costs what four releases cost.
    four = simulated(of({"stream.tasks": 1, "training.rounds": 4}, channel=channel))
    assert record.summary["epsilon"] == pytest.approx(four.summary["epsilon"], rel=1e-9)
