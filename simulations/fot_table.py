"""What studies of published tables share: rows, choices, a queue, numbers side by side.

A cell of a table is a folder `<split>-<row>-<seed>`. It may take hours: the study can be stopped at
any time and goes on, several processes share its folder, and `--table` prints what there is.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import tomllib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from choices import candidates
from runner import CONFIGS, Cell, arguments, part, standing_of, summary_of, work
from study_tables import show, spread

from fedcl.config import available, override


@dataclass(frozen=True)
class Metric:
    """A number of a published table.

    Attributes:
        name: Key in summary.json.
        heading: Its column.
        tolerance: A published cell is reproduced when the means differ by no more, in points.
    """

    name: str
    heading: str
    tolerance: float


FOT_METRICS = (
    Metric("average_accuracy", "average accuracy %", 1.0),
    Metric("forgetting_first_last", "forgetting (first-last) pp", 0.7),
)


@dataclass(frozen=True)
class Row:
    """One method of a table.

    Attributes:
        changes: Overrides of the study's config, for every split.
        by_split: More of them for one split.
        grid: Values that `--tune` tries, by dotted key.
        published: (mean, deviation) of each of the study's metrics, in percent, by split.
        elsewhere: What another paper says of it, by split; it is shown, not compared.
        smoke: Changes for `--smoke` that make a large one small.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    by_split: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    published: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    smoke: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A published table and how it is run again.

    Attributes:
        title: Heading of the table.
        name: Default folder in runs/.
        configs: File in configs/ by split.
        rows: The methods by name.
        rounds: Rounds a task in the protocol.
        tuning_rounds: Rounds a task of `--tune`, which raises the learning rate by as much as these
            are fewer than the protocol's: the model goes about as far in a task.
        tuning: Further changes for `--tune`, which make it cheaper.
        smoke: Changes for `--smoke`.
        short: Changes for `--short`, a smaller experiment of its own; None when there is none.
        short_rounds: Rounds a task of `--short`.
        by_split: Changes for all rows of one split.
        splits: Those that run when none is named; all when empty.
        metrics: The table's numbers.
    """

    title: str
    name: str
    configs: Mapping[str, str]
    rows: Mapping[str, Row]
    rounds: int
    tuning_rounds: int
    tuning: Mapping[str, Any]
    smoke: Mapping[str, Any]
    short: Mapping[str, Any] | None = None
    short_rounds: int = 0
    by_split: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    splits: Sequence[str] = ()
    metrics: Sequence[Metric] = FOT_METRICS

    def cell(self, split: str, row: str, seed: int, changes: Mapping[str, Any]) -> Cell:
        """Returns one run of the table."""
        own = self.rows[row]
        common = {"engine": {"name": "vectorized"}, "evaluation.every": 0, "checkpoint.seconds": 60}
        splits = {**self.by_split.get(split, {}), **own.changes, **own.by_split.get(split, {})}
        return Cell(
            f"{split}-{row}-{seed}",
            self.configs[split],
            {**common, **changes, **splits, "seed": seed},
        )

    def rate(self, changes: Mapping[str, Any]) -> float:
        """Returns the clients' learning rate."""
        table = tomllib.loads((CONFIGS / next(iter(self.configs.values()))).read_text("utf-8"))
        found: float = override(table, changes)["training"]["local"]["lr"]
        return found


def main(study: Study, description: str, words: Sequence[str]) -> None:
    """Runs what is not finished yet and prints the table."""
    parser = arguments(description, study.name, seeds=(0,))
    rounds = f"rounds a task; {study.rounds} is the protocol ({study.tuning_rounds} with --tune)"
    parser.add_argument("--rounds", type=int, default=0, help=rounds)
    parser.add_argument("--rows", nargs="+", choices=study.rows, default=list(study.rows))
    splits = list(study.splits or study.configs)
    parser.add_argument("--splits", nargs="+", choices=study.configs, default=splits)
    parser.add_argument(
        "--part", type=part, default=(1, 1), help="k/n: for machines that share no folder"
    )
    parser.add_argument("--table", action="store_true", help="run nothing, print what there is")
    parser.add_argument(
        "--tune", action="store_true", help="run each row's grid on validation data instead"
    )
    parser.add_argument(
        "--values", type=float, nargs="+", help="with --tune and one row: this grid instead"
    )
    if study.short is not None:
        parser.add_argument("--short", action="store_true", help="a small experiment of its own")
    args = parser.parse_args(words)
    if args.values and (not args.tune or len(args.rows) != 1):
        parser.error("--values needs --tune and one row")
    if args.smoke:
        _smoke(study)
        return
    short = study.short if getattr(args, "short", False) else None
    protocol = study.rounds if short is None else study.short_rounds
    rounds_a_task = args.rounds or (study.tuning_rounds if args.tune else protocol)
    changes = {**(short or {}), "dataset.root": args.root, "training.rounds": rounds_a_task}
    title = f"{study.title}, {rounds_a_task} rounds a task"
    args.compare = short is None and rounds_a_task == study.rounds
    if not args.compare:
        title += ": not the published protocol"
    if args.tune:
        rate = study.rate(changes) * protocol / rounds_a_task
        changes = {**({} if short else study.tuning), **changes, "training.local.lr": rate}
        tune(study, args, changes, args.out / f"tune-{rounds_a_task}")
        return
    run(study, args, changes, args.out, title)


def _smoke(study: Study) -> None:
    """Runs every row on synthetic data, and a choice on validation data."""
    tiny = {n: replace(r, changes={**r.changes, **r.smoke}) for n, r in study.rows.items()}
    study = replace(study, rows=tiny)
    args = Namespace(
        rows=list(study.rows),
        splits=list(study.splits or study.configs),
        seeds=[0],
        part=(1, 1),
        table=False,
        values=None,
        compare=False,
    )
    changes = {"training.rounds": 3, **study.smoke}
    with tempfile.TemporaryDirectory() as folder:
        run(study, args, changes, Path(folder), f"{study.title}, synthetic data")
        args.rows = [name for name, row in study.rows.items() if row.grid][:1]
        args.splits = args.splits[:1]
        tune(study, args, changes, Path(folder) / "tune")


def _possible(study: Study, args: Namespace) -> list[str]:
    """Returns the rows whose method this fedcl has, and says which are left out."""
    rows = []
    for name in args.rows:
        cell = study.cell(next(iter(study.configs)), name, 0, {})
        table = tomllib.loads((CONFIGS / cell.config).read_text(encoding="utf-8"))
        method = override(table, cell.changes)["method"]["name"]
        if method in available("methods"):
            rows.append(name)
        else:
            print(f"row {name} is left out: there is no method {method!r}", file=sys.stderr)
    return rows


def run(study: Study, args: Namespace, changes: Mapping[str, Any], out: Path, title: str) -> None:
    """Works off the cells of the table and prints it."""
    rows = _possible(study, args)
    # Seeds last: a table of one seed comes before the second seed of any row.
    cells = {
        (split, row, seed): study.cell(split, row, seed, changes)
        for seed in args.seeds
        for row in rows
        for split in args.splits
    }
    if not args.table:
        first, parts = args.part
        work(list(cells.values())[first - 1 :: parts], out)
    lines = []
    has_more = args.compare and any(row.elsewhere for row in study.rows.values())
    for split in args.splits:
        for row in rows:
            published = study.rows[row].published.get(split) if args.compare else None
            own = [cells[split, row, seed] for seed in args.seeds]
            elsewhere = [study.rows[row].elsewhere.get(split, "")] if has_more else []
            lines.append([split, row, *_compared(study, own, out, published), *elsewhere])
    headings = ["split", "row"]
    for metric in study.metrics:
        headings += [metric.heading, "published", "difference"]
    headings += ["reproduced", "learning accuracy %", *(["elsewhere"] if has_more else [])]
    show(title, headings, lines, out)


def _compared(
    study: Study,
    cells: Sequence[Cell],
    out: Path,
    published: Sequence[tuple[float, float]] | None,
) -> list[str]:
    """Returns a row's numbers beside those published; what is not finished says how far it is."""
    found = {cell.name: summary_of(cell, out) for cell in cells}
    done = [summary for summary in found.values() if summary is not None]
    far = [
        str(standing_of(cell, out) or "no stage yet") for cell in cells if found[cell.name] is None
    ]
    words, near = [], []
    for index, metric in enumerate(study.metrics):
        values = [summary[metric.name] for summary in done]
        shown = [spread(values, digits=2)] if done else []
        words.append("; ".join(shown + ([] if index else far)))
        if published is None:
            words += ["", ""]
            continue
        mean, deviation = published[index]
        difference = 100 * statistics.mean(values) - mean if done else None
        near.append(difference is not None and abs(difference) <= metric.tolerance)
        words += [
            f"{mean:.2f} ± {deviation:.2f}",
            "" if difference is None else f"{difference:+.2f}",
        ]
    verdict = "" if published is None or not done else "yes" if all(near) else "no"
    learning = [summary["learning_accuracy"] for summary in done]
    return [*words, verdict, spread(learning, digits=2) if done else ""]


def tune(study: Study, args: Namespace, changes: Mapping[str, Any], out: Path) -> None:
    """Runs the grid of each row on validation data and prints how each value does.

    The test set is never looked at. The values go into the study or its config by hand.
    """
    tried: dict[tuple[str, str], list[Cell]] = {}
    for row in _possible(study, args):
        grid = study.rows[row].grid
        if args.values:
            grid = dict.fromkeys(grid, tuple(args.values))
        for split in args.splits:
            tried[split, row] = [
                one
                for seed in args.seeds
                for one in candidates(study.cell(split, row, seed, changes), grid)
            ]
    if not args.table:
        work([cell for cells in tried.values() for cell in cells], out)
    lines, names = [], [metric.name for metric in study.metrics]
    for (split, row), cells in tried.items():
        for cell in cells:
            found = summary_of(cell, out)
            if found is None:
                far = standing_of(cell, out, "validation")
                blank = [""] * len(study.metrics)
                lines.append([split, row, cell.name, str(far or "not one stage"), *blank])
                continue
            numbers = [spread([found[m]], 2) for m in (*names, "learning_accuracy")]
            lines.append([split, row, cell.name, *numbers])
    headings = ["split", "row", "candidate", *(metric.heading for metric in study.metrics)]
    title = f"{study.title}, {changes['training.rounds']} rounds a task, VALIDATION data"
    show(title, [*headings, "learning accuracy %"], lines, out)
