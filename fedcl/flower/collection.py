"""Answers that are fetched from a SuperLink: all that are there at one look, each for itself.

Flower's `Grid.pull_messages` would do, but that one answer which cannot be unpacked takes all the
others of the look with it, and that looking for each alone is a request for each: with 200 nodes
the SuperLink would have little time for anything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

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

T = TypeVar("T")
_TRIES = 6
_FIRST = 0.5  # seconds before the second try; twice as long before each further one


def again(call: Callable[[], T]) -> T:
    """Calls a SuperLink, and calls again when it is too busy to do what it is asked.

    A SuperLink whose database is locked for too long answers with status 500, which Flower takes
    for final.

    Raises:
        httpx.HTTPError: It is something else, or stays so.
    """
    for number in range(_TRIES):
        try:
            return call()
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            if number + 1 == _TRIES:
                raise
            time.sleep(_FIRST * 2**number)
    raise AssertionError


def collect(grid: HttpGrid, ids: Sequence[str]) -> list[tuple[str, Message | None, str]]:
    """Returns what was answered: the message that is answered, the answer, and why there is none.

    Args:
        grid: Of a live federation.
        ids: Messages that were sent.

    Raises:
        httpx.HTTPError: The SuperLink fails.
    """
    client, found = grid._runtime_client, list[tuple[str, Message | None, str]]()
    answers = again(lambda: client.PullMessages(PullAppMessagesRequest(message_ids=ids)))
    for sent, tree in zip(answers.messages_list, answers.message_object_trees, strict=True):
        question = sent.metadata.reply_to_message_id
        try:
            found.append((question, _fetched(grid, sent, tree), ""))
        except httpx.HTTPError:  # no answer's fault
            raise
        except Exception as error:
            found.append((question, None, f"it cannot be unpacked: {error!r:.200}"))
    return found


def _fetched(grid: HttpGrid, sent: Sent, tree: ObjectTree) -> Message:
    """Returns an answer with its content; one that says so when a part of it never came."""
    client, id = grid._runtime_client, sent.metadata.message_id
    pull = make_pull_object_fn_protobuf(client.PullObject, grid.node, grid.run.run_id)
    parts = [part.object_id for part in iterate_object_tree(tree)]
    try:
        contents = pull_objects(parts, lambda part: again(lambda: pull(part)))
    except ObjectPullError as error:
        lost = Error(ErrorCode.MESSAGE_UNAVAILABLE, f"a part of its answer never came: {error}")
        return Message(lost, reply_to=message_from_proto(sent))
    received = ConfirmMessageReceivedRequest(
        node=grid.node, run_id=grid.run.run_id, message_object_id=id
    )
    again(lambda: client.ConfirmMessageReceived(received))
    message = inflate_object_from_contents(id, contents)
    if not isinstance(message, Message):
        raise ValueError(f"it is no message but {type(message).__name__}")
    message.metadata.__dict__["_message_id"] = id
    return message
