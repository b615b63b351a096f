"""Answers that are fetched from a SuperLink: several at once, and each for itself.

Flower's `Grid.pull_messages` would do, but for three things. It fetches one answer after the other,
so that all wait for a device that is slow to bring its own, or dies over it. One answer that cannot
be unpacked takes all the others of the look with it. And whatever a device sends is taken whole,
however large it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import httpx
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as Sent
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid

from fedcl.flower.transport.busy import again

_AT_ONCE = 8  # answers; the SuperLink's database takes one writer at a time
_MOMENT = 0.25  # seconds that answers under way are waited for
_ENVELOPE = 100_000  # bytes of a message beside what is counted as its content


class _Stopped(Exception):
    """Nobody waits any more."""


@dataclass
class Collector:
    """Fetches answers.

    Attributes:
        grid: Of a live federation.
        limit: Most bytes of an answer; what is larger is not taken whole.
    """

    grid: HttpGrid
    limit: int
    _pool: ThreadPoolExecutor = field(init=False)
    _open: dict[str, Future[Message]] = field(default_factory=dict, init=False)
    _over: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fedcl-answers")

    def collect(self, ids: Sequence[str]) -> list[tuple[str, Message | None, str]]:
        """Returns what has come: the message that is answered, the answer, and why there is none.

        Args:
            ids: Messages that were sent.

        Raises:
            httpx.HTTPError: The SuperLink fails.
        """
        asked = [id for id in ids if id not in self._open]
        if asked:
            client = self.grid._runtime_client
            found = again(lambda: client.PullMessages(PullAppMessagesRequest(message_ids=asked)))
            for sent, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                question = sent.metadata.reply_to_message_id
                self._open[question] = self._pool.submit(self._fetched, sent, tree)
        wait(self._open.values(), _MOMENT)
        done = [id for id in ids if id in self._open and self._open[id].done()]
        return [(id, *_outcome(self._open.pop(id))) for id in done]

    def close(self) -> None:
        """No longer waits for answers under way."""
        self._over.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fetched(self, sent: Sent, tree: ObjectTree) -> Message:
        """Returns an answer with its content; one that says so when a part of it never came."""
        client, id = self.grid._runtime_client, sent.metadata.message_id
        node, run = self.grid.node, self.grid.run.run_id
        parts = [part.object_id for part in iterate_object_tree(tree)]
        bound = _Bound(self.limit, make_pull_object_fn_protobuf(client.PullObject, node, run))
        try:
            contents = pull_objects(parts, lambda part: self._pulled(bound, part))
        except ObjectPullError as error:
            lost = Error(ErrorCode.MESSAGE_UNAVAILABLE, f"a part of its answer never came: {error}")
            return Message(lost, reply_to=message_from_proto(sent))
        received = ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=id)
        again(lambda: client.ConfirmMessageReceived(received))
        bound.check()
        message = inflate_object_from_contents(id, contents)
        if not isinstance(message, Message):
            raise ValueError(f"it is no message but {type(message).__name__}")
        message.metadata.__dict__["_message_id"] = id
        return message

    def _pulled(self, bound: _Bound, part: str) -> bytes:
        if self._over.is_set():
            raise _Stopped
        return again(lambda: bound.pull(part))


@dataclass
class _Bound:
    """Pulls the parts of an answer, and holds no more of them than is allowed.

    The others are pulled, too, or the node that brings them would fail over it.
    """

    limit: int
    fetch: Callable[[str], bytes]
    _taken: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def pull(self, part: str) -> bytes:
        """Returns a part; nothing instead where it is too much."""
        content = self.fetch(part)
        with self._lock:
            self._taken += len(content)
            return content if self._taken <= self.limit + _ENVELOPE else b""

    def check(self) -> None:
        """Raises ValueError when it was too much."""
        if self._taken > self.limit + _ENVELOPE:
            raise ValueError(
                f"it has {self._taken} bytes, of which {self.limit} are allowed (engine.limit)"
            )


def _outcome(fetched: Future[Message]) -> tuple[Message | None, str]:
    try:
        return fetched.result(), ""
    except httpx.HTTPError:  # no answer's fault
        raise
    except Exception as error:
        return None, f"it cannot be unpacked: {error!r:.200}"
