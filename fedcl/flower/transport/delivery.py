"""Messages that are brought to a SuperLink: many in one request, what they share only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.runtime_pb2 import PushAppMessagesRequest, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import push_objects
from flwr.superlink.grid.http_grid import HttpGrid

from fedcl.flower.transport.busy import again


def deliver(grid: HttpGrid, write: Callable[[], Sequence[Message]]) -> list[str]:
    """Brings messages to a SuperLink and returns their ids; nothing for one that it does not take.

    Flower's `Grid.push_messages` would do, but that it gives up when the SuperLink is busy, and
    that a message of which the SuperLink has a part already is refused at a second try.

    Args:
        grid: Of a live federation.
        write: Writes the messages, at each try anew.

    Raises:
        httpx.HTTPError: The SuperLink fails.
    """
    client, run = grid._runtime_client, grid.run.run_id

    def offer() -> tuple[dict[str, InflatableObject], PushAppMessagesResponse]:
        messages = write()
        parts: dict[str, InflatableObject] = {}
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            parts.update(get_all_nested_objects(message))
        request = PushAppMessagesRequest(
            messages_list=[message_to_proto(remove_content_from_message(m)) for m in messages],
            message_object_trees=[get_object_tree(message) for message in messages],
        )
        return parts, client.PushMessages(request)

    with no_object_id_recompute():
        parts, said = again(offer)
        push = make_push_object_fn_protobuf(client.PushObject, grid.node, run, said.session_id)
        try:
            push_objects(
                parts,
                lambda part, content: again(lambda: push(part, content)),
                object_ids_to_push=set(said.objects_to_push),
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.REQUEST_ENTITY_TOO_LARGE:
                raise
            return [""] * len(said.message_ids)
    return list(said.message_ids)
