"""The tables of the studies: a mean and its spread over seeds, shown and written as Markdown."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


def spread(values: Iterable[float | None], digits: int = 1) -> str:
    """Returns mean and sample standard deviation over seeds, in percent; one seed has no spread."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "n/a"
    mean = f"{statistics.mean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else f"{mean} (n=1)"


def show(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    out: Path,
    file: str = "table.md",
) -> None:
    """Prints a table and writes it as Markdown to a file in `out`."""
    # A file is as wide as a table needs.
    console = Console(width=None if sys.stdout.isatty() else 200)
    lines = printed(title, headings, rows, console)
    out.mkdir(parents=True, exist_ok=True)
    (out / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def printed(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], console: Console
) -> list[str]:
    """Prints a table and returns it as lines of Markdown."""
    table = Table(*headings, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    return [f"| {' | '.join(words)} |" for words in (headings, ["---"] * len(headings), *rows)]
