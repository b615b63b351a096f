"""Which node uses a device's state folder: a second one is refused while the first one lives.

Every message is answered by a new process, so no process holds the folder in between. What is noted
is how Flower calls the node, and the process that starts those that answer (its SuperExec), which
lives as long as the node. So a second node on the same machine is refused, and a node that was
ended or killed, or whose machine was, can come back at once.

Nodes on other machines, or in containers of their own, cannot see each other's processes: there a
second one is let in. Its answers still take turns with the first one's wherever the lock of the
folder reaches, and while both are connected the server refuses the client that comes twice.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from fedcl.core import durable
from fedcl.core.errors import ConfigError

_PATIENCE = 5.0  # seconds in which the processes of a node that was ended are gone


def move_in(path: Path, node: int) -> None:
    """Takes note of the node that uses a folder.

    Args:
        path: The note; the folder is locked.
        node: How Flower calls the node, another name whenever it registers.

    Raises:
        ConfigError: Another node uses it, which lives.
    """
    own = {"node": str(node), "place": _place(), "parent": _process(os.getppid())}
    found = _read(path)
    if found == own:
        return
    if found.get("node") != own["node"] and found.get("parent") != own["parent"]:
        end = time.monotonic() + _PATIENCE
        while _lives(found):
            if time.monotonic() > end:
                raise ConfigError(
                    f"state folder {path.parent} is in use by Flower node {found['node']} (process "
                    f"{found['parent'][0]}): end that one, or give node {node} a client and a "
                    "state folder of its own"
                )
            time.sleep(0.1)
    durable.write(path, json.dumps(own).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, TypeError, ValueError):
        return {}  # what it may have said need not last


def _place() -> str:
    """Returns what tells where a process id means something: this boot, these processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _process(id: int) -> list[int]:
    """Returns a process: its id, and when it was started, or 0 where that cannot be told."""
    return [id, _started(id) or 0]


def _started(id: int) -> int | None:
    """Returns when a process was started, in ticks; 0 where unknown, None for no process."""
    try:
        state, *words = (
            Path(f"/proc/{id}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        )
        return None if state in "ZX" else int(words[18])
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(id, 0)
    except OSError:
        return None
    return 0


def _lives(tenant: dict[str, Any]) -> bool:
    """Returns whether the process that came with a node is still there."""
    try:
        id, started = tenant["parent"]
        return bool(tenant["place"] == _place() and id > 1 and _started(id) == started)
    except (KeyError, TypeError, ValueError):
        return False
