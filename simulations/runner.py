"""What the studies share: a queue of runs that several processes work off.

A study names its runs as cells. Any number of processes may `work` on the same folder of one
machine: each takes the first cell that is neither finished nor taken, goes on with it where it
stopped, and lets go of it however it ends. Tables can be made at any time, of what there is.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fedcl
from fedcl.config import override
from fedcl.core.errors import FedclError
from fedcl.evaluations import accuracy_matrix
from fedcl.experiment import Progress
from fedcl.metrics import average_accuracy

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# What may differ between a cell and its folder without making it another experiment.
_FREE = ("engine", "checkpoint", "memory", "dataset.root")


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        name: Its folder, in the study's.
        config: Name of a file in configs/.
        changes: Overrides of it by dotted key.
    """

    name: str
    config: str
    changes: Mapping[str, Any]

    def but(self, **others: Any) -> Cell:
        """Returns the cell with `name` or `config` replaced, or more `changes`."""
        changes = {**self.changes, **others.pop("changes", {})}
        return replace(self, changes=changes, **others)


@dataclass(frozen=True)
class Standing:
    """How far a run is that is not finished.

    Attributes:
        stage: Finished stages.
        stages: Stages of the stream.
        accuracy: Mean accuracy over the tasks met so far at the end of the last finished stage.
    """

    stage: int
    stages: int
    accuracy: float

    def __str__(self) -> str:
        return f"stage {self.stage}/{self.stages}: {100 * self.accuracy:.2f}"


def arguments(
    description: str, out: str, seeds: Sequence[int] = (0, 1, 2)
) -> argparse.ArgumentParser:
    """Returns a parser with the options of every study."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="synthetic data, seconds")
    parser.add_argument("--root", default="", help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("runs") / out)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    return parser


def part(words: str) -> tuple[int, int]:
    """Returns k and n of an option `--part k/n`: only every n-th cell, beginning with the k-th.

    Machines that share no folder divide a study so; processes of one machine need no parts.

    Raises:
        argparse.ArgumentTypeError: It is not k/n with 1 <= k <= n.
    """
    first, slash, second = words.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise argparse.ArgumentTypeError(f"{words!r} is not k/n with 1 <= k <= n, such as 1/2")
    return int(first), int(second)


def work(cells: Sequence[Cell], out: Path) -> None:
    """Runs every cell that is neither finished nor taken by another process, in order.

    A cell that was stopped goes on, to the same bits. One that fails is reported and left; the
    others run, and then the process exits with an error that names those that failed.

    Args:
        cells: The runs.
        out: The study's folder; each cell is a folder in it.

    Raises:
        SystemExit: A cell failed, or a folder holds another experiment.
    """
    failed: dict[str, FedclError] = {}
    done: set[str] = set()
    while True:
        for cell in cells:
            if cell.name in done or cell.name in failed or summary_of(cell, out) is not None:
                continue
            with _taken(out, cell.name) as ours:
                # Another process may have finished it since.
                if not ours or summary_of(cell, out) is not None:
                    continue
                try:
                    _run(cell, out / cell.name)
                    done.add(cell.name)
                except FedclError as error:
                    failed[cell.name] = error
                    print(f"{cell.name}: failed: {error}", file=sys.stderr, flush=True)
                break
        else:
            break
    if failed:
        sys.exit(f"error: {len(failed)} of {len(cells)} runs failed: {', '.join(failed)}")


def _run(cell: Cell, folder: Path) -> None:
    experiment = fedcl.load_config(CONFIGS / cell.config, cell.changes)
    print(f"{cell.name}: {'goes on' if folder.exists() else 'begins'}", flush=True)

    def watch(now: Progress) -> None:
        if now.round == now.rounds and now.accuracy is not None:
            at = Standing(now.stage + 1, now.stages, now.accuracy)
            print(f"{cell.name}: {at} %", flush=True)

    fedcl.run(
        experiment, folder, resume=folder.exists(), watch=watch, command=("python", *sys.argv)
    )


@contextmanager
def _taken(out: Path, name: str) -> Iterator[bool]:
    """Takes a cell for this process until the end of the block; the system frees it at the latest.

    Yields:
        False when another process has it, or runs its folder without this queue. Where files
        cannot be locked (Windows), a study has one process.
    """
    if sys.platform == "win32":
        yield True
        return
    import fcntl

    locks = out / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name).open("w") as mine:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Every run locks its checkpoint, however it was started: only looked at, not held.
            with suppress(FileNotFoundError), (out / name / "checkpoint" / "lock").open() as run:
                fcntl.flock(run, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def summary_of(cell: Cell, out: Path) -> dict[str, Any] | None:
    """Returns the contents of a finished cell's summary.json, or None when it is not finished.

    Args:
        cell: The run.
        out: The study's folder.

    Raises:
        SystemExit: The folder holds another experiment: a value that the cell's config or changes
            name differs there.
    """
    folder = out / cell.name
    _check_same(cell, folder)
    try:
        found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def standing_of(cell: Cell, out: Path, split: str = "test") -> Standing | None:
    """Returns how far a cell is, as of its last finished stage; None before the first.

    It only reads, and may be asked while the cell runs.

    Args:
        cell: The run.
        out: The study's folder.
        split: Of which accuracies are spoken.
    """
    folder = out / cell.name
    _check_same(cell, folder)
    try:
        with (folder / "evaluations.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        table = accuracy_matrix(rows, split=split)
    except (FileNotFoundError, ValueError):
        return None
    if not len(table.stages):
        return None
    stage = int(table.stages[-1])  # files are written at the ends of stages
    return Standing(stage + 1, len(table.matrix), average_accuracy(table.matrix, stage))


def _check_same(cell: Cell, folder: Path) -> None:
    try:
        there = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    table = tomllib.loads((CONFIGS / cell.config).read_text(encoding="utf-8"))
    for place, mine, other in _differences(override(table, cell.changes), there, ""):
        if not place.startswith(_FREE):
            sys.exit(
                f"error: {folder} holds another experiment: {place} is {other!r} there and "
                f"{mine!r} here; name another --out, or remove that folder"
            )


def _differences(mine: Any, other: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields what one table names and another has otherwise; what it leaves out may be anything."""
    if isinstance(mine, Mapping) and isinstance(other, Mapping):
        for key, value in mine.items():
            yield from _differences(value, other.get(key), f"{place}.{key}" if place else key)
    elif isinstance(mine, list | tuple) and isinstance(other, list) and len(mine) == len(other):
        for index, pair in enumerate(zip(mine, other, strict=True)):
            yield from _differences(*pair, f"{place}[{index}]")
    elif mine != other:
        yield place, mine, other


def finished(config: str, changes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the summary of a run: read when it is finished, gone on with when it is not.

    Args:
        config: Name of a file in configs/.
        changes: Overrides.
        folder: The run's folder.
    """
    cell = Cell(folder.name, config, changes)
    work([cell], folder.parent)
    found = summary_of(cell, folder.parent)
    if found is None:
        sys.exit(f"error: another process still runs {folder}: run this again when it is done")
    return found
