"""What comes through Flower's Grid: one answer that cannot be unpacked takes no other with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedcl.flower.protocol.messages import INTRODUCTION
from fedcl.flower.transport.post import Post
from tests.flower.house import House


class Broken(Exception):
    """Raised while an answer is unpacked."""


def answered(house: House, count: int) -> tuple[Post, list[str]]:
    """Returns a post whose messages all have an answer."""
    post = Post(house.grid, lambda: None, apart=True)
    content = RecordDict({"said": ConfigRecord({"number": 1})})
    nodes = [house.join(lambda message: content) for _ in range(count)]
    return post, [post.send(content, node, INTRODUCTION) for node in nodes]


def test_an_answer_that_cannot_be_unpacked_is_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path)
    post, ids = answered(house, 3)
    pull = house.grid.pull_messages

    def broken(message_ids: Iterable[str]) -> Iterable[Message]:
        if ids[1] in (wanted := list(message_ids)):
            raise Broken("what is this")
        return pull(wanted)

    monkeypatch.setattr(house.grid, "pull_messages", broken)
    found = {arrival.id: arrival for arrival in post.receive()}
    assert found.keys() == set(ids) and not post.flight
    assert [found[id].answer is None for id in ids] == [False, True, False]
    assert found[ids[1]].why == "it cannot be unpacked: Broken('what is this')"


def test_a_superlink_that_is_gone_is_nobodys_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path)
    post, _ = answered(house, 1)

    def gone(message_ids: Iterable[str]) -> Iterable[Message]:
        raise httpx.ConnectError("gone")

    monkeypatch.setattr(house.grid, "pull_messages", gone)
    with pytest.raises(httpx.ConnectError):
        post.receive()


def test_late_answers_are_dropped_and_counted(tmp_path: Path) -> None:
    house = House(tmp_path)
    post, ids = answered(house, 3)
    post.abandon(ids[:2])
    assert list(post.flight) == ids[2:]
    post.sweep()
    assert (post.late, post.abandoned) == (2, {})
    assert [arrival.id for arrival in post.receive()] == ids[2:]


def test_a_node_that_flower_does_not_know_gets_nothing(tmp_path: Path) -> None:
    house = House(tmp_path)
    post = Post(house.grid, lambda: None)
    assert post.send(RecordDict(), 17, INTRODUCTION) == ""
    assert not post.flight
