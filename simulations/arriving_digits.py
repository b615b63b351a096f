"""Digits that arrive while a run goes on: `python simulations/arriving_digits.py`.

A courier brings each client's files of a stage, turned digits, once the stage before is over; the
run (`configs/live_digits.toml`) waits for them. With `--root FOLDER` the files are brought there
and nothing is run, one stage after the other every `--every` seconds: into the folders of devices,
which may be links, while a federation goes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fedcl
from fedcl.core.data.stream import Stream
from fedcl.datasets.digits import Digits
from fedcl.experiment import Progress
from fedcl.streams.domain_incremental import DomainIncremental

CONFIG = Path(__file__).parent.parent / "configs" / "live_digits.toml"
CLIENTS, STAGES = 4, 5


def bring(root: Path, every: float = 0.0) -> Iterator[int]:
    """Brings the files of one stage after the other, and yields each stage that has come.

    Args:
        root: Holds a folder for each client, made where it is missing.
        every: Seconds between two stages.
    """
    plan = DomainIncremental(transform="rotate", degrees=120.0, tasks=STAGES, clients=CLIENTS)
    stream = plan.build(Digits().load(), 0, "domain_incremental")
    for stage in range(STAGES):
        time.sleep(every if stage else 0.0)
        for client in range(CLIENTS):
            _write(root / str(client), stream, client, stage)
        yield stage


def _write(folder: Path, stream: Stream, client: int, stage: int) -> None:
    """Writes a file under another name, then renames it: what has its name is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    data = stream.train(client, stage)
    partial = folder / f".{stage:03}.npz.part"
    with partial.open("wb") as file:
        np.savez(file, x=data.x.numpy(), y=data.y.numpy())
    partial.replace(folder / f"{stage:03}.npz")


def main(words: list[str]) -> None:
    """Brings files, and runs unless a folder is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="bring the files there, and run nothing")
    parser.add_argument("--every", type=float, default=0.0, help="seconds between two stages")
    parser.add_argument("--smoke", action="store_true", help="two rounds a stage")
    options = parser.parse_args(words)
    if options.root is not None:
        for stage in bring(options.root, options.every):
            print(f"the files of stage {stage} are in {options.root}", flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="fedcl-arriving-") as folder:
        courier = bring(Path(folder))
        next(courier)

        def watch(progress: Progress) -> None:
            if progress.round == progress.rounds:
                next(courier, None)

        changes = {"dataset.root": folder} | ({"training.rounds": 2} if options.smoke else {})
        summary = fedcl.run(fedcl.load_config(CONFIG, changes), watch=watch).summary
    print(f"| after stage | {' | '.join(f'task {task}' for task in range(STAGES))} |")
    print(f"|---|{'---|' * STAGES}")
    for stage, row in enumerate(summary["accuracy_matrix"]):
        cells = ["" if value is None else f"{100 * value:.1f} %" for value in row]
        print(f"| {stage} | {' | '.join(cells)} |")
    print(f"\nforgetting {100 * summary['forgetting']:.1f} points")


if __name__ == "__main__":
    main(sys.argv[1:])
