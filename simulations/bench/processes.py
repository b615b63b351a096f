"""A process and everything that it has started: which they are, and how long they have computed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def family(root: int) -> list[int]:
    """Returns a process and its descendants, by number.

    Raises:
        OSError: There is no `/proc`: only Linux tells.
    """
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold spaces: what counts stands behind it.
            parent = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = [], [root]
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting.extend(children.get(process, []))
    return found


def folders() -> Iterator[tuple[str, Path]]:
    """Yields name and folder in `/proc` of this process and its descendants, but ended ones."""
    for process in family(os.getpid()):
        folder = Path(f"/proc/{process}")
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            yield (folder / "comm").read_text(encoding="utf-8").strip(), folder


def processor_seconds() -> dict[str, float]:
    """Returns how long this process and its descendants have computed so far, by name."""
    found: dict[str, float] = {}
    for name, folder in folders():
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])  # in programs, and in the system for them
            found[name] = found.get(name, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return found
