"""Who lets nodes answer: this process, or workers on Ray (`fedcl.flower.grid.workers`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.clientapp import ClientApp

from fedcl.flower.grid.letters import Kept, Letter
from fedcl.flower.grid.node import Facts, answer, untouched


class Desk(Protocol):
    """Where a crew finds what is kept of nodes, and where replies go to."""

    def kept(self, letters: Sequence[Letter]) -> dict[int, Kept]:
        """Returns what is kept of the nodes of some letters."""
        ...

    def deliver(
        self,
        letters: Sequence[Letter],
        replies: Sequence[bytes | memoryview],
        kept: Mapping[int, Kept],
    ) -> None:
        """Takes packed replies, and what is to be kept of nodes from now on."""
        ...

    def fail(self, error: BaseException) -> None:
        """Ends the run: whoever waits for replies gets the error."""
        ...


class Crew(Protocol):
    """What lets nodes answer."""

    def share(self, records: tuple[bytes, ...]) -> Any:
        """Puts records where all workers can read them, and returns how to get at them."""
        ...

    def hand(self, shared: Any, letters: Sequence[Letter], until: float | None) -> None:
        """Lets letters be answered; those that have not begun by then need not be."""
        ...

    def withdraw(self, ids: set[str]) -> None:
        """Drops the letters with these ids, unless a worker has them already."""
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...


@dataclass
class InProcess:
    """Nodes answer in the thread that asks, one after the other: no Ray, and a debugger works.

    Attributes:
        app: The client app.
        facts: What every node knows.
        desk: Where replies go to.
    """

    app: ClientApp
    facts: Facts
    desk: Desk
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def share(self, records: tuple[bytes, ...]) -> Any:
        """Returns the records themselves."""
        return records

    def hand(self, shared: Any, letters: Sequence[Letter], until: float | None) -> None:
        """Lets nodes answer at once."""
        with self._lock, untouched():
            for letter in letters:
                if until is not None and time.monotonic() >= until:
                    return
                kept = self.desk.kept([letter])
                replies, now = answer(self.app, self.facts, shared, [letter], kept)
                self.desk.deliver([letter], replies, now)

    def withdraw(self, ids: set[str]) -> None:
        """Has nothing to drop: `hand` stops by itself."""

    def close(self) -> None:
        """Has nothing to end."""
