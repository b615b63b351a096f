"""A client's own memory between exchanges: its values, in versions that outlive a loss of power."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcl.core import wire
from fedcl.core.client import Kept
from fedcl.core.request import Position
from fedcl.flower.node.versions import BEFORE_ALL, Moment, Versions


@dataclass(frozen=True)
class ClientMemory:
    """What one client remembers.

    Attributes:
        folder: Its folder; made when the client first remembers something.
        words: What a memory may name.
        budget: Bytes that all memories below `within` may take on the disk; 0 for no bound.
        within: Folder of all that the budget is for; the client's own folder when None.
    """

    folder: Path
    words: wire.Vocabulary
    budget: int = 0
    within: Path | None = None

    @property
    def versions(self) -> Versions:
        """What lies there, as bytes."""
        return Versions(self.folder, self.budget, self.within)

    def moments(self) -> list[Moment]:
        """Returns the versions that there are, in the order of time."""
        return self.versions.moments()

    def roll_back(self, base: Kept | None, position: Position, committed: tuple[int, int]) -> None:
        """Drops the versions that no later question can name.

        Args:
            base: The version to build on; None when the client keeps nothing yet.
            position: Where in the run the present question is.
            committed: Stage and round where a resumed run would start.
        """
        now = BEFORE_ALL if base is None else base.moment
        self.versions.roll_back(now, (position.stage, position.round), committed)

    def read(self, base: Kept | None) -> Any:
        """Returns a version, or None for no base.

        Raises:
            ResumeError: There is no such version, or it is damaged.
        """
        return None if base is None else wire.loads(self.versions.read(base.moment), self.words)

    def write(self, moment: Moment, value: Any) -> None:
        """Writes a version; None is written too: it forgets.

        Raises:
            ConfigError: It would exceed what the client may keep; what there is stays as it is.
        """
        self.versions.write(moment, wire.dumps(value, self.words))
