"""Measures how fast the engines are: client updates per second against other simulators.

Run: python simulations/benchmark_engines.py [--cohort 100] [--engines vectorized flower] [--json]

The reference work: 50 examples a client, batch 10, 5 SGD steps; an MLP 784-128-10 and a small CNN.
Ours run from end to end through the public interface, files and all. Every measurement is a process
of its own with one thread; engines alternate within each repeat. Flower, Ray and our grid use
--workers processes, everything else one. pfl (pip install pfl) is measured where it can be
imported, or with --pfl-python, the Python of an environment that has it. A study that was stopped
goes on where it was: measurements already in --out are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.checks import checks
from bench.lab import Lab, importable
from bench.options import arguments, positive, whole
from bench.speed import ENGINES, ONE_RAY_WORKER, Speeds, spec
from rich.console import Console

MODELS = ("mlp", "cnn")


def main(words: list[str]) -> None:
    """Measures what is chosen and writes tables and figures, or prints JSON lines."""
    args = _arguments().parse_args(words)
    console = Console(stderr=args.json)
    if args.smoke:
        args.engines, args.models, args.cohort = ["vectorized", "plain loop"], ["mlp"], [4]
        args.repeats, args.seconds = 1, 0.1
        with tempfile.TemporaryDirectory() as folder:
            study(args, Path(folder), console)
        return
    study(args, args.out, console)


def _arguments() -> argparse.ArgumentParser:
    parser = arguments(__doc__, "benchmark")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--cohort",
        nargs="+",
        type=whole,
        default=[1, 10, 100, 1000],
        help="clients of a round (default: 1 10 100 1000)",
    )
    parser.add_argument("--repeats", type=whole, default=3, help="of everything (default: 3)")
    parser.add_argument(
        "--seconds", type=positive, default=3.0, help="of counted rounds at least (default: 3)"
    )
    parser.add_argument(
        "--workers", type=whole, default=2, help="processes of Ray and Flower (default: 2)"
    )
    parser.add_argument("--pfl-python", default="", help="the Python that has pfl")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="cuda adds the comparison on a GPU, auto where there is one",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="only updates per second: one JSON line for each engine, model and cohort",
    )
    return parser


def study(args: argparse.Namespace, out: Path, console: Console) -> None:
    """Measures everything, repeat by repeat, so that what is compared ran side by side."""
    pythons = _pythons(args, console)
    options = {"seconds": args.seconds, "workers": args.workers, "device": _device(args.device)}
    engines = [engine for engine in args.engines if engine in pythons]
    beside = {} if args.json else checks(options, args.smoke)
    lab = Lab(out, console)
    compared = 100 if 100 in args.cohort else max(args.cohort)
    plan = [
        (engine, model, cohort)
        for cohort in sorted(args.cohort)
        for model in args.models
        for engine in engines
    ]
    if "ray" in engines and "mlp" in args.models and not args.json:
        plan.insert(plan.index(("ray", "mlp", compared)) + 1, (ONE_RAY_WORKER, "mlp", compared))
    lab.total = args.repeats * (len(plan) + len(beside))
    speeds = Speeds()
    found: dict[str, list[dict[str, Any]]] = {}
    for repeat in range(args.repeats):
        for engine, model, cohort in plan:
            python = pythons.get(engine, sys.executable)
            result = lab.measure(spec(engine, model, cohort, options), repeat, python)
            if result is not None:
                speeds.add(engine, model, cohort, repeat, result)
        for name, one in beside.items():
            result = lab.measure(one, repeat)
            if result is not None:
                found.setdefault(name, []).append(result)
    if not speeds.found:
        sys.exit("error: nothing could be measured: see the lines above")
    if args.json:
        for line in speeds.lines():
            print(json.dumps(line))
        return
    from bench.summary import write  # loads PyTorch and matplotlib

    write(speeds, found, compared, options, out, console)


def _pythons(args: argparse.Namespace, console: Console) -> dict[str, str]:
    """Returns the interpreter of each engine that can be measured, and says what cannot."""
    pythons = dict.fromkeys(args.engines, sys.executable)
    remedies = {
        "pfl": (args.pfl_python or sys.executable, "pfl", "pip install pfl, or give --pfl-python"),
        "flower": (sys.executable, "ray", "pip install 'fedcl[sim]'"),
        "grid": (sys.executable, "ray", "pip install 'fedcl[sim]'"),
        "ray": (sys.executable, "ray", "pip install 'fedcl[sim]'"),
    }
    for engine, (python, module, remedy) in remedies.items():
        if engine not in pythons:
            continue
        pythons[engine] = python
        if not importable(python, module):
            if engine == "pfl" and args.pfl_python:
                sys.exit(f"error: --pfl-python {python} cannot import pfl: {remedy}")
            console.print(f"{engine} is left out: {module} is not installed ({remedy})")
            del pythons[engine]
    return pythons


def _device(name: str) -> str:
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        sys.exit("error: --device cuda, but PyTorch finds no GPU: use auto or cpu")
    return "cuda" if there and name != "cpu" else "cpu"


if __name__ == "__main__":
    main(sys.argv[1:])
