"""A client's own memory between exchanges: one file a version, so that a resumed run can roll back.

A version is named by the exchange that wrote it. Every question names the version that it builds on
and the round where a resumed run would start. So at most four versions lie side by side: the newest
from before that round, the newest from before the present one, which the server may yet drop, the
one that is built on, and the one that the present exchange writes. Whatever is newer than the one
that is built on belongs to an attempt that was dropped, or to a run that was cut off. Asking again
gives the same answer and writes the same version again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcl.core import wire
from fedcl.core.client import Kept
from fedcl.core.engine import Position
from fedcl.core.errors import ResumeError

Moment = tuple[int, int, int, int]
_SUFFIX = ".memory"


@dataclass(frozen=True)
class ClientMemory:
    """The versions that one client keeps.

    Attributes:
        folder: Its folder; made when the client first remembers something.
        words: What a memory may name.
    """

    folder: Path
    words: wire.Vocabulary

    def moments(self) -> list[Moment]:
        """Returns the versions that there are, in the order of time."""
        if not self.folder.is_dir():
            return []
        return sorted(_moment(path) for path in self.folder.glob(f"*{_SUFFIX}"))

    def roll_back(self, base: Kept | None, position: Position, committed: tuple[int, int]) -> None:
        """Drops the versions that no later question can name.

        Args:
            base: The version to build on; None when the client keeps nothing yet.
            position: Where in the run the present question is.
            committed: Stage and round where a resumed run would start.
        """
        stage, round = committed
        # The first round of a stage begins with the stage's own beginning, round -1.
        borders = (stage, round if round else -1), (position.stage, position.round)
        now = (-1, -1, -1, -1) if base is None else base.moment
        valid = [moment for moment in self.moments() if moment <= now]
        needed = {now}
        for border in borders:
            needed.update([moment for moment in valid if moment[:2] < border][-1:])
        for moment in self.moments():
            if moment not in needed:
                self._path(moment).unlink()

    def read(self, base: Kept | None) -> Any:
        """Returns a version, or None for no base.

        Raises:
            ResumeError: There is no such version.
        """
        if base is None:
            return None
        path = self._path(base.moment)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ResumeError(
                f"its memory {path} is gone: put the folder back, or start the run anew"
            ) from None
        return wire.loads(data, self.words)

    def write(self, moment: Moment, value: Any) -> None:
        """Writes a version whole and then gives it its name; None is written too: it forgets."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(moment)
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            file.write(wire.dumps(value, self.words))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too, must outlive a power cut
        finally:
            os.close(folder)

    def _path(self, moment: Moment) -> Path:
        return self.folder / ("_".join(map(str, moment)) + _SUFFIX)


def _moment(path: Path) -> Moment:
    stage, round, attempt, exchange = map(int, path.name.removesuffix(_SUFFIX).split("_"))
    return stage, round, attempt, exchange
