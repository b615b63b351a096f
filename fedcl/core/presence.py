"""Clients that come and go: what a run asks of an engine whose clients are not always there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Presence(Protocol):
    """Knows which clients are there."""

    def gathered(self, members: Sequence[int], least: int) -> Sequence[int]:
        """Returns the members who are there, ascending; waits until there are at least so many.

        Raises:
            FedclError: They do not come.
        """
        ...

    def news(self) -> list[Mapping[str, int | str]]:
        """Returns what happened since the last call: who was refused, and why."""
        ...
