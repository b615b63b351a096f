"""Writes what a study of the engines found: tables, JSON and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import figures
from bench.machine import describe
from bench.options import tabulate
from bench.parts import PARTS
from bench.speed import Speeds
from bench.targets import Target, targets
from rich.console import Console

_PARTS = {"parts at 10": "mlp", "parts at 100": "mlp", "parts of cnn": "cnn"}


def write(
    speeds: Speeds,
    checks: Mapping[str, Sequence[Mapping[str, Any]]],
    cohort: int,
    options: Mapping[str, Any],
    out: Path,
    console: Console,
) -> None:
    """Prints three tables and writes `table.md`, `results.json` and two figures.

    Args:
        speeds: Updates per second.
        checks: The other measurements by name.
        cohort: Cohort of the comparisons.
        options: Settings of the study.
        out: Folder.
        console: Where the tables go.
    """
    machine = describe()
    where = f"{machine['processor']}; torch {machine['torch']}; {machine['date']}"
    rows = targets(speeds, checks, cohort)
    parts = {
        f"{model}, {checks[name][0]['cohort']} clients": _middle(
            [result["parts"] for result in checks[name]]
        )
        for name, model in _PARTS.items()
        if name in checks
    }
    tables = [_speeds(speeds), _where(parts), _targets(rows)]
    text = [f"Client updates per second, median (range) of the repeats. {where}.", ""]
    for title, headings, lines in tables:
        text += tabulate(title, headings, lines, console)
    (out / "table.md").write_text("\n".join(text), encoding="utf-8")
    found = {
        "machine": machine,
        "options": dict(options),
        "engines": speeds.lines(),
        "checks": checks,
        "parts": parts,
        "targets": [asdict(row) for row in rows],
    }
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if speeds.found:
        picture = figures.updates_per_second(speeds, where)
        (out / "updates_per_second.png").write_bytes(picture)
    if parts:
        title = "where a round's time goes (vectorized)"
        (out / "round_parts.png").write_bytes(figures.round_parts(parts, title))
    console.print(f"tables, figures and numbers: {out}", markup=False, soft_wrap=True)


Content = tuple[str, list[str], list[list[str]]]


def _speeds(speeds: Speeds) -> Content:
    cohorts = speeds.cohorts()
    lines = []
    for model in dict.fromkeys(model for _, model, _ in speeds.found):
        for engine in speeds.engines(model):
            found = [speeds.spread(engine, model, c, "updates_per_second") for c in cohorts]
            first = [speeds.spread(engine, model, c, "first_round_seconds") for c in cohorts]
            starts = [one.median for one in first if one]
            cells = [one.text() if one else "" for one in found]
            lines.append([model, engine, *cells, f"{max(starts):.1f}"])
    headings = ["model", "engine", *(f"cohort {c:,}" for c in cohorts), "first round, s, at most"]
    return "Client updates per second", headings, lines


def _where(parts: Mapping[str, Mapping[str, float]]) -> Content:
    lines = [
        [label, *(f"{1000 * one[part]:.2f}" for part in PARTS), f"{1000 * sum(one.values()):.1f}"]
        for label, one in parts.items()
    ]
    return "Where a round's time goes (vectorized), ms", ["round of", *PARTS, "all"], lines


def _targets(rows: Sequence[Target]) -> Content:
    words = {None: "", True: "yes", False: "NO"}
    lines = [[row.what, row.target, row.reached, words[row.met]] for row in rows]
    return "Targets", ["what", "target", "reached", "met"], lines


def _middle(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the parts of the repeat whose round took the median time, so that they add up."""
    ordered = sorted(rounds, key=lambda one: sum(one.values()))
    return dict(ordered[len(ordered) // 2])
