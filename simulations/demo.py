"""The demo: FedAvg and FOT on five permuted-digits tasks, seeds 0 to 2, and one comparison.

Run: python simulations/demo.py [--smoke] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from rich import progress
from rich.console import Console
from rich.table import Table

import fedcl
from fedcl.experiment import Progress
from fedcl.report import write_comparison, write_report

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "fot_digits.toml"
METHODS = ("fedavg", "fot")


def main(words: list[str]) -> None:
    """Runs every method with every seed, prints one row a method and writes the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--smoke", action="store_true", help="one seed, two rounds a task, a temporary folder"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs") / "demo", help="made anew each time"
    )
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            compare(
                Path(folder) / "demo", seeds=(0,), changes={"training.rounds": 2, "stream.tasks": 2}
            )
        return
    if args.out.exists():
        if not (args.out / "demo").exists() and any(args.out.iterdir()):
            sys.exit(f"error: {args.out} holds something else: name another --out")
        shutil.rmtree(args.out)
    compare(args.out, seeds=(0, 1, 2), changes={})


def compare(out: Path, seeds: tuple[int, ...], changes: dict[str, object]) -> None:
    """Runs all and writes `out/comparison/report.html`."""
    console = Console()
    out.mkdir(parents=True)
    (out / "demo").touch()  # marks the folder as the demo's own, which may be made anew
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.percentage:.0f} %"),
        progress.TimeElapsedColumn(),
    )
    runs: dict[str, list[fedcl.Record]] = {method: [] for method in METHODS}
    with progress.Progress(*columns, console=console) as bars:
        for method in METHODS:
            for seed in seeds:
                experiment = fedcl.load_config(
                    CONFIG, {**changes, "method.name": method, "seed": seed}
                )
                bar = bars.add_task(f"{method:7} seed {seed}", total=None)
                folder = out / f"{method}-{seed}"
                command = (
                    "fedcl",
                    "run",
                    "configs/fot_digits.toml",
                    "--set",
                    f"method.name={method}",
                    "--set",
                    f"seed={seed}",
                )

                def watch(now: Progress, bar: progress.TaskID = bar) -> None:
                    bars.update(bar, total=now.total, completed=now.done)

                record = fedcl.run(experiment, folder, command=command, watch=watch)
                write_report(folder)
                runs[method].append(record)
    table = Table(title="five permuted-digits tasks (domain-incremental), 20 clients, cohort 10")
    for heading in ("method", "average accuracy", "forgetting", "bytes up", "seeds"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method, records in runs.items():
        size = records[0].summary["bytes_up"] / 1e6
        shown = [
            spread([r.summary[name] for r in records])
            for name in ("average_accuracy", "forgetting")
        ]
        table.add_row(method, *shown, f"{size:.1f} MB", str(len(records)))
    console.print(table)
    page = write_comparison(
        [r.folder for rs in runs.values() for r in rs if r.folder], out / "comparison"
    )
    console.print(f"report: {page}", markup=False, soft_wrap=True)


def spread(values: list[float]) -> str:
    """Returns mean and sample standard deviation in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f} %" if len(values) > 1 else f"{mean} %"


if __name__ == "__main__":
    main(sys.argv[1:])
