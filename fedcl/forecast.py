"""What a run will need, from its config and its data, before anything is trained.

Memory is the peak over all processes of what their pages occupy; disk is the finished folder. A run
that has not that room is refused before it begins, and told which option to change.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from fedcl.config import Experiment
from fedcl.core.cost import SPEED
from fedcl.core.errors import ConfigError
from fedcl.core.site import Site
from fedcl.footprint import Part, Run, evaluation, kept, server, statistics, total, training, workers

_CODE = 40_000_000  # what loads after this: autograd's own, and the report's libraries
_STEP = 4e-4  # seconds that a local step takes beside its arithmetic


@dataclass(frozen=True)
class Forecast:
    """What a run will need.

    Attributes:
        memory: Parts of the peak of resident memory.
        loaded: Most memory that this process has occupied so far.
        disk: Parts of the finished folder.
        seconds: Time of training and evaluation in one process, about.
    """

    memory: tuple[Part, ...]
    loaded: float
    disk: tuple[Part, ...]
    seconds: float

    @property
    def peak(self) -> float:
        """Bytes of memory."""
        return max(total(self.memory), self.loaded)

    @property
    def written(self) -> float:
        """Bytes on disk."""
        return total(self.disk)


def forecast(experiment: Experiment, site: Site) -> Forecast:
    """Returns what a run will need.

    Data, stream and model have been built in this process: their memory is measured, and only what
    comes later is predicted.

    Args:
        experiment: A validated experiment.
        site: Where its clients run.
    """
    run = Run(experiment, site)
    moments = [server(run), evaluation(run)]
    moments += [workers(run)] if run.placement.workers else [training(run), statistics(run)]
    now = _resident("VmRSS")
    parts = [
        Part("Python, PyTorch, fedcl, data and model", now + _CODE, "dataset"),
        *kept(run),
        *max(moments, key=total),
    ]
    return Forecast(
        tuple(part for part in parts if part.size),
        _resident("VmHWM"),
        tuple(part for part in _disk(run) if part.size),
        _seconds(run),
    )


def check_room(found: Forecast, experiment: Experiment, folder: Path | None) -> None:
    """Raises ConfigError when a run cannot fit in memory or on disk; names what to change.

    Args:
        found: What it needs.
        experiment: The experiment.
        folder: Where its files go, or None for a run that writes none.
    """
    limit = experiment.memory.limit
    whose = "memory.limit allows" if limit else "this machine has"
    _refuse("memory", found.memory, found.peak, limit or installed(), whose, "raise memory.limit")
    if folder is not None:
        free = _free(folder)
        _refuse("disk", found.disk, found.written, free, f"{folder} has", "name another --out")


def _refuse(
    kind: str, parts: tuple[Part, ...], need: float, room: float, whose: str, other: str
) -> None:
    if need <= room:
        return
    largest = max((part for part in parts if part.options), key=lambda part: part.size)
    raise ConfigError(
        f"the run needs about {show_bytes(need)} of {kind}, but {whose} {show_bytes(room)}: lower "
        f"{largest.options} ({show_bytes(largest.size)} of it is {largest.what}), or {other}"
    )


def installed() -> float:
    """Returns the bytes of memory that this machine has."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _free(folder: Path) -> float:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return float(shutil.disk_usage(place).free)


def _resident(key: str) -> float:
    """Returns what this process occupies now (VmRSS), or has at most so far (VmHWM), in bytes.

    Where there is no /proc, both are the latter, which may count what ran here before.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            lines = dict(line.split(":", 1) for line in status)
        return 1024.0 * int(lines[key].split()[0])
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if sys.platform == "darwin" else 1024 * peak)


def _seconds(run: Run) -> float:
    return run.flops / SPEED


def _disk(run: Run) -> list[Part]:
    """Returns the parts of the finished folder."""
    experiment, stream = run.experiment, run.stream
    rounds, tasks = stream.stages * experiment.training.rounds, len(stream.tasks)
    every, settings = experiment.evaluation.every, experiment.evaluation
    looks = 2 * tasks * (stream.stages + 1) + stream.stages * min(settings.clients, stream.clients)
    looks += tasks * rounds // every if every else 0
    rows = looks * len(settings.splits) + 4 * rounds
    state = run.sizes.params + run.needs.state
    return [
        Part("the model", run.sizes.params, "model"),
        Part("the checkpoint's state", state, "model"),
        Part("clients' memories in it", 1.05 * run.remembered, "stream.clients"),
        Part("tables, here and in it", 180 * rows, "evaluation.every"),
        Part("report and figures", 700_000),
    ]


def show_bytes(size: float) -> str:
    """Returns bytes in words: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
