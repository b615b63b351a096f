"""What the studies choose on validation data: values of options, none by the test set."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner import Cell, summary_of, work

# A run on validation data: it never looks at the test set.
VALIDATION: Mapping[str, Any] = {
    "stream.validation": 0.1,
    "evaluation.splits": ["validation"],
    "evaluation.every": 0,
}


def candidates(cell: Cell, options: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Returns one cell for each combination of options, all on validation data.

    Args:
        cell: What they vary; their names are its name and the options.
        options: Values to try by dotted key, such as `{"method.energy": (0.9, 0.95)}`.
    """
    found = []
    for values in itertools.product(*options.values()):
        chosen = dict(zip(options, values, strict=True))
        words = [f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items()]
        name = "-".join(["tune", cell.name, *words])
        found.append(cell.but(name=name, changes={**VALIDATION, **chosen}))
    return found


def best(cells: Sequence[Cell], out: Path, metric: str = "average_accuracy") -> Cell:
    """Returns the finished cell with the highest metric on validation data; the first on a tie.

    Args:
        cells: Candidates.
        out: The study's folder.
        metric: A key of summary.json of which more is better.

    Raises:
        ValueError: There are none, one is not finished, or one has looked at the test set.
    """
    values = []
    for cell in cells:
        summary = summary_of(cell, out)
        if summary is None:
            raise ValueError(f"candidate {cell.name} is not finished")
        if summary["split"] != "validation":
            raise ValueError(
                f"candidate {cell.name} was measured on {summary['split']!r}: choices are made on "
                "validation data only"
            )
        values.append(summary[metric])
    return max(zip(values, cells, strict=True), key=lambda pair: pair[0])[1]


def tuned(cell: Cell, options: Mapping[str, Sequence[Any]], out: Path) -> Cell:
    """Returns the cell with the options that do best on validation data; runs what is not yet run.

    Args:
        cell: What is tuned.
        options: Values to try by dotted key; where each has one, nothing is run.
        out: The study's folder.

    Raises:
        SystemExit: A candidate failed, or is being run by another process: wait for that one.
    """
    tried = candidates(cell, options)
    if len(tried) > 1:
        work(tried, out)
        waiting = [one.name for one in tried if summary_of(one, out) is None]
        if waiting:
            sys.exit(f"error: another process still runs {', '.join(waiting)}: run this again then")
        chosen = best(tried, out)
    else:
        chosen = tried[0]
    return cell.but(changes={key: chosen.changes[key] for key in options})
