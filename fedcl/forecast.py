"""What a run will need, from its config and its data, before anything is trained.

Memory is the peak over all processes of what their pages occupy; disk is the finished folder. A run
that has not that room is refused before it begins, and told which option to change.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from fedcl.config import Experiment
from fedcl.core.cost import SPEED, forward_flops
from fedcl.core.errors import ConfigError
from fedcl.core.site import Site
from fedcl.footprint import Part, evaluation, kept, server, statistics, total, training, workers
from fedcl.planned import Planned
from fedcl.reporting.text import volume
from fedcl.workload import visits

_CODE = 40_000_000  # what loads after this: autograd's own, and the report's libraries
_CONTAINER = Path("/sys/fs/cgroup/memory.max")
_STEP = 4e-4  # seconds that a local step takes beside its arithmetic


@dataclass(frozen=True)
class Forecast:
    """What a run will need.

    Attributes:
        memory: Parts of the peak of resident memory.
        loaded: Most memory that this process occupied while data, stream and model were built, or 0
            where that is not known.
        disk: Parts of the finished folder.
        seconds: Time of training and evaluation in one process, about; NaN where nobody knows it.
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


def forecast(experiment: Experiment, site: Site, before: float = 0.0) -> Forecast:
    """Returns what a run will need.

    Data, stream and model have been built in this process: their memory is measured, and only what
    comes later is predicted. The memory of a GPU is not.

    Args:
        experiment: A validated experiment.
        site: Where its clients run.
        before: Most memory that this process had occupied before they were built, in bytes.
    """
    run = Planned(experiment, site)
    moments = [server(run)]
    if run.placement.workers:
        moments += [evaluation(run), workers(run)]
    elif site.device.type == "cpu" and not run.stream.elsewhere:
        moments += [evaluation(run), training(run), statistics(run)]
    now = occupied("VmRSS")
    parts = [
        Part("Python, PyTorch, fedcl and the model", now - run.arrays + _CODE),
        Part("the data", run.arrays, "dataset"),
        *kept(run),
        *max(moments, key=total),
    ]
    return Forecast(
        tuple(part for part in parts if part.size),
        loaded if (loaded := occupied("VmHWM")) > before else 0.0,
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
    whose, other = "this machine has", "take a larger machine"
    if limit:
        whose, other = "memory.limit allows", "raise memory.limit"
    _refuse("memory", found.memory, found.peak, limit or installed(), whose, other)
    if folder is not None:
        free = disk_room(folder)
        whose = f"the disk of {folder} has"
        _refuse("disk", found.disk, found.written, free, whose, "name another --out")


def _refuse(
    kind: str, parts: tuple[Part, ...], need: float, room: float, whose: str, other: str
) -> None:
    if need <= room:
        return
    remedy = other
    if room > sum(part.size for part in parts if not part.options):
        largest = max((part for part in parts if part.options), key=lambda part: part.size)
        share = f"{volume(largest.size)} of it is {largest.what}"
        remedy = f"lower {largest.options} ({share}), or {other}"
    fact = f"the run needs about {volume(need)} of {kind}, but {whose} {volume(room)}"
    raise ConfigError(f"{fact}: {remedy}")


def installed() -> float:
    """Returns the bytes of memory that this machine has, or that a container leaves of them."""
    pages = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        return min(pages, float(_CONTAINER.read_text(encoding="ascii")))
    except (OSError, ValueError):  # there is none, or no bound ("max")
        return pages


def disk_room(folder: Path) -> float:
    """Returns the bytes that a run's folder may have: what is free, and what it has already.

    Whether a folder can be written at all is not asked here: then, there is no bound.
    """
    place = folder.absolute()
    try:
        while not place.exists():
            place = place.parent
        disk = shutil.disk_usage(place)
        held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError:
        return float("inf")
    return float(disk.free + held) if disk.total else float("inf")


def occupied(key: str) -> float:
    """Returns what this process occupies now (VmRSS), or has at most so far (VmHWM), in bytes.

    Where there is no /proc, both are the latter.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            lines = dict(line.split(":", 1) for line in status)
        return 1024.0 * int(lines[key].split()[0])
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if sys.platform == "darwin" else 1024 * peak)


def _seconds(run: Planned) -> float:
    """Returns the seconds that arithmetic and the steps' overhead take on one processor, about."""
    stream = run.stream
    if stream.elsewhere:
        return math.nan
    steps = visits(run.experiment, stream) / min(run.batch, max(1.0, float(run.shares[0].mean())))
    # Clients of one computation share its overhead.
    together = max(min(way.size(run.site.model), run.together) for way in run.placement.batchings)
    overhead = _STEP * steps / (together if run.batched else 1)
    tested = sum(len(task.test) for task in stream.tasks) * _looks(run) / len(stream.tasks)
    flops = run.flops + tested * forward_flops(run.site.model, stream.dataset.shape)
    return flops / SPEED + overhead


def _looks(run: Planned) -> int:
    """Returns how often a task is evaluated in a run, at most."""
    stages, rounds = run.stream.stages, run.experiment.training.rounds
    every: int = run.experiment.evaluation.every
    times: int = 1 + stages + (stages * (rounds - 1) // every if every else 0)
    return times * len(run.stream.tasks)


def _disk(run: Planned) -> list[Part]:
    """Returns the parts of the finished folder."""
    stages, settings = run.stream.stages, run.experiment.evaluation
    # Accuracy and loss of each task; a client has a row for each task that it has met.
    own = min(settings.clients, run.stream.clients) * stages * (stages + 1) // 2
    rows = (2 * _looks(run) + own) * len(settings.splits)
    rows += 3 * stages * run.experiment.training.rounds
    state = run.sizes.params + run.needs.state
    return [
        Part("the model", run.sizes.params, "model"),
        Part("the checkpoint's state", state, "model"),
        Part("clients' memories in it", 1.05 * run.remembered, "stream.clients"),
        Part("tables, here and in it", 180 * rows, "evaluation.every"),
        Part("report and figures", 700_000),
    ]


def show_seconds(seconds: float) -> str:
    """Returns a rough time in words: about 20 min; NaN is not known."""
    if math.isnan(seconds):
        return "not known"
    if seconds < 10:
        return "some seconds"
    units = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}
    unit = max((u for u in units if u == "s" or seconds >= 1.5 * units[u]), key=units.__getitem__)
    seconds /= units[unit]
    return f"about {float(f'{seconds:.1g}'):.0f} {unit}"
