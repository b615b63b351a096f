"""All methods on the same work: three streams, three seeds, every row tuned alike.

Run: python simulations/all_methods.py --root FOLDER [--out FOLDER] [--streams split-mnist ...]
     [--rows fedavg kron ...] [--seeds 0 1 2] [--table]

FOLDER holds mnist.npz, cifar100_small.npz and pacs32.npz. The study is hundreds of runs of ten
seconds to two minutes. It can be stopped at any time and goes on; start the command once for each
core, and every process takes the next run. `--table` prints what there is by now and writes it
beside the runs, with a figure of accuracy against bytes.

A row has at most one hyper-parameter. Three neighbours on its ladder are tried on validation data
with a seed of its own, up to seven while the best is at an end; final runs have other seeds and
look at the test set only. All other options are the method's defaults or stand below. A fifth of
the training data is held out in every run, for validation, and a twentieth is public, whether a
method uses it or not. No row has a published counterpart: nobody has published on these streams.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from all_rows import ROWS, SETTINGS, SMOKE
from all_tables import Study, figure, table
from mnist_cut import cut_mnist
from runner import arguments


def main(words: list[str]) -> None:
    """Runs what is not finished yet and prints the tables."""
    parser = arguments(__doc__ or "", "all_methods")
    parser.add_argument("--streams", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--table", action="store_true", help="run nothing, print what there is")
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            short = Study(Path(folder), "", tuple(SMOKE), _first_of_each_method(), (0,), True)
            run(short, args.table)
        return
    study = Study(args.out.resolve(), args.root, args.streams, args.rows, args.seeds)
    if not args.table:
        cut_mnist(Path(args.root), study.out / "data")
    run(study, args.table)


def _first_of_each_method() -> list[str]:
    """Returns one row for each method."""
    return list(
        {str(row.method["name"]): name for name, row in reversed(list(ROWS.items()))}.values()
    )


def run(study: Study, only_table: bool) -> None:
    """Works off the queue, then prints tables and draws the figure."""
    while not only_table and study.queue.step(study.plan()):
        pass
    for stream in study.streams:
        table(study, stream)
    (study.out / "figure.png").write_bytes(figure(study))
    failed = sorted(path.name for path in (study.out / "failed").glob("*"))
    if failed:
        words = f"{len(failed)} runs failed, see {study.out / 'failed'}: {', '.join(failed)}"
        # A value with which training diverges is an answer, too; tiny runs must all work.
        sys.exit(f"error: {words}") if study.smoke else print(words)


if __name__ == "__main__":
    main(sys.argv[1:])
