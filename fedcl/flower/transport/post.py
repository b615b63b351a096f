"""Messages on their way through Flower's Grid, in a simulation or between machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.superlink.grid.http_grid import HttpGrid

from fedcl.core.errors import FedclError
from fedcl.flower.transport.collection import Collector
from fedcl.flower.transport.delivery import deliver

# Messages in flight: enough to keep workers busy. Flower looks for each node among all of them.
WINDOW = 32
_PATIENCE = 30.0  # seconds that late answers are waited for in the end
_FORGOTTEN = 900.0  # seconds after which a late answer is not looked for any more
_SWEPT = 64  # late answers that are looked for at once
_BATCH = 32  # messages that are brought to Flower at once
_HELD = 2**26  # bytes of messages that are held for that


@dataclass(frozen=True)
class Arrival:
    """What came for a message that was sent.

    Attributes:
        id: The message.
        answer: What was answered; None when it cannot even be unpacked.
        why: Why not.
    """

    id: str
    answer: Message | None
    why: str = ""


@dataclass
class Post:
    """Messages on their way through a Grid.

    Attributes:
        grid: Flower's grid.
        check: Raises when no answer can come any more.
        interval: Seconds between two looks for answers.
        window: Messages that are in flight at once.
        apart: Whether answers are fetched one by one where Flower fetches them: one of several that
            cannot be unpacked takes all the others with it.
        flight: When each message that has not been answered was sent, by message id.
        abandoned: When messages were given up that nobody waits for any more, by message id.
        late: Answers to those.
        limit: Most bytes of an answer that are fetched.
    """

    grid: Grid
    check: Callable[[], None]
    interval: float = 0.01
    window: int = WINDOW
    apart: bool = False
    flight: dict[str, float] = field(default_factory=dict)
    abandoned: dict[str, float] = field(default_factory=dict)
    late: int = 0
    limit: int = 2**62
    _collector: Collector | None = field(default=None, init=False)

    def send(self, content: RecordDict, node: int, kind: str, ttl: float | None = None) -> str:
        """Sends a message to a node and returns its id; nothing when Flower does not take it.

        Args:
            content: What it says.
            node: Flower's node.
            kind: Of message.
            ttl: Seconds after which nobody need have it any more; None for Flower's own.
        """
        return self.send_all([(content, node)], kind, ttl)[0]

    def send_all(
        self, letters: Iterable[tuple[RecordDict, int]], kind: str, ttl: float | None = None
    ) -> list[str]:
        """Sends messages, as `send` does one, and returns their ids in order.

        Args:
            letters: What each says, and its node; written when its turn comes.
            kind: Of all of them.
            ttl: As for `send`.
        """
        sent: list[str] = []
        for batch in _batches(letters):
            self.check()
            ids = self._push(batch, kind, ttl)
            self.flight |= dict.fromkeys(filter(None, ids), time.monotonic())
            sent += ids
        return sent

    def _push(
        self, batch: Sequence[tuple[RecordDict, int]], kind: str, ttl: float | None
    ) -> list[str]:
        def write() -> list[Message]:
            return [Message(content, node, kind, ttl=ttl) for content, node in batch]

        if isinstance(self.grid, HttpGrid):
            return deliver(self.grid, write)
        # Within one process nothing is saved by more at once, and who is left out is not told.
        ids = [list(self.grid.push_messages([message])) for message in write()]
        return [id[0] if id else "" for id in ids]

    def receive(self, wait: bool = True) -> list[Arrival]:
        """Returns what has come; waits a moment when that is nothing, if told to."""
        if not self.flight:
            return []
        arrivals = self._pull(list(self.flight))
        for arrival in arrivals:
            self.flight.pop(arrival.id, None)
        if not arrivals:
            self.check()
            if wait:
                time.sleep(self.interval)
        return arrivals

    def _pull(self, ids: list[str]) -> list[Arrival]:
        if isinstance(self.grid, HttpGrid):
            if self._collector is None:
                self._collector = Collector(self.grid, self.limit)
            return [Arrival(*found) for found in self._collector.collect(ids)]
        if not self.apart:
            return [_arrival(message) for message in self.grid.pull_messages(ids)]
        found: list[Arrival] = []
        for id in ids:
            try:
                found.extend(_arrival(message) for message in self.grid.pull_messages([id]))
            except httpx.HTTPError:  # no answer's fault
                raise
            except Exception as error:
                found.append(Arrival(id, None, f"it cannot be unpacked: {error!r:.200}"))
        return found

    def abandon(self, ids: Iterable[str]) -> None:
        """No longer waits for the answers to messages."""
        for id in ids:
            if self.flight.pop(id, None) is not None:
                self.abandoned[id] = time.monotonic()

    def sweep(self) -> None:
        """Drops and counts the answers that came too late."""
        now = time.monotonic()
        looked = list(self.abandoned.items())[:_SWEPT]
        for id, since in looked:  # the others have their turn next time
            del self.abandoned[id]
            if now - since < _FORGOTTEN:
                self.abandoned[id] = since
        for arrival in self._pull([id for id, _ in looked]) if looked else []:
            self.abandoned.pop(arrival.id, None)
            self.late += arrival.answer is None or arrival.answer.has_content()

    def drain(self) -> None:
        """Waits until nodes are at rest: they may still work on what nobody waits for."""
        end = time.monotonic() + _PATIENCE
        self.flight.update(dict.fromkeys(self.abandoned, end))
        with suppress(FedclError):  # whatever ended it has been told already
            while self.flight and time.monotonic() < end:
                self.receive()
        self.flight.clear()
        self.abandoned.clear()
        self.close()

    def close(self) -> None:
        """No longer fetches anything."""
        if self._collector is not None:
            self._collector.close()
            self._collector = None


def _batches(
    letters: Iterable[tuple[RecordDict, int]],
) -> Iterator[list[tuple[RecordDict, int]]]:
    """Yields some letters at a time: as many as there is room for, what they share counted once."""
    batch: list[tuple[RecordDict, int]] = []
    held: dict[int, int] = {}
    for content, node in letters:
        batch.append((content, node))
        for record in content.array_records.values():
            held[id(record)] = sum(len(array.data) for array in record.values())
        if len(batch) == _BATCH or sum(held.values()) >= _HELD:
            yield batch
            batch, held = [], {}
    if batch:
        yield batch


def _arrival(message: Message) -> Arrival:
    return Arrival(message.metadata.reply_to_message_id, message)
