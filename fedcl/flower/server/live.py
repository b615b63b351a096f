"""Clients of a live federation: nodes come, leave and return, and say which client they are."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedcl.core.errors import FedclError
from fedcl.flower.protocol.inspection import inspect
from fedcl.flower.protocol.introductions import Introduced, Introduction
from fedcl.flower.protocol.messages import INTRODUCTION, read_failure
from fedcl.flower.server.guestbook import Guestbook
from fedcl.flower.server.seats import Seat
from fedcl.flower.server.status import Status
from fedcl.flower.transport.post import Arrival, Post

_LOOK = 1.0  # seconds between two looks at who is connected
_DEADLINE = 300.0  # seconds until a node that does not introduce itself makes room for others
# Seconds until a node is asked again that was refused, or that says nothing: then twice as long.
_AGAIN = 60.0
LIMIT = 100_000  # bytes of an introduction
_REFUSALS = 100  # that are remembered and told


@dataclass
class Attendance:
    """Who is there (`fedcl.core.presence.Presence`, `fedcl.flower.server.seats.Seats`).

    Flower gives a node that was started anew another number, or another time since when it is
    there: either is another seat, whose node is asked who it is. A client is bound to the token of
    its first introduction. The same token at a newer seat is the same device, which was started
    anew. Any other node is refused, which never ends the run.

    Attributes:
        post: Carries introductions, apart from the messages of exchanges.
        clients: Clients that are registered.
        introduction: What the server says of itself.
        guestbook: Who clients are.
        status: Told who is there.
        grace: Seconds that are waited for who is not there: for all members before the first round
            of a sitting, and for a client that has left.
        patience: Seconds after which too few clients end the run.
    """

    post: Post
    clients: int
    introduction: Introduction
    guestbook: Guestbook
    status: Status
    grace: float
    patience: float
    arrived: dict[int, int] = field(default_factory=dict)
    _seats: dict[int, Seat] = field(default_factory=dict, init=False)
    _left: dict[int, float] = field(default_factory=dict, init=False)
    _online: set[Seat] = field(default_factory=set, init=False)
    _known: dict[Seat, float] = field(default_factory=dict, init=False)  # until when who is who
    _asked: dict[str, Seat] = field(default_factory=dict, init=False)
    _refused: dict[str, None] = field(default_factory=dict, init=False)
    _news: list[Mapping[str, int | str]] = field(default_factory=list, init=False)
    _looked: float = field(default=-_LOOK, init=False)
    _gathered: bool = field(default=False, init=False)

    def refresh(self) -> None:
        """Looks who is connected, if it is time to look again, and asks new nodes who they are."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        self._online = {
            Seat(node.node_id, node.last_activated_at) for node in self.post.grid.get_nodes()
        }
        for client, seat in list(self._seats.items()):
            if seat not in self._online:
                del self._seats[client]
                self._left[client] = now
        self._known = {
            seat: until
            for seat, until in self._known.items()
            if seat in self._online and (now < until or seat in self._seats.values())
        }
        for id, seat in list(self._asked.items()):
            if seat not in self._online or now - self.post.flight[id] > _DEADLINE:
                del self._asked[id], self.post.flight[id]
        self._invite()
        for arrival in self.post.receive(wait=False):
            self._welcome(arrival)
        self.status.tell(connected=sorted(self._seats))

    def seat(self, client: int) -> Seat | None:
        """Returns where a client is, or None."""
        return self._seats.get(client)

    def awaited(self, client: int) -> bool:
        """Returns whether a client has left a moment ago, and may come back."""
        left = self._left.get(client)
        return left is not None and time.monotonic() - left < self.grace

    def lost(self, client: int, seat: Seat) -> bool:
        """Takes note that a client cannot be reached there; returns whether it may come back."""
        if self._seats.get(client) == seat:
            del self._seats[client]
            self._known.pop(seat, None)
            self._left[client] = time.monotonic()
        return True

    def close(self) -> None:
        """No longer looks who is there."""
        self.post.close()

    def gathered(self, members: Sequence[int], least: int) -> Sequence[int]:
        """Returns the members who are there, ascending; waits until there are at least so many.

        A sitting's first call waits for all of them for a while, so that a federation that is
        complete gives the simulation's results; later ones for those who left a moment ago.

        Raises:
            FedclError: They do not come.
        """
        begun, least = time.monotonic(), min(least, len(members))
        while True:
            self.refresh()
            here = [client for client in sorted(self._seats) if _among(client, members)]
            waited = time.monotonic() - begun
            gone = any(map(self.awaited, self._left.keys() - self._seats.keys()))
            whole = len(here) == len(members)
            settled = waited >= self.grace or (self._gathered and not gone)
            if whole or (settled and len(here) >= least):
                self._gathered = True
                self.status.tell(waiting="")
                return here
            if waited >= max(self.patience, self.grace):
                raise FedclError(self._too_few(len(here), least))
            wanted = len(members) if not self._gathered and len(here) >= least else least
            waiting = f"for clients: {len(here)} of {wanted} are connected{self._last_refusal()}"
            self.status.tell(waiting=waiting)
            time.sleep(self.post.interval)

    def present(self, clients: Sequence[int]) -> Sequence[int]:
        """Returns those of some clients who are there now, ascending; a first call waits a while.

        Args:
            clients: Ids, ascending.
        """
        if not self._gathered:
            return self.gathered(clients, 1)
        self.refresh()
        return [client for client in sorted(self._seats) if _among(client, clients)]

    def news(self) -> list[Mapping[str, int | str]]:
        """Returns what happened since the last call: who was refused, and why."""
        found, self._news = self._news, []
        return found

    def _invite(self) -> None:
        now, asked = time.monotonic(), dict[Seat, list[float]]()
        for id, seat in self._asked.items():
            asked.setdefault(seat, []).append(self.post.flight[id])
        waiting = self._online - self._known.keys()
        waiting -= {
            seat for seat, at in asked.items() if now - max(at) < _AGAIN * 2 ** (len(at) - 1)
        }
        seats = sorted(waiting)[: max(0, self.post.window - len(self._asked))]
        if not seats:
            return
        said = self.introduction.write()
        ids = self.post.send_all([(said, seat.node) for seat in seats], INTRODUCTION)
        self._asked |= {id: seat for id, seat in zip(ids, seats, strict=True) if id}

    def _welcome(self, arrival: Arrival) -> None:
        seat = self._asked.pop(arrival.id, None)
        if seat is None or seat not in self._online:
            return
        self._known[seat] = time.monotonic() + _AGAIN
        try:
            guest = _guest(arrival)
        except Exception as error:  # it may hold anything
            self._refuse(f"a node was refused: {error}")
            return
        if guest.client >= self.clients:
            self._refuse(
                f"a node was refused: it is client {guest.client}, but ids go from 0 to "
                f"{self.clients - 1}"
            )
            return
        if not self.guestbook.bind(guest.client, guest.token):
            self._refuse(
                f"a node was refused: client {guest.client} is another device: give each a client "
                "of its own, or one that was set up anew its old state folder"
            )
            return
        current = self._seats.get(guest.client)
        if current is not None and current in self._online and seat.since < current.since:
            self._refuse(
                f"a node was refused: client {guest.client} is there twice, with the same state "
                "folder or a copy of it: stop one of its nodes; the newest counts"
            )
            return
        self._seats[guest.client] = seat
        self._left.pop(guest.client, None)
        self.arrived[guest.client] = guest.arrived

    def _refuse(self, why: str) -> None:
        if why not in self._refused and len(self._refused) < _REFUSALS:
            self._refused[why] = None
            self._news.append({"what": "refused", "why": why})

    def _last_refusal(self) -> str:
        return f"; {next(reversed(self._refused))}" if self._refused else ""

    def _too_few(self, here: int, least: int) -> str:
        told = "".join(f"; {why}" for why in self._refused)
        return (
            f"{here} of the {least} clients that a round needs (training.minimum) are there after "
            f"{self.patience:g} s{told}: start more nodes, or raise engine.patience, then go on "
            "with resume=true"
        )


def _guest(arrival: Arrival) -> Introduced:
    """Returns what a node says of itself; raises whatever is wrong with it."""
    answer = arrival.answer
    if answer is None:
        raise FedclError(arrival.why)
    if answer.has_error():
        raise FedclError(f"Flower reports: {answer.error.reason}")
    inspect(answer.content, LIMIT)
    told = read_failure(answer.content)
    if told is not None:
        raise FedclError(f"{told[1]:.2000}")
    return Introduced.read(answer.content)


def _among(client: int, members: Sequence[int]) -> bool:
    place = bisect_left(members, client)
    return place < len(members) and members[place] == client
