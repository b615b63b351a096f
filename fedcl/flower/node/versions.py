"""A client's memory between exchanges, as bytes: one file a version, so that a run can roll back.

A version is named by the exchange that wrote it. Every question names the version that it builds on
and the round where a resumed run would start. So at most four versions lie side by side: the newest
from before that round, the newest from before the present one, which the server may yet drop, the
one that is built on, and the one that the present exchange writes. Whatever is newer than the one
that is built on belongs to an attempt that was dropped, or to a run that was cut off. Asking again
gives the same answer and writes the same version again.

Loss of power, or a kill, at any moment leaves every version as it was or as it was to be. A version
begins with a checksum of itself, so that one that the disk has damaged is never taken for a memory.
Only one process at a time may use a folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fedcl.core import durable
from fedcl.core.errors import ConfigError, ResumeError

Moment = tuple[int, int, int, int]
SUFFIX = ".memory"
_MAGIC = b"fedcl memory 1\n"
_CHECKSUM = 32  # bytes
BEFORE_ALL: Moment = (-1, -1, -1, -1)


@dataclass(frozen=True)
class Versions:
    """The versions that one client keeps.

    Attributes:
        folder: Its folder; made when the client first remembers something.
        budget: Bytes that all versions below `within` may take on the disk; 0 for no bound.
        within: Folder of all that the budget is for; the client's own folder when None.
    """

    folder: Path
    budget: int = 0
    within: Path | None = None

    def moments(self) -> list[Moment]:
        """Returns the versions that there are, in the order of time."""
        if not self.folder.is_dir():
            return []
        return sorted(_moment(path) for path in self.folder.glob(f"*{SUFFIX}"))

    def roll_back(self, base: Moment, place: tuple[int, int], committed: tuple[int, int]) -> None:
        """Drops the versions that no later question can name.

        That need not last: what a loss of power brings back, the next question drops again.

        Args:
            base: The version to build on; `BEFORE_ALL` when the client keeps nothing yet.
            place: Stage and round of the present question.
            committed: Stage and round where a resumed run would start.
        """
        stage, round = committed
        # The first round of a stage begins with the stage's own beginning, round -1.
        borders = (stage, round if round else -1), place
        valid = [moment for moment in self.moments() if moment <= base]
        needed = {base}
        for border in borders:
            needed.update([moment for moment in valid if moment[:2] < border][-1:])
        for moment in self.moments():
            if moment not in needed:
                self._path(moment).unlink()
        for partial in self.folder.glob(f"*{SUFFIX}{durable.PARTIAL}"):
            partial.unlink()  # of a process that was killed

    def read(self, moment: Moment) -> bytes:
        """Returns a version.

        Raises:
            ResumeError: There is no such version, or it is damaged.
        """
        path = self._path(moment)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ResumeError(
                f"its memory {path} is gone: put the folder back, or start the run anew"
            ) from None
        content = data[len(_MAGIC) + _CHECKSUM :]
        if data[: -len(content) or None] != _MAGIC + _checksum(content):
            raise ResumeError(
                f"its memory {path} is damaged ({len(data)} bytes, and the checksum is another "
                "one): put it back as it was, or start the run anew"
            )
        return content

    def write(self, moment: Moment, content: bytes) -> None:
        """Writes a version, whole or not at all.

        Raises:
            ConfigError: It would exceed the budget; what there is stays as it is.
        """
        data = _MAGIC + _checksum(content) + content
        self._check_room(moment, len(data))
        # A memory may hold the client's own examples.
        durable.make_folder(self.folder, mode=0o700)
        durable.write(self._path(moment), data, mode=0o600)

    def _check_room(self, moment: Moment, size: int) -> None:
        if not self.budget:
            return
        within, replaced = self.within or self.folder, self._path(moment)
        sizes = {path: path.stat().st_size for path in within.rglob(f"*{SUFFIX}")}
        held = sum(sizes.values()) - sizes.get(replaced, 0)
        if held + size > self.budget:
            own = sum(s for path, s in sizes.items() if path.parent == self.folder)
            others = sum(sizes.values()) - own
            raise ConfigError(
                f"a memory of {size} bytes does not fit into {within}, which holds {held} of the "
                f"{self.budget} bytes that the client may keep: raise budget in the node config, "
                + (f"remove other experiments there ({others} bytes), " if others else "")
                + "or let the method remember less"
            )

    def _path(self, moment: Moment) -> Path:
        # Numbers alone: a moment comes from a message, and leads nowhere but into the folder.
        return self.folder / ("_".join(f"{part:d}" for part in moment) + SUFFIX)


def _moment(path: Path) -> Moment:
    stage, round, attempt, exchange = map(int, path.name.removesuffix(SUFFIX).split("_"))
    return stage, round, attempt, exchange


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM).digest()
