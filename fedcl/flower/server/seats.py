"""Which of Flower's nodes is which client, where nodes do not come and go: in a simulation."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fedcl.core.errors import ConfigError, FedclError
from fedcl.flower.protocol.introductions import Introduced, Introduction
from fedcl.flower.protocol.messages import INTRODUCTION, read_failure
from fedcl.flower.transport.post import Post


class Seat(NamedTuple):
    """A node for as long as it stays connected.

    Attributes:
        node: Flower's node.
        since: When Flower let it in; a node that was started anew has another one.
    """

    node: int
    since: str = ""


class Seats(Protocol):
    """Where clients are."""

    def refresh(self) -> None:
        """Looks who is there now, if it is time to look again."""
        ...

    def seat(self, client: int) -> Seat | None:
        """Returns where a client is, or None."""
        ...

    def awaited(self, client: int) -> bool:
        """Returns whether a client has left a moment ago, and may come back."""
        ...

    def lost(self, client: int, seat: Seat) -> bool:
        """Takes note that a client cannot be reached there; returns whether it may come back."""
        ...

    def close(self) -> None:
        """No longer looks who is there."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Clients that are always there.

    Attributes:
        nodes: Flower's node of each client.
    """

    nodes: Mapping[int, int]

    def refresh(self) -> None:
        """Has nothing to look for."""

    def seat(self, client: int) -> Seat | None:
        """Returns where a client is."""
        return Seat(self.nodes[client])

    def awaited(self, client: int) -> bool:
        """Nobody ever leaves."""
        return False

    def lost(self, client: int, seat: Seat) -> bool:
        """Nobody ever comes back."""
        return False

    def close(self) -> None:
        """Has never looked."""


def introduce(post: Post, introduction: Introduction | None = None) -> dict[int, int]:
    """Asks every node which client it is and returns the node of each client.

    Args:
        post: How messages travel.
        introduction: What the server says of itself; None where there is no experiment yet.

    Raises:
        ConfigError: Two nodes are the same client, or a node has another config.
        FedclError: A node does not answer as it should.
    """
    found: dict[int, int] = {}
    waiting = deque(sorted(post.grid.get_node_ids()))
    said = (introduction or Introduction()).write()
    while waiting or post.flight:
        while waiting and len(post.flight) < post.window:
            node = waiting.popleft()
            if not post.send(said, node, INTRODUCTION):
                raise FedclError(f"Flower takes no message for node {node}: is it still there?")
        for arrival in post.receive():
            answer = arrival.answer
            assert answer is not None
            node = answer.metadata.src_node_id
            if answer.has_error():
                raise FedclError(f"Flower node {node} does not start: {answer.error.reason}")
            told = read_failure(answer.content)
            if told is not None:
                raise ConfigError(f"Flower node {node}: {told[1]}")
            client = Introduced.read(answer.content).client
            if client in found:
                raise ConfigError(
                    f"Flower nodes {found[client]} and {node} are both client {client}: "
                    "give each node a client of its own"
                )
            found[client] = node
    return dict(sorted(found.items()))
