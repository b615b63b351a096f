"""Measures whether memory grows: 2,000 rounds of a small stream, all processes, fitted slopes.

Run: python simulations/long_run.py [--rounds 2000] [--engines vectorized ray] [--out FOLDER]

Samples the resident memory of the run and everything it has started every 20 rounds and fits a line
to the last half. Target: less than 1 MB in 100 rounds. Needs Linux. A study that was stopped goes
on with the next run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench import figures
from bench.lab import Lab
from bench.memory import slope
from bench.options import arguments, parsed_for_memory, tabulate, whole
from rich.console import Console

# By name: Ray has two workers.
ENGINES: dict[str, dict[str, object]] = {
    "vectorized": {"name": "vectorized"},
    "serial": {"name": "serial"},
    "ray": {"name": "ray", "workers": 2},
}
LIMIT = 1.0  # MB in 100 rounds


def main(words: list[str]) -> None:
    """Runs one after the other and writes a table and a figure."""
    parser = arguments(__doc__, "long_run")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["vectorized", "ray"])
    parser.add_argument(
        "--methods", nargs="+", default=["replay"], help="names of methods (default: replay)"
    )
    parser.add_argument("--rounds", type=whole, default=2000, help="of a run (default: 2000)")
    parser.add_argument("--every", type=whole, default=20, help="rounds between samples")
    args = parsed_for_memory(parser, words)
    if args.smoke:
        args.engines, args.methods, args.rounds, args.every = ["vectorized"], ["replay"], 16, 2
        with tempfile.TemporaryDirectory() as folder:
            study(args, Path(folder))
        return
    if args.rounds // args.every < 8:
        parser.error(f"--rounds {args.rounds} gives too few samples: at least 8 x --every")
    study(args, args.out)


def study(args: argparse.Namespace, out: Path) -> None:
    """Runs every method on every engine, and fits."""
    console = Console()
    lab = Lab(out, console, total=len(args.engines) * len(args.methods))
    runs: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for method in args.methods:
        for engine in args.engines:
            run = {"method": method, "engine": ENGINES[engine]}
            spec = {"measure": "long", **run, "rounds": args.rounds, "every": args.every}
            result = lab.measure(spec, live=True)
            if result is not None:
                runs[f"{method}, {engine}"] = result["samples"]
    if not runs:
        sys.exit("error: nothing could be measured: see the lines above")
    samples = {
        name: [(number, sum(sizes.values())) for number, sizes in found]
        for name, found in runs.items()
    }
    slopes, lines = {}, []
    for name, points in samples.items():
        rounds = [number for number, _ in points]
        slopes[name] = slope(rounds, [size for _, size in points])
        each = {
            process: slope(rounds, [sizes.get(process, 0.0) for _, sizes in runs[name]])
            for process in runs[name][-1][1]
        }
        most = max(each, key=lambda process: each[process])
        lines.append(
            [
                name,
                f"{points[-1][0]:,}",
                f"{points[0][1]:.0f}",
                f"{points[-1][1]:.0f}",
                f"{slopes[name]:+.2f}",
                f"{most} {each[most]:+.2f}",
                "yes" if slopes[name] < LIMIT else "NO",
            ]
        )
    headings = ["run", "rounds", "first MB", "last MB", "MB per 100 rounds", "most in", "below 1"]
    text = tabulate("Memory of all processes; slope over the last half", headings, lines, console)
    (out / "table.md").write_text("\n".join(text), encoding="utf-8")
    (out / "memory.png").write_bytes(figures.memory_over_rounds(samples, slopes))
    console.print(f"table and figure: {out}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
