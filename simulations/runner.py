"""What the studies share: a queue of runs that can be stopped and go on, and a table of spreads."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import fedcl

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


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


def finished(config: str, changes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the summary of a run: read when it is finished, gone on with when it is not.

    Args:
        config: Name of a file in configs/.
        changes: Overrides.
        folder: The run's folder.
    """
    summary = folder / "summary.json"
    if not summary.exists():
        experiment = fedcl.load_config(CONFIGS / config, changes)
        fedcl.run(experiment, folder, resume=folder.exists(), command=("python", "-m", "fedcl"))
    found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return found


def spread(values: Iterable[float | None]) -> str:
    """Returns mean and sample standard deviation over seeds, in percent; one seed has no spread."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "n/a"
    mean = f"{statistics.mean(known):.1f}"
    return f"{mean} ± {statistics.stdev(known):.1f}" if len(known) > 1 else f"{mean} (n=1)"


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], out: Path) -> None:
    """Prints a table and writes it as Markdown to `out/table.md`."""
    table = Table(*headings, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    lines = [f"| {' | '.join(words)} |" for words in (headings, ["---"] * len(headings), *rows)]
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
