"""One question to several clients: who is asked where, who answers in time, who does not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode

from fedcl.core.errors import AbsentError, FedclError
from fedcl.flower.server.seats import Seat, Seats
from fedcl.flower.transport.post import Arrival, Post

T = TypeVar("T")
_ABSENT = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)
_SPARE = 60.0  # seconds that Flower keeps a message beyond its deadline


@dataclass
class Inquiry(Generic[T]):
    """Asks clients the same thing, each where it is now.

    A client that comes back at another node, or whose node was started anew, is asked again there:
    the same question has the same answer. Its first answer counts.

    Attributes:
        post: How messages travel.
        seats: Where clients are.
        kind: Of message.
        content: Returns what a client is asked.
        read: Returns what a client's answer says, or raises FedclError; AbsentError of one that has
            nothing to say, and nothing is wrong.
        timeout: Seconds after which an answer counts as missing; 0 waits for ever.
        enough: Answers after which no more are needed; 0 for all.
        quiet: Seconds without any answer, after the first, before who has not answered is asked
            again; never less than an answer took, and twice as long each time. 0 for never.
        found: What was answered, by client.
        bad: Answers that say nothing, by client.
        missing: Why others have not answered, by client.
        answered: How many answers there were.
        reached: Clients to whom something was sent: they may answer, whatever became of it.
    """

    post: Post
    seats: Seats
    kind: str
    content: Callable[[int], RecordDict]
    read: Callable[[int, Message], T]
    timeout: float = 0.0
    enough: int = 0
    quiet: float = 0.0
    found: dict[int, T] = field(default_factory=dict)
    bad: dict[int, FedclError] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    answered: int = field(default=0, init=False)
    reached: set[int] = field(default_factory=set, init=False)
    _waiting: deque[int] = field(default_factory=deque, init=False)
    _begun: dict[int, float] = field(default_factory=dict, init=False)
    _sent: dict[int, dict[str, Seat]] = field(default_factory=dict, init=False)
    _asked: dict[str, int] = field(default_factory=dict, init=False)
    _heard: float = field(default=0.0, init=False)  # when the last answer came; 0 before the first
    _longest: float = field(default=0.0, init=False)  # seconds that an answer took

    @property
    def open(self) -> int:
        """How many clients have neither answered nor been given up."""
        return len(self._begun)

    def ask(self, clients: Iterable[int]) -> None:
        """Takes up further clients."""
        for id in clients:
            self._waiting.append(id)
            self._begun[id] = time.monotonic()

    def settled(self, client: int) -> bool:
        """Returns whether a client has answered or was given up."""
        return client not in self._begun

    def poll(self) -> None:
        """Sends what can be sent, and takes what has come; waits a moment when that is nothing."""
        self.seats.refresh()
        self._begin()
        if self.post.flight:
            for arrival in self.post.receive():
                self._take(arrival)
        elif self._begun:
            self.post.check()
            time.sleep(self.post.interval)
        self._send(moved for id in list(self._sent) for moved in self._moved(id))
        self._repeat()
        self._give_up()

    def _begin(self) -> None:
        """Asks who waits to be asked and is there, as far as there is room."""
        room, ready = self.post.window - len(self.post.flight), dict[int, Seat]()
        for _ in range(len(self._waiting)):
            id = self._waiting.popleft()
            seat = self.seats.seat(id)
            if len(ready) >= room or (seat is None and self.seats.awaited(id)):
                self._waiting.append(id)
            elif seat is None:
                self._miss(id, "it is not connected")
            else:
                ready[id] = seat
                self._begun[id] = time.monotonic()
                self._sent[id] = {}
        self.reached.update(ready)
        self._send(ready.items())

    def _send(self, ready: Iterable[tuple[int, Seat]]) -> None:
        """Asks clients, each at its seat."""
        ready = list(ready)
        ttl = self.timeout + _SPARE if self.timeout else None
        letters = ((self.content(id), seat.node) for id, seat in ready)
        messages = self.post.send_all(letters, self.kind, ttl)
        for (id, seat), message in zip(ready, messages, strict=True):
            if message:
                self._sent[id][message] = seat
                self._asked[message] = id
            elif not self._sent[id]:
                self._miss(id, "Flower takes no message for its node")

    def _take(self, arrival: Arrival) -> None:
        id = self._asked.get(arrival.id)
        if id is None or self.settled(id):
            return
        seat, answer = self._sent[id].pop(arrival.id), arrival.answer
        self._heard = time.monotonic()
        self._longest = max(self._longest, self._heard - self._begun[id])
        if answer is not None and answer.has_error() and answer.error.code in _ABSENT:
            if not self._sent[id] and not self.seats.lost(id, seat):
                self._miss(id, answer.error.reason or "no reason given")
            return
        try:
            if answer is None:
                raise FedclError(f"its answer cannot be read: {arrival.why}")
            if answer.has_content() and answer.metadata.src_node_id != seat.node:
                raise FedclError("its answer comes from a node that was not asked")
            self.found[id] = self.read(id, answer)
            self.answered += 1
        except AbsentError as error:
            self._miss(id, str(error))
            return
        except FedclError as error:
            self.bad[id] = error
        self._settle(id)

    def _moved(self, id: int) -> Iterator[tuple[int, Seat]]:
        """Yields where a client is now, if that is somewhere else; gives up one that has left."""
        seat = self.seats.seat(id)
        if seat is None:
            if not self.seats.awaited(id):
                self._miss(id, "it has left")
        elif seat not in self._sent[id].values():
            yield id, seat

    def _repeat(self) -> None:
        """Asks again where nothing comes any more.

        Flower hands a message over once at most: when its node cannot fetch it whole, or cannot
        bring the whole answer, as under load, neither side hears of it again.
        """
        now = time.monotonic()
        if self.quiet and self._heard and now - self._heard > max(self.quiet, self._longest):
            self._heard, self.quiet = now, 2 * self.quiet
            seats = {id: self.seats.seat(id) for id in self._sent}
            self._send((id, seat) for id, seat in seats.items() if seat is not None)

    def _give_up(self) -> None:
        now = time.monotonic()
        for id in list(self._begun):
            if self.timeout and now - self._begun[id] > self.timeout:
                self._miss(id, f"no answer within {self.timeout:g} s")
        if self.enough and self.answered >= self.enough:
            for id in list(self._begun):
                self._miss(id, f"not needed: {self.answered} others have answered")

    def _miss(self, id: int, why: str) -> None:
        self.missing[id] = why
        self._settle(id)

    def _settle(self, id: int) -> None:
        del self._begun[id]
        self.post.abandon(self._sent.pop(id, {}))
