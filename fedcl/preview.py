"""What a config means before it runs: the tasks, who holds how much of what when, and the sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from fedcl.assembly import build_site, check_minimum
from fedcl.config import Experiment
from fedcl.core.data.stream import Stream
from fedcl.core.training.schedule import Constant, Pace
from fedcl.forecast import (
    Forecast,
    check_room,
    disk_room,
    forecast,
    installed,
    occupied,
    show_seconds,
)
from fedcl.reporting.text import volume
from fedcl.summary import read_reference

_BARS = "·▁▂▃▄▅▆▇█"
_MOST_CLIENTS = 24
_MOST_STAGES = 12
_MOST_CLASSES = 40


def preview(
    experiment: Experiment, width: int = 80, folder: Path | None = None
) -> Iterator[RenderableType]:
    """Yields what `fedcl show` prints.

    Args:
        experiment: A validated config.
        width: Columns of the terminal: as many stages are drawn as fit.
        folder: Where the run's files would go.

    Raises:
        ConfigError: What would fail at the start of a run: data, stream and model are built, and
            memory and disk must be large enough.
    """
    before = occupied("VmHWM")
    site = build_site(experiment)
    stream: Stream = site.population.stream  # type: ignore[attr-defined]
    check_minimum(experiment, stream)
    read_reference(experiment.evaluation.reference, experiment, stream)
    found = forecast(experiment, site, before)
    check_room(found, experiment, folder)
    yield Text(
        f"{stream.name} ({stream.scenario}-incremental): {len(stream.tasks)} tasks, "
        f"{stream.stages} stages, {stream.clients} clients, {stream.dataset.name}: "
        f"inputs {stream.dataset.shape}, {stream.classes} classes"
    )
    if stream.elsewhere:
        yield from _arrivals(stream)
    else:
        yield _tasks(stream)
        yield from _shares(stream, width)
    model = sum(p.numel() * p.element_size() for p in site.model.parameters())
    yield _sizes(experiment, stream, model)
    yield _needs(found, experiment, folder)
    if not isinstance(experiment.training.schedule, Constant):
        yield _course(site.pace, width)
    if experiment.resolved["engine"].get("tune"):
        yield Text("\nengine.tune = true: a run first measures how clients are batched fastest.")
    yield Text()
    yield Syntax(experiment.toml, "toml", background_color="default")


def _course(pace: Pace, width: int) -> Text:
    """Returns the factors of the learning rate, a bar a round while there is room."""
    total = pace.stages * pace.rounds
    every = -(-total // max(1, width - 2))
    rounds = [divmod(number, pace.rounds) for number in range(0, total, every)]
    bars = "".join(_BARS[math.ceil(8 * pace.factor(*at))] for at in rounds)
    shown = "each round" if every == 1 else f"every {every}th round"
    return Text(f"\nlearning rate, {shown}, the highest is lr itself:\n{bars}")


def _arrivals(stream: Stream) -> Iterator[RenderableType]:
    """Yields what is known of data that lie with the clients: where they are here, their files."""
    yield Text(
        "\nAll data lie with the clients: how many examples they have, and so the memory that they "
        "need and the time that it takes, is not known here."
    )
    source = stream.dataset.source
    if source is None or not source.here:
        return
    table = _table("what has arrived")
    table.add_column("client", justify="right")
    table.add_column("arrivals", justify="right")
    for client in range(min(stream.clients, _MOST_CLIENTS)):
        table.add_row(str(client), str(len(source.names(client))))
    yield table


def _tasks(stream: Stream) -> Table:
    table = _table("tasks")
    splits = {"train": "train", "test": "test", "validation": "held out", "public": "public"}
    held = [s for s in splits if any(len(getattr(task, s)) for task in stream.tasks)]
    for heading in ("task", "name", "classes", *(splits[s] for s in held), "a client has"):
        words = heading in ("name", "classes")
        table.add_column(heading, justify="left" if words else "right", no_wrap=True)
    for task in stream.tasks:
        sizes = stream.sizes(task.index)
        table.add_row(
            str(task.index),
            task.name,
            _ranges(task.classes),
            *(str(len(getattr(task, split))) for split in held),
            f"{sizes.min()} to {sizes.max()}",
        )
    return table


def _ranges(numbers: Sequence[int]) -> str:
    """Returns ascending numbers in words: 0-9, 12."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return ", ".join(words[:8]) + (" ..." if len(words) > 8 else "")


def _shares(stream: Stream, width: int) -> Iterator[RenderableType]:
    """Yields a row for each client, a column for each stage, and in a cell a bar for each class."""
    clients = range(min(stream.clients, _MOST_CLIENTS))
    held: dict[tuple[int, int], tuple[int, np.ndarray]] = {}
    for client in clients:
        for stage in range(min(stream.stages, _MOST_STAGES)):
            task = stream.task_at(client, stage)
            if task is not None:
                held[client, stage] = (task, stream.label_counts(client, task))
    most = max((int(counts.max()) for _, counts in held.values()), default=1)
    cells = {}
    for place, (task, counts) in held.items():
        bars = "".join(_BARS[-(-8 * int(c) // most)] for c in counts[:_MOST_CLASSES])
        cells[place] = f"{bars} {counts.sum()}" + ("" if stream.order.shared else f" of {task}")
    room = (width - 8) // (2 + max((len(cell) for cell in cells.values()), default=1))
    stages = range(min(stream.stages, _MOST_STAGES, max(1, room)))
    table = _table("who holds what")
    table.add_column("client", justify="right")
    for stage in stages:
        table.add_column(f"stage {stage}", no_wrap=True)
    for client in clients:
        table.add_row(str(client), *(cells.get((client, stage), "-") for stage in stages))
    yield table
    own = "" if stream.order.shared else " of which task"
    left = {"more clients": stream.clients - len(clients), "stages": stream.stages - len(stages)}
    more = " and ".join(f"{number} {what}" for what, number in left.items() if number)
    yield Text(
        f"A bar a class, the highest is {most} examples; then all examples{own}."
        + (f" Not shown: {more}." if more else "")
    )


def _sizes(experiment: Experiment, stream: Stream, model: int) -> Table:
    training = experiment.training
    cohort = min(training.cohort or stream.clients, stream.clients)
    rounds = stream.stages * training.rounds
    table = _table("sizes")
    table.add_column("what")
    table.add_column("size", justify="right")
    for what, size in (
        ("model", volume(model)),
        ("rounds", f"{rounds}"),
        ("local steps in a round, about", _steps(experiment, stream, cohort)),
        ("model bytes up, and as many down, in a round", volume(cohort * model)),
        (
            f"model bytes up, and as many down, in {rounds} rounds",
            volume(cohort * model * rounds),
        ),
    ):
        table.add_row(what, size)
    return table


def _needs(found: Forecast, experiment: Experiment, folder: Path | None) -> Table:
    limit = experiment.memory.limit
    room = {
        "memory": f"{volume(limit or installed())} {'are allowed' if limit else 'here'}",
        "disk": f"{volume(disk_room(folder))} here" if folder else "",
    }
    table = _table("what a run needs, about")
    table.add_column("what")
    table.add_column("size", justify="right")
    table.add_column("less with a smaller", overflow="fold")
    for kind, parts, need in (
        ("memory", found.memory, found.peak),
        ("disk", found.disk, found.written),
    ):
        for part in sorted(parts, key=lambda part: -part.size):
            if part.size >= need / 100:
                table.add_row(f"  {part.what}", volume(part.size), part.options)
        table.add_row(f"{kind} in all", volume(need), room[kind])
    table.add_row("time on one processor, roughly", show_seconds(found.seconds))
    return table


def _table(title: str) -> Table:
    return Table(title=f"\n{title}", title_justify="left", box=None, padding=(0, 2, 0, 0))


def _steps(experiment: Experiment, stream: Stream, cohort: int) -> str:
    if stream.elsewhere:
        return "not known"
    mean = np.mean([stream.sizes(task.index).mean() for task in stream.tasks])
    local = experiment.resolved["training"]["local"]
    batches = -(-mean // local.get("batch_size", 1)) * local.get("epochs", 1)
    return f"{int(cohort * batches)}"
