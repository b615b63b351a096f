"""Answers are fetched at one look, each for itself, and a busy SuperLink is asked again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import RUN_ID_NUM_BYTES, SUPERLINK_NODE_ID, TASK_ID_NUM_BYTES, ErrorCode
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.server.superlink.linkstate.utils import generate_rand_int_from_bytes
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.servicer.runtime import runtime_handlers as handlers

from fedcl.flower.transport import busy
from fedcl.flower.transport import post as post_module
from fedcl.flower.transport.busy import again
from fedcl.flower.transport.post import Post
from tests.flower.parts import until

pytestmark = pytest.mark.flower
FOREVER = 1e9


@dataclass
class SuperLink:
    """What a SuperLink does with a ServerApp's calls, without the way between them.

    Attributes:
        calls: Names of the calls, in their order.
        busy: How many further calls find a locked database.
        lost: Parts of messages that are not there any more.
        waiting: Parts of answers that nodes have not brought yet, each with its session.
    """

    calls: list[str] = field(default_factory=list)
    busy: int = 0
    lost: set[str] = field(default_factory=set)
    waiting: list[tuple[str, str, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run = Run.create_empty(generate_rand_int_from_bytes(RUN_ID_NUM_BYTES))
        self.run.primary_task_id = generate_rand_int_from_bytes(TASK_ID_NUM_BYTES)
        self.run.federation_id = NOOP_FEDERATION_ID
        TaskIdentity.task_id, TaskIdentity.run_id = 1, self.run.run_id
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        states = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
        )
        self.state = cast(InMemoryLinkState, states.state())
        self.state.run_ids[self.run.run_id] = RunRecord(run=self.run)
        self.task = Task(task_id=self.run.primary_task_id, run_id=self.run.run_id)
        self.state.task_store[self.run.primary_task_id] = self.task

    def _call(self, name: str, act: Callable[[], Any]) -> Any:
        self.calls.append(name)
        if self.busy:
            self.busy -= 1
            raise failure(500)
        return act()

    def PushMessages(self, request: Any) -> Any:
        return self._call("push", lambda: handlers.push_messages(request, self.state, self.task))

    def PushObject(self, request: Any) -> Any:
        return self._call("part", lambda: handlers.push_object(request, self.state, self.task))

    def PullMessages(self, request: Any) -> Any:
        return self._call("look", lambda: handlers.pull_messages(request, self.state, self.task))

    def PullObject(self, request: Any) -> Any:
        if request.object_id in self.lost:
            return PullObjectResponse(object_found=False)
        return self._call("fetch", lambda: handlers.pull_object(request, self.state, self.task))

    def ConfirmMessageReceived(self, request: Any) -> Any:
        act = handlers.confirm_message_received
        return self._call("thank", lambda: act(request, self.state, self.task))

    def node(self) -> int:
        """Lets a node in and returns its number."""
        key = generate_rand_int_from_bytes(8).to_bytes(8, "big")
        node = self.state.create_node("", "", key, FOREVER)
        self.state.activate_node(node, FOREVER)
        return node

    def answer(self, node: int, record: ConfigRecord | None = None, *, upload: bool = True) -> None:
        """Lets a node answer its message: with its number, or with a record.

        Args:
            node: Which.
            record: What it says; its number when None.
            upload: Whether it brings its answer at once, or only says that there is one.
        """
        (message,) = self.state.get_message_ins(node, limit=1)
        self.state.object_store.delete(message.metadata.message_id)
        content = RecordDict(
            {"told": ConfigRecord({"node": str(node)}) if record is None else record}
        )
        reply = Message(content, reply_to=message)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            parts = get_all_nested_objects(reply)
            session = self.state.start_session(self.run.run_id)
            _, wanted = self.state.store_message_and_object_tree(
                remove_content_from_message(reply), get_object_tree(reply), session
            )
            self.waiting += [(session, id, parts[id].deflate()) for id in wanted]
        if upload:
            self.upload()

    def upload(self) -> None:
        """Lets nodes bring what they have said that there is."""
        for session, id, content in self.waiting:
            assert self.state.store_object(self.run.run_id, session, id, content)
        self.waiting.clear()

    def left(self) -> tuple[int, int, int]:
        """Returns how many questions, answers and parts it still keeps."""
        return self.state.num_message_ins(), self.state.num_message_res(), len(self.parts)

    @property
    def parts(self) -> dict[str, Any]:
        """Parts of messages, by id."""
        return cast(InMemoryObjectStore, self.state.object_store).store


class Junk(ConfigRecord):
    """Says that it is a record, and is none."""

    def deflate(self) -> bytes:
        """Returns bytes that nobody can read."""
        return add_header_to_object_body(b"\xff" * 9, self)


Junk.__qualname__ = "ConfigRecord"  # by which Flower finds who is to read it


def failure(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://superlink")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(status))


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    monkeypatch.setattr(busy, "_FIRST", 0.001)
    return SuperLink()


def asked(link: SuperLink, nodes: list[int]) -> tuple[Post, list[str]]:
    """Returns a ServerApp's post, and the messages that it has sent to nodes."""
    grid = HttpGrid(insecure=True, token="unused")
    grid.set_run(link.run)
    grid._client = cast(Any, link)
    post = Post(grid, lambda: None, interval=0.0)
    content = RecordDict({"question": ConfigRecord({"what": "who"})})
    return post, [post.send(content, node, "query.exchange") for node in nodes]


def test_all_answers_come_at_one_look_and_nothing_stays(link: SuperLink) -> None:
    nodes = [link.node() for _ in range(4)]
    post, sent = asked(link, nodes)
    assert link.calls.count("push") == 4
    for node in nodes[:3]:
        link.answer(node)
    arrivals = post.receive()
    assert link.calls.count("look") == 1
    assert {arrival.id for arrival in arrivals} == set(sent[:3])
    told = {
        arrival.answer.content.config_records["told"]["node"]
        for arrival in arrivals
        if arrival.answer is not None
    }
    assert told == {str(node) for node in nodes[:3]}
    assert list(post.flight) == sent[3:] and post.receive() == []
    link.answer(nodes[3])
    (last,) = post.receive()
    assert last.id == sent[3] and not post.flight
    assert link.left() == (0, 0, 0)


def test_an_answer_that_cannot_be_unpacked_spoils_no_other(link: SuperLink) -> None:
    nodes = [link.node() for _ in range(5)]
    post, sent = asked(link, nodes)
    for number, node in enumerate(nodes):
        link.answer(node, Junk() if number % 2 else None)
    found = {arrival.id: arrival for arrival in post.receive()}
    assert set(found) == set(sent)
    for number, id in enumerate(sent):
        assert (found[id].answer is None) == bool(number % 2)
        assert ("cannot be unpacked" in found[id].why) == bool(number % 2)
    assert link.left() == (0, 0, 0)


def test_an_answer_of_which_a_part_is_lost_is_missing(link: SuperLink) -> None:
    nodes = [link.node() for _ in range(2)]
    post, sent = asked(link, nodes)
    before = set(link.parts)
    link.answer(nodes[0])
    link.lost = set(link.parts) - before
    link.answer(nodes[1])
    found = {arrival.id: arrival.answer for arrival in post.receive()}
    first, second = found[sent[0]], found[sent[1]]
    assert first is not None and first.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert second is not None and second.has_content()


def test_what_messages_share_is_brought_once(link: SuperLink) -> None:
    nodes = [link.node() for _ in range(4)]
    post, _ = asked(link, [])
    content = RecordDict({"question": ConfigRecord({"what": "who"})})
    sent = post.send_all([*((content, node) for node in nodes), (content, 17)], "query.exchange")
    assert all(sent[:4]) and sent[4] == "", "there is no node 17"
    assert list(post.flight) == sent[:4]
    # A record and its table for all of them, and what is on each envelope.
    assert link.calls == ["push"] + ["part"] * (2 + 4)
    for node in nodes:
        link.answer(node)
    assert {arrival.id for arrival in post.receive()} == set(sent[:4])
    assert link.left() == (0, 0, 0)


def test_more_than_there_is_room_for_is_brought_in_parts(
    link: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post_module, "_BATCH", 3)
    nodes = [link.node() for _ in range(4)]
    post, _ = asked(link, [])
    own = [RecordDict({"of": ArrayRecord([np.full(100, node % 97)])}) for node in nodes]
    assert all(post.send_all(zip(own, nodes, strict=True), "query.exchange"))
    assert link.calls.count("push") == 2
    monkeypatch.setattr(post_module, "_HELD", 1000)  # of 928 bytes each
    assert all(post.send_all(zip(own, nodes, strict=True), "query.exchange"))
    assert link.calls.count("push") == 2 + 2
    shared = [own[0]] * 3
    assert all(post.send_all(zip(shared, nodes, strict=False), "query.exchange"))
    assert link.calls.count("push") == 2 + 2 + 1


def test_an_answer_that_is_slow_to_come_holds_up_no_other(link: SuperLink) -> None:
    nodes = [link.node() for _ in range(3)]
    post, sent = asked(link, nodes)
    link.answer(nodes[0])
    link.answer(nodes[2])
    link.answer(nodes[1], upload=False)
    found = {arrival.id for _ in range(3) for arrival in post.receive()}
    assert found == {sent[0], sent[2]} and list(post.flight) == [sent[1]]
    link.upload()
    until(lambda: [arrival.id for arrival in post.receive()] == [sent[1]], "it came", 60)
    assert link.left() == (0, 0, 0)


def test_who_waits_no_more_is_not_held_up_by_an_answer_that_never_comes(link: SuperLink) -> None:
    node = link.node()
    post, _ = asked(link, [node])
    link.answer(node, upload=False)
    before = set(threading.enumerate())
    assert post.receive() == []
    fetching = set(threading.enumerate()) - before
    assert fetching
    post.close()
    until(lambda: not any(one.is_alive() for one in fetching), "all threads have ended", 60)


def test_no_more_of_an_answer_is_fetched_than_is_allowed(link: SuperLink) -> None:
    nodes = [link.node() for _ in range(2)]
    post, sent = asked(link, nodes)
    post.limit = 1000
    link.answer(nodes[0], ConfigRecord({"much": "x" * 110_000}))
    link.answer(nodes[1], ConfigRecord({"some": "x" * 90_000}))
    found = {arrival.id: arrival for arrival in post.receive()}
    assert found[sent[0]].answer is None
    assert "bytes, of which 1000 are allowed (engine.limit)" in found[sent[0]].why
    assert found[sent[1]].answer is not None, "what is little too large is looked at where all is"
    assert link.left() == (0, 0, 0)


def test_a_busy_superlink_is_asked_again(link: SuperLink) -> None:
    node = link.node()
    link.busy = 2
    post, sent = asked(link, [node])
    assert link.calls[:3] == ["push"] * 3 and sent[0]
    link.answer(node)
    link.busy = 3
    (arrival,) = post.receive()
    assert link.calls.count("look") == 4
    assert arrival.answer is not None and arrival.answer.has_content()
    assert link.left() == (0, 0, 0)


def test_what_stays_wrong_is_raised(link: SuperLink) -> None:
    post, _ = asked(link, [link.node()])
    link.busy = 1000
    with pytest.raises(httpx.HTTPStatusError):
        post.receive()
    assert link.calls.count("look") == 6


def test_what_is_no_matter_of_time_is_raised_at_once() -> None:
    tries = []

    def call() -> None:
        tries.append(1)
        raise failure(401)

    with pytest.raises(httpx.HTTPStatusError):
        again(call)
    assert len(tries) == 1
