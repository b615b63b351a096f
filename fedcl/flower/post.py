"""Messages on their way through Flower's Grid, in a simulation or between machines."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedcl.core.errors import ConfigError, FedclError
from fedcl.flower.messages import INTRODUCTION

# Messages in flight: enough to keep workers busy. Flower looks for each node among all of them.
WINDOW = 32
_PATIENCE = 30.0  # seconds that late answers are waited for in the end


@dataclass
class Post:
    """Messages on their way through a Grid.

    Attributes:
        grid: Flower's grid.
        check: Raises when no answer can come any more.
        interval: Seconds between two looks for answers.
        flight: When each message that has not been answered was sent, by message id.
        abandoned: Messages that nobody waits for any more.
    """

    grid: Grid
    check: Callable[[], None]
    interval: float = 0.01
    flight: dict[str, float] = field(default_factory=dict)
    abandoned: list[str] = field(default_factory=list)

    def send(self, content: RecordDict, node: int, kind: str) -> str:
        """Sends a message to a node and returns its id.

        Raises:
            FedclError: Flower refuses it.
        """
        self.check()
        ids = list(self.grid.push_messages([Message(content, node, kind)]))
        if not ids:
            raise FedclError(f"Flower takes no message for node {node}: is it still there?")
        self.flight[ids[0]] = time.monotonic()
        return ids[0]

    def receive(self) -> list[Message]:
        """Returns the answers that have come; waits a moment when there are none."""
        if not self.flight:
            return []
        answers = list(self.grid.pull_messages(list(self.flight)))
        for answer in answers:
            self.flight.pop(answer.metadata.reply_to_message_id, None)
        if not answers:
            self.check()
            time.sleep(self.interval)
        return answers

    def abandon(self, id: str) -> None:
        """No longer waits for the answer to a message."""
        del self.flight[id]
        self.abandoned.append(id)

    def drain(self) -> None:
        """Waits until nodes are at rest: they may still work on what nobody waits for."""
        end = time.monotonic() + _PATIENCE
        self.flight.update(dict.fromkeys(self.abandoned, end))
        with suppress(FedclError):  # whatever ended it has been told already
            while self.flight and time.monotonic() < end:
                self.receive()
        self.flight.clear()
        self.abandoned.clear()


def introduce(post: Post) -> dict[int, int]:
    """Asks every node which client it is and returns the node of each client.

    Raises:
        ConfigError: Two nodes are the same client.
        FedclError: A node does not answer as it should.
    """
    found: dict[int, int] = {}
    waiting = deque(sorted(post.grid.get_node_ids()))
    while waiting or post.flight:
        while waiting and len(post.flight) < WINDOW:
            content = RecordDict({"introduction": ConfigRecord()})
            post.send(content, waiting.popleft(), INTRODUCTION)
        for answer in post.receive():
            node = answer.metadata.src_node_id
            if answer.has_error():
                raise FedclError(f"Flower node {node} does not start: {answer.error.reason}")
            client = int(answer.content.config_records["introduction"]["client"])  # type: ignore[arg-type]
            if client in found:
                raise ConfigError(
                    f"Flower nodes {found[client]} and {node} are both client {client}: "
                    "give each node a client of its own"
                )
            found[client] = node
    return dict(sorted(found.items()))
