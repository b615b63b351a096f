"""Files that outlive a loss of power: there is the last content or the new one, whole.

A file is written beside its place, flushed to the disk, then given its name; then the folder is
flushed, which holds the name. A folder that is made is flushed into the one above it likewise.
"""

from __future__ import annotations

import os
from pathlib import Path

PARTIAL = ".part"


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replaces a file, whole or not at all.

    Args:
        path: Its place; the folder is there.
        data: Its new content.
        mode: Who may read it, from its first byte on.
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)  # an earlier one may be readable to others
    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(file, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(path)
    flush(path.parent)


def make_folder(folder: Path, mode: int = 0o755) -> None:
    """Makes a folder and those above it that are missing, so that they last; none is changed.

    Args:
        folder: Its place.
        mode: Who may look into those that are made.
    """
    missing = [folder]
    while not missing[-1].is_dir() and missing[-1] != missing[-1].parent:
        missing.append(missing[-1].parent)
    for place in reversed(missing[:-1]):
        place.mkdir(mode=mode, exist_ok=True)
        flush(place.parent)


def flush(folder: Path) -> None:
    """Makes last what names a folder holds."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
