"""What a config means before it runs: the tasks, who holds how much of which class at which stage, and the sizes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from fedcl.config import Experiment
from fedcl.core.dataset import ArrayTable
from fedcl.core.stream import Stream
from fedcl.experiment import build_site

_BARS = " ▁▂▃▄▅▆▇█"
_MOST_CLIENTS = 24
_MOST_CLASSES = 40


def preview(experiment: Experiment) -> Iterator[RenderableType]:
    """Yields what `fedcl show` prints; builds data, stream and model, so that what fails at start fails here."""
    site = build_site(experiment)
    stream: Stream = site.population.stream  # type: ignore[attr-defined]
    yield Text(
        f"{stream.name} ({stream.scenario}-incremental): {len(stream.tasks)} tasks, {stream.stages} stages, "
        f"{stream.clients} clients, {stream.dataset.name}: inputs {stream.dataset.shape}, {stream.classes} classes"
    )
    yield _tasks(stream)
    yield _shares(stream)
    yield _sizes(
        experiment, stream, sum(p.numel() * p.element_size() for p in site.model.parameters())
    )
    yield Syntax(experiment.toml, "toml", background_color="default")


def _tasks(stream: Stream) -> Table:
    table = Table(title="tasks", title_justify="left")
    for heading in (
        "task",
        "name",
        "classes",
        "train",
        "test",
        "validation",
        "public",
        "smallest share",
        "largest",
    ):
        table.add_column(heading, justify="left" if heading in ("name", "classes") else "right")
    for task in stream.tasks:
        sizes = np.diff(stream.shares(task.index)[1])
        classes = ", ".join(map(str, task.classes[:12])) + (
            " ..." if len(task.classes) > 12 else ""
        )
        counts = (len(part) for part in (task.train, task.test, task.validation, task.public))
        table.add_row(
            str(task.index),
            task.name,
            classes,
            *map(str, counts),
            str(sizes.min()),
            str(sizes.max()),
        )
    return table


def _shares(stream: Stream) -> Table:
    """Draws one row a client and one column a stage: a bar for each class, its height the share of the most."""
    table = Table(
        title="who holds what: one bar a class, full height = the largest holding in the table",
        title_justify="left",
    )
    table.add_column("client", justify="right")
    stages = range(min(stream.stages, 12))
    for stage in stages:
        table.add_column(f"stage {stage}")
    clients = range(min(stream.clients, _MOST_CLIENTS))
    held: dict[tuple[int, int], tuple[int, np.ndarray]] = {}
    for client in clients:
        for stage in stages:
            task = stream.task_at(client, stage)
            if task is not None:
                held[client, stage] = (task, stream.label_counts(client, task))
    most = max((int(counts.max()) for _, counts in held.values()), default=1)
    for client in clients:
        cells = []
        for stage in stages:
            if (client, stage) not in held:
                cells.append("-")
                continue
            task, counts = held[client, stage]
            bars = "".join(_BARS[-(-8 * int(c) // most)] for c in counts[:_MOST_CLASSES])
            cells.append(f"task {task} {bars} {counts.sum()}")
        table.add_row(str(client), *cells)
    left = stream.clients - len(clients)
    if left > 0 or stream.stages > len(stages):
        table.caption = f"and {left} more clients, {stream.stages - len(stages)} more stages"
    return table


def _sizes(experiment: Experiment, stream: Stream, model: int) -> Table:
    training = experiment.training
    cohort = min(training.cohort or stream.clients, stream.clients)
    data = sum(
        t.values.nbytes
        for t in (stream.dataset.train, stream.dataset.test)
        if isinstance(t, ArrayTable)
    )
    shares = sum(
        rows.nbytes + offsets.nbytes
        for rows, offsets in map(stream.shares, range(len(stream.tasks)))
    )
    largest = max(int(np.diff(stream.shares(t.index)[1]).max()) for t in stream.tasks)
    item = 4 if training.dtype == "float32" else 8
    block = min(cohort, training.fold)
    # Parameters, gradients and the float64 sum; every client of a block holds its own.
    work = block * (2 * model + largest * int(np.prod(stream.dataset.shape)) * item) + 2 * model
    test = max(len(task.test) for task in stream.tasks) * int(np.prod(stream.dataset.shape)) * item
    table = Table(
        title="sizes (computed from the config, before anything runs)", title_justify="left"
    )
    table.add_column("what")
    table.add_column("size", justify="right")
    rounds = stream.stages * training.rounds
    for what, size in (
        ("data in memory", data),
        ("who holds what", shares),
        ("model", model),
        (f"one block of {block} clients at work, at most", work),
        ("largest test set while it is evaluated", test),
        ("model bytes up and down in a round", 2 * cohort * model),
        (f"model bytes up and down in {rounds} rounds", 2 * cohort * model * rounds),
    ):
        table.add_row(what, _bytes(size))
    table.add_row("local steps in a round, about", f"{_steps(experiment, stream, cohort)}")
    return table


def _steps(experiment: Experiment, stream: Stream, cohort: int) -> int:
    mean = np.mean([len(task.train) for task in stream.tasks]) / stream.clients
    local = experiment.resolved["training"]["local"]
    batches = -(-mean // local.get("batch_size", 1)) * local.get("epochs", 1)
    return int(cohort * batches)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
