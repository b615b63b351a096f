"""Memory of a process and of everything that it has started, as the operating system counts it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np


def megabytes() -> dict[str, float]:
    """Returns the resident memory of this process and its descendants by name, in MB (1e6 bytes).

    Pages that several processes share, such as Ray's object store, count in each.

    Raises:
        OSError: There is no `/proc`: only Linux tells.
    """
    found: dict[str, float] = {}
    for process in _family(os.getpid()):
        folder = Path(f"/proc/{process}")
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            name = (folder / "comm").read_text(encoding="utf-8").strip()
            pages = int((folder / "statm").read_text(encoding="ascii").split()[1])
            found[name] = found.get(name, 0.0) + pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return found


def _family(root: int) -> list[int]:
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


def slope(rounds: Sequence[int], sizes: Sequence[float]) -> float:
    """Returns the slope of a least-squares line through the last half, in MB per 100 rounds."""
    half = len(rounds) // 2
    if len(rounds) - half < 2:
        raise ValueError(f"{len(rounds)} samples are too few for a slope of their last half")
    return 100 * float(np.polyfit(rounds[half:], sizes[half:], 1)[0])
