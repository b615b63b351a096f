"""Letters: messages on their way to nodes, with what many of them hold packed once.

A record that several messages of one send hold, the same object or an equal one, is shared: it is
put where all workers can read it, once. What a single message holds travels with that message.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message.message import make_message

# A node's id is its client's number (its partition) on top of this: never the id of Flower's
# server, and in a log the last digits are the client's.
FIRST_NODE = 1_000_000_000


@dataclass(frozen=True)
class Letter:
    """One message to one node.

    Attributes:
        metadata: Sender, receiver, type and id.
        records: Name of each record, and the packed record or its place among the shared ones.
        size: Bytes of all records.
    """

    metadata: Metadata
    records: tuple[tuple[str, int | bytes], ...]
    size: int

    @property
    def id(self) -> str:
        """Flower's id of the message."""
        return self.metadata.message_id

    @property
    def node(self) -> int:
        """The receiver."""
        return self.metadata.dst_node_id

    def open(self, shared: Sequence[bytes]) -> Message:
        """Returns the message with a content of its own, which the receiver may change."""
        content = RecordDict()
        for name, record in self.records:
            content[name] = pickle.loads(shared[record] if isinstance(record, int) else record)
        return make_message(self.metadata, content)


@dataclass(frozen=True)
class Kept:
    """What is kept of a node from one message to the next.

    Attributes:
        answered: Messages that it has answered.
        state: Its `context.state` as `fedcl.flower.grid.node` writes it.
    """

    answered: int = 0
    state: bytes = b""


def pack(messages: Sequence[Message]) -> tuple[tuple[bytes, ...], list[Letter]]:
    """Returns the records that several messages hold, and a letter for each message."""
    records: dict[int, bytes] = {}  # by identity: most strategies send one object to everybody
    contents: dict[int, tuple[tuple[str, bytes], ...]] = {}
    for content in (message.content for message in messages):
        if id(content) not in contents:
            for record in content.values():
                if id(record) not in records:
                    records[id(record)] = pickle.dumps(record, protocol=5)
            contents[id(content)] = tuple((n, records[id(r)]) for n, r in content.items())
    held = [contents[id(message.content)] for message in messages]
    uses = Counter(record for content in held for record in {record for _, record in content})
    shared = tuple(record for record, count in uses.items() if count > 1)
    places = {record: place for place, record in enumerate(shared)}
    letters = [
        Letter(
            message.metadata,
            tuple((name, places.get(record, record)) for name, record in content),
            sum(len(record) for _, record in content),
        )
        for message, content in zip(messages, held, strict=True)
    ]
    return shared, letters


def failure(metadata: Metadata, code: int, reason: str) -> bytes:
    """Returns the packed reply to a message that tells the server of an error."""
    asked = make_message(metadata, RecordDict())
    return seal(Message(Error(code=code, reason=reason), reply_to=asked))


def seal(reply: Message) -> bytes:
    """Returns a packed reply, with an id that follows from its message's."""
    reply.metadata.__dict__["_message_id"] = f"{reply.metadata.reply_to_message_id}-reply"
    return pickle.dumps(reply, protocol=5)


def unseal(reply: bytes | memoryview) -> Message:
    """Returns a reply that `seal` has packed."""
    message: Message = pickle.loads(reply)
    return message
