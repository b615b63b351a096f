"""What a live federation is doing now: `live.json` in the run's folder, for who looks on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcl.progress import Progress
from fedcl.record import write_text

FILE = "live.json"
_BLANK: Mapping[str, Any] = {
    "stage": 0,
    "stages": 0,
    "round": 0,
    "rounds": 0,
    "done": 0,
    "total": 0,
    "connected": [],
    "waiting": "",
    "answered": 0,
    "asked": 0,
    "failures": {},
    "rejected_total": 0,
    "epsilon": None,
    "bytes_up": 0,
    "bytes_down": 0,
}
_LASTING = {
    *("stage", "stages", "round", "rounds", "done", "total"),
    *("rejected_total", "epsilon", "bytes_up", "bytes_down"),
}
_INTERVAL = 0.5  # seconds between two writes, unless something ends


@dataclass
class Status:
    """The state of a live federation, for others to read.

    Attributes:
        folder: The run's folder; None tells nobody.
        now: What is told: rounds as `fedcl.progress.Progress` counts them; the clients that are
            `connected`; what the server is `waiting` for; of the present exchange how many were
            `asked`, have `answered`, and whose `failures` there were; and sums over the whole run.
    """

    folder: Path | None
    now: dict[str, Any] = field(default_factory=lambda: dict(_BLANK))
    _written: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Goes on from what an earlier sitting told last."""
        if self.folder is None:
            return
        with suppress(OSError, ValueError, AttributeError):
            before = json.loads((self.folder / FILE).read_text(encoding="utf-8")).items()
            self.now.update({name: value for name, value in before if name in _LASTING})

    def watch(self, now: Progress) -> None:
        """Takes note of a finished round."""
        self.tell(
            at_once=True,
            stage=now.stage,
            stages=now.stages,
            round=now.round,
            rounds=now.rounds,
            done=now.done,
            total=now.total,
            epsilon=now.epsilon,
            rejected_total=now.rejected,
            bytes_up=now.bytes_up,
            bytes_down=now.bytes_down,
            waiting="",
        )

    def tell(self, *, at_once: bool = False, **changes: Any) -> None:
        """Takes note of changes, and writes them unless something was written a moment ago.

        Args:
            at_once: Write whatever was written when.
            changes: New values by name.
        """
        self.now.update(changes)
        moment = time.monotonic()
        if self.folder is None or not self.folder.is_dir():
            return
        if at_once or moment - self._written >= _INTERVAL:
            self._written = moment
            write_text(self.folder / FILE, json.dumps({**self.now, "time": time.time()}))
