"""Our kron examined: its rivals tuned as it is, its parts taken away, its cost, and noise.

Run: python simulations/orthogonal.py --root FOLDER [--out FOLDER] [--streams pmnist-iid ...]
     [--rows kron fot ...] [--table] [--measure]

FOLDER holds mnist.npz and cifar100_small.npz. The study is hundreds of runs of about a minute. It
can be stopped at any time and goes on; start the command once for each core, and every process
takes the next run. `--table` prints what there is by now and writes it beside the runs, with a
figure. `--measure` times one method after the other in one process, which the queue cannot.

Every row has one hyper-parameter and a ladder of its values. Five neighbours are tried with a seed
of its own on validation data; while the best is the first or the last that was tried, the next
value of the ladder is tried too. Final runs have other seeds and look at the test set only.
docs/kron.md says more, and how to read the tables.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from kron_rows import (
    ROWS,
    SETTINGS,
)
from kron_runs import Study, possible
from kron_tables import figure, noise_table, search_table, table
from mnist_cut import cut_mnist
from runner import CONFIGS, arguments

import fedcl
from fedcl.config import available


def main(words: list[str]) -> None:
    """Runs what is not finished yet and prints the tables."""
    parser = arguments(__doc__ or "", "orthogonal")
    parser.add_argument("--streams", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--table", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--measure", action="store_true", help="time the methods, nothing else")
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            run(Study(Path(folder), "", grid=1, smoke=True), args)
        return
    out = args.out.resolve()
    run(Study(out, args.root, tuple(args.streams), tuple(args.rows)), args)


def run(study: Study, args: Namespace) -> None:
    """Does what the options ask for."""
    for name, row in ROWS.items():
        if row.method["name"] not in available("methods"):
            print(f"row {name} is left out: there is no method {row.method['name']!r} yet")
    if not (study.smoke or args.table):
        cut_mnist(Path(args.root), study.out / "data")
    if args.measure:
        measure(study)
        return
    while not args.table and study.queue.step(study.plan()):
        pass
    for stream in study.streams:
        search_table(study, stream)
        table(study, stream)
    noise_table(study)
    figure(study)


# Time.


def measure(study: Study) -> None:
    """Times the final run of seed 0 of each row, in this process, and writes down CPU seconds."""
    for stream in study.streams:
        for row in study.rows:
            cell = study.final(stream, row, 0) if possible(stream, row) else None
            if cell is None:
                continue
            experiment = fedcl.load_config(CONFIGS / cell.config, cell.changes)
            start = time.process_time()
            fedcl.run(experiment)
            seconds = time.process_time() - start
            print(f"{stream} {row}: {seconds:.1f} s of CPU time", flush=True)
            path = study.out / f"seconds-{stream}.json"
            times = json.loads(path.read_text("utf-8")) if path.exists() else {}
            times.setdefault(row, []).append(seconds)
            path.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
