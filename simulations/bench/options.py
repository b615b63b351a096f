"""What the command lines of the engine studies share: options, and how tables are written."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from study_tables import printed


def arguments(description: str | None, out: str = "") -> argparse.ArgumentParser:
    """Returns a parser with the options of every engine study.

    Args:
        description: What the study does.
        out: Name of its folder; a study without one only prints.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, seconds, leaves nothing")
    if out:
        parser.add_argument("--out", type=Path, default=Path("runs") / out)
    return parser


def parsed_for_memory(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Returns the options of a study that looks at processes' memory; ends where it cannot."""
    args = parser.parse_args(words)
    if not Path("/proc/self/statm").exists():
        parser.error("the memory of processes is read from /proc, which this system has not")
    return args


def whole(text: str) -> int:
    """Returns a whole number above 0; raises ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """Returns a number above 0; raises ArgumentTypeError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def tabulate(
    title: str, headings: Sequence[str], lines: Sequence[Sequence[str]], console: Console
) -> list[str]:
    """Prints a table and returns it as lines of Markdown below its title."""
    return [f"## {title}", "", *printed(title, headings, lines, console), ""]
