"""Memory of a process and of everything that it has started, as the operating system counts it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from bench.processes import folders


def megabytes() -> dict[str, float]:
    """Returns the resident memory of this process and its descendants by name, in MB (1e6 bytes).

    Pages that several processes share, such as Ray's object store, count in each.

    Raises:
        OSError: There is no `/proc`: only Linux tells.
    """
    found: dict[str, float] = {}
    for name, folder in folders():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            pages = int((folder / "statm").read_text(encoding="ascii").split()[1])
            found[name] = found.get(name, 0.0) + pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return found


def slope(rounds: Sequence[int], sizes: Sequence[float], skip: int | None = None) -> float:
    """Returns the slope of a least-squares line, in MB per 100 rounds.

    Args:
        rounds: When samples were taken.
        sizes: MB.
        skip: How many of the first samples do not count; None for a half.
    """
    skip = len(rounds) // 2 if skip is None else skip
    if len(rounds) - skip < 2:
        raise ValueError(f"{len(rounds)} samples, less {skip}, are too few for a slope")
    return 100 * float(np.polyfit(rounds[skip:], sizes[skip:], 1)[0])
