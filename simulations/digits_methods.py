"""All methods on the demo's stream: permuted digits, domain-incremental, five tasks, 20 clients.

Run: python simulations/digits_methods.py [--seeds 0 1 2] [--tune] [--out FOLDER]

About ten minutes on one core. `--tune` prints instead what each value of a row's hyper-parameter
gives on validation data (`stream.validation = 0.2`, mean over the seeds): the chosen values below
are the best of those. No row has a published counterpart: nobody has published on these data.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from choices import VALIDATION
from runner import Cell, arguments, summary_of, work
from study_tables import show, spread

from fedcl.core.method import Method
from fedcl.plugins import find

CONFIG = "fot_digits.toml"


@dataclass(frozen=True)
class Row:
    """A method with its chosen options, and the values from which one of them was chosen.

    Attributes:
        method: The table [method].
        option: The hyper-parameter that was chosen; empty for none.
        tried: Values that were tried.
        changes: Overrides beside the method's table.
    """

    method: Mapping[str, Any]
    option: str = ""
    tried: Sequence[float] = field(default=())
    changes: Mapping[str, Any] = field(default_factory=dict)


ROWS: Mapping[str, Row] = {
    "fedavg": Row({"name": "fedavg"}),
    "l2": Row({"name": "l2", "strength": 0.03}, "strength", (0.01, 0.03, 0.1, 0.3, 1.0)),
    "ewc": Row({"name": "ewc", "strength": 100.0}, "strength", (10.0, 30.0, 100.0, 300.0)),
    "mas": Row({"name": "mas", "strength": 0.1}, "strength", (0.03, 0.1, 0.3, 1.0)),
    "osft": Row(
        {"name": "osft", "energy": 0.55, "biases": True},
        "energy",
        (0.3, 0.4, 0.5, 0.55, 0.6, 0.7, 0.8),
    ),
    "fot": Row({"name": "fot", "energy": 0.9}, "energy", (0.7, 0.8, 0.9, 0.95, 0.98)),
    "cuber": Row({"name": "cuber", "energy": 0.9}, "energy", (0.7, 0.8, 0.9, 0.95, 0.98)),
    "gpm": Row(
        {"name": "gpm", "energy": 0.95, "energy_step": 0.0},
        "energy",
        (0.7, 0.8, 0.9, 0.95, 0.97, 0.99),
    ),
    "kron": Row({"name": "kron", "mu": 10.0}, "mu", (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)),
    "analytic": Row({"name": "analytic", "gamma": 0.1}, "gamma", (0.01, 0.1, 1.0, 10.0)),
    "analytic, projection": Row(
        {"name": "analytic", "projection": 1000, "gamma": 0.01},
        "gamma",
        (0.001, 0.01, 0.1, 1.0, 10.0),
    ),
    "replay": Row({"name": "replay"}),
    "joint": Row({"name": "joint"}),
    "fedavg, cosine": Row({"name": "fedavg"}, changes={"training.schedule.name": "cosine"}),
    "fedavg, infinite": Row({"name": "fedavg"}, changes={"training.schedule.name": "infinite"}),
    "replay, infinite": Row({"name": "replay"}, changes={"training.schedule.name": "infinite"}),
}


def main(words: list[str]) -> None:
    """Runs what is not finished yet and prints the table."""
    parser = arguments(__doc__ or "", "digits_methods")
    parser.add_argument("--tune", action="store_true", help="validation data, every value")
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            table(Path(folder), [0], {"stream.tasks": 2, "training.rounds": 1})
        return
    if args.tune:
        search(args.out, args.seeds)
    else:
        table(args.out, args.seeds, {})


def cells(name: str, method: Mapping[str, Any], seeds: Sequence[int], changes: Any) -> list[Cell]:
    """Returns a method's runs, one for each seed."""
    return [
        Cell(
            f"{name}-{seed}",
            CONFIG,
            {"evaluation.every": 0, **changes, "method": method, "seed": seed},
        )
        for seed in seeds
    ]


def table(out: Path, seeds: Sequence[int], changes: Mapping[str, Any]) -> None:
    """Runs every row with its chosen options on the test data."""
    runs = {
        name: cells(name, row.method, seeds, {**changes, **row.changes})
        for name, row in ROWS.items()
    }
    work([cell for own in runs.values() for cell in own], out)
    lines = []
    for name, row in ROWS.items():
        found = [summary for cell in runs[name] if (summary := summary_of(cell, out)) is not None]
        cls = find("methods", row.method["name"])
        assert issubclass(cls, Method)
        sent = [
            f"{statistics.mean(s[way] for s in found) / 1e6:.1f}"
            for way in ("bytes_up", "bytes_down")
        ]
        options = ", ".join(f"{k} = {v}" for k, v in row.method.items() if k != "name")
        columns = [spread(s[m] for s in found) for m in ("average_accuracy", "forgetting")]
        lines.append([name, options, cls.exposure, *columns, *sent])
    headings = [
        "method",
        "options",
        "sees",
        "average accuracy %",
        "forgetting pp",
        "MB up",
        "MB down",
    ]
    show("Permuted digits (domain-incremental), 5 tasks", headings, lines, out)


def search(out: Path, seeds: Sequence[int]) -> None:
    """Runs every value of every row on validation data."""
    held = {**VALIDATION, "stream.validation": 0.2}
    lines = []
    for name, row in ROWS.items():
        for value in row.tried:
            method = {**row.method, row.option: value}
            own = cells(f"tune-{name}-{value:g}", method, seeds, held)
            work(own, out)
            found = [summary for cell in own if (summary := summary_of(cell, out)) is not None]
            columns = [spread(s[m] for s in found) for m in ("average_accuracy", "forgetting")]
            lines.append([name, f"{row.option} = {value:g}", *columns])
    headings = ["method", "value", "average accuracy %", "forgetting pp"]
    show("Permuted digits, validation data", headings, lines, out)


if __name__ == "__main__":
    main(sys.argv[1:])
