"""What a config means before it runs: the tasks, who holds how much of what when, and the sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from fedcl.assembly import build_site, check_minimum
from fedcl.config import Experiment
from fedcl.core.dataset import ArrayTable
from fedcl.core.stream import Stream
from fedcl.summary import read_reference

_BARS = "·▁▂▃▄▅▆▇█"
_MOST_CLIENTS = 24
_MOST_STAGES = 12
_MOST_CLASSES = 40


def preview(experiment: Experiment, width: int = 80) -> Iterator[RenderableType]:
    """Yields what `fedcl show` prints.

    Args:
        experiment: A validated config.
        width: Columns of the terminal: as many stages are drawn as fit.

    Raises:
        ConfigError: What would fail at the start of a run: data, stream and model are built.
    """
    site = build_site(experiment)
    stream: Stream = site.population.stream  # type: ignore[attr-defined]
    check_minimum(experiment, stream)
    read_reference(experiment.evaluation.reference, experiment, stream)
    yield Text(
        f"{stream.name} ({stream.scenario}-incremental): {len(stream.tasks)} tasks, "
        f"{stream.stages} stages, {stream.clients} clients, {stream.dataset.name}: "
        f"inputs {stream.dataset.shape}, {stream.classes} classes"
    )
    yield _tasks(stream)
    yield from _shares(stream, width)
    yield _sizes(
        experiment, stream, sum(p.numel() * p.element_size() for p in site.model.parameters())
    )
    yield Text()
    yield Syntax(experiment.toml, "toml", background_color="default")


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
    data = sum(
        t.values.nbytes
        for t in (stream.dataset.train, stream.dataset.test)
        if isinstance(t, ArrayTable)
    )
    shares = sum(stream.shares(task.index).nbytes for task in stream.tasks)
    largest = max(int(stream.sizes(task.index).max()) for task in stream.tasks)
    item = 4 if training.dtype == "float32" else 8
    block = min(cohort, training.fold)
    # Parameters, gradients and the float64 sum; every client of a block holds its own.
    work = block * (2 * model + largest * int(np.prod(stream.dataset.shape)) * item) + 2 * model
    test = max(len(task.test) for task in stream.tasks) * int(np.prod(stream.dataset.shape)) * item
    table = _table("sizes, computed before anything runs")
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


def _table(title: str) -> Table:
    return Table(title=f"\n{title}", title_justify="left", box=None, padding=(0, 2, 0, 0))


def _steps(experiment: Experiment, stream: Stream, cohort: int) -> int:
    mean = np.mean([stream.sizes(task.index).mean() for task in stream.tasks])
    local = experiment.resolved["training"]["local"]
    batches = -(-mean // local.get("batch_size", 1)) * local.get("epochs", 1)
    return int(cohort * batches)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
