"""A Grid for unchanged Flower apps: messages are answered in blocks, here or on Ray workers.

Where Flower's simulation sends each message to a process of its own choice, looks for answers ten
times a second and adds replies as they come, this grid ships what messages share once a send, waits
without looking, and returns replies in the order of their messages. Node ids follow from the
clients' numbers, and what a node keeps in `context.state` can lie in a folder.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import count

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedcl.core.errors import ConfigError
from fedcl.flower.grid.contexts import Contexts
from fedcl.flower.grid.crew import Crew
from fedcl.flower.grid.letters import FIRST_NODE, Kept, Letter, pack, unseal
from fedcl.flower.grid.patience import awaited


class BlockGrid(Grid):
    """Flower's grid over nodes that a crew lets answer. Several threads may use it.

    The node of client `c` (Flower's partition) has the id `FIRST_NODE + c`, in every run.

    Attributes:
        clients: Number of nodes.
        answered: Replies handed over so far.
        failed: Those of them that tell of an error.
    """

    def __init__(self, run: Run, clients: int, contexts: Contexts) -> None:
        """Begins without a crew: `crew` must be set before the first message.

        Args:
            run: Flower's description of the run.
            clients: Number of nodes.
            contexts: What nodes keep.
        """
        self.clients, self.answered, self.failed = clients, 0, 0
        self.crew: Crew
        self._run, self._contexts = run, contexts
        self._numbers = count(1)
        self._changed = threading.Condition()
        self._open: set[str] = set()  # ids of messages that wait for their reply
        self._replies: dict[str, Message] = {}
        self._error: BaseException | None = None

    # --- What server apps use. ---

    def set_run(self, run: Run) -> None:
        """Sets Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run, a copy."""
        return Run(**vars(self._run))

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Returns a message; `Message(...)` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Returns the ids of all nodes, in the order of clients.

        Raises:
            ConfigError: A strategy waits for more nodes than there will ever be.
        """
        frame = inspect.currentframe()
        needed = awaited(None if frame is None else frame.f_back)
        if needed > self.clients:
            raise ConfigError(
                f"the app's strategy waits for {needed} nodes, but there are {self.clients}: raise "
                "the number of clients, or lower what the strategy asks for"
            )
        return list(range(FIRST_NODE, FIRST_NODE + self.clients))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Sends messages and returns their ids; in-process they are answered at once.

        Raises:
            ValueError: A message has no content, or goes to no node of this run.
        """
        return self._push(list(messages), None)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Returns the replies that have come to these messages, in the order of the ids."""
        with self._changed:
            self._check()
            return self._handed(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Sends messages, waits, and returns the replies in the order of messages.

        Args:
            messages: The messages.
            timeout: Seconds after which it returns what has come; messages that no worker has
                begun by then are withdrawn. None waits for all.
        """
        until = None if timeout is None else time.monotonic() + timeout
        ids = self._push(list(messages), until)
        left = None if until is None else max(0.0, until - time.monotonic())
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._open.isdisjoint(ids), left)
            self._check()
            replies = self._handed(ids)
            late = self._open.intersection(ids)
            self._open -= late
        if late:
            self.crew.withdraw(late)
        return replies

    def _push(self, messages: Sequence[Message], until: float | None) -> list[str]:
        for message in messages:
            self._stamp(message)
        shared, letters = pack(messages)
        ids = [letter.id for letter in letters]
        with self._changed:
            self._check()
            self._open.update(ids)
        if letters:
            self.crew.hand(self.crew.share(shared), letters, until)
        return ids

    def _stamp(self, message: Message) -> None:
        """Gives a message its id, in the name of this run."""
        node = message.metadata.dst_node_id
        if not message.has_content():
            raise ValueError(f"a message to node {node} has no content")
        if not FIRST_NODE <= node < FIRST_NODE + self.clients:
            raise ValueError(
                f"there is no node {node}: the nodes of this run are {FIRST_NODE} to "
                f"{FIRST_NODE + self.clients - 1}"
            )
        message.metadata.__dict__["_message_id"] = str(next(self._numbers))
        message.metadata.__dict__["_run_id"] = self._run.run_id

    def _handed(self, ids: Iterable[str]) -> list[Message]:
        """Takes the replies to some messages; with them, what nodes keep becomes lasting."""
        replies = [self._replies.pop(id) for id in ids if id in self._replies]
        if replies:
            self._contexts.commit()
        self.answered += len(replies)
        self.failed += sum(reply.has_error() for reply in replies)
        return replies

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # --- What crews use. ---

    def kept(self, letters: Sequence[Letter]) -> dict[int, Kept]:
        """Returns what is kept of the nodes of some letters."""
        with self._changed:
            return {letter.node: self._contexts.of(letter.node) for letter in letters}

    def deliver(
        self,
        letters: Sequence[Letter],
        replies: Sequence[bytes | memoryview],
        kept: Mapping[int, Kept],
    ) -> None:
        """Takes packed replies, and what is to be kept of nodes from now on."""
        opened = [unseal(reply) for reply in replies]
        with self._changed:
            self._contexts.change(kept)
            for letter, reply in zip(letters, opened, strict=True):
                if letter.id in self._open:  # else nobody waits for it any more
                    self._open.remove(letter.id)
                    self._replies[letter.id] = reply
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the crew."""
        self.crew.close()

    def fail(self, error: BaseException) -> None:
        """Ends the run: whoever waits for replies gets the error."""
        with self._changed:
            self._error = error
            self._changed.notify_all()
