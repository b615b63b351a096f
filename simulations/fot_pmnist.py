"""FOT's Permuted-MNIST rows: FedAvg and FOT, IID and non-IID, 125 clients, 64 a round.

Run: python simulations/fot_pmnist.py --root FOLDER [--rounds 10] [--seeds 0] [--out FOLDER]

The published protocol has 200 rounds a task; fewer are another experiment, and the table says so.
Published (Bakman et al., ICLR 2024; accuracy / forgetting as first minus last): IID FedAvg
85.68 / 8.29, FOT 90.35 / 1.75; non-IID FedAvg 80.06 / 9.21, FOT 85.21 / 1.97.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from runner import arguments, finished, show, spread

SMOKE = {
    "dataset": {
        "name": "synthetic",
        "features": [1, 8, 8],
        "train": 400,
        "test": 100,
        "spread": 0.3,
    },
    "stream.tasks": 2,
    "stream.clients": 10,
    "training.cohort": 5,
    "model.hidden": [30, 30, 30],
}


def main(words: list[str]) -> None:
    """Runs what is not finished yet and prints the table."""
    parser = arguments(__doc__ or "", "fot_pmnist", seeds=(0,))
    parser.add_argument(
        "--rounds", type=int, default=200, help="rounds a task; 200 is the protocol"
    )
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            study(Path(folder), [0], {**SMOKE, "training.rounds": 1})
        return
    study(args.out, args.seeds, {"dataset.root": args.root, "training.rounds": args.rounds})


def study(out: Path, seeds: list[int], changes: dict[str, Any]) -> None:
    """Runs the four rows."""
    rows = []
    for split, config in (("IID", "fot_pmnist.toml"), ("non-IID", "fot_pmnist_noniid.toml")):
        for method in ("fedavg", "fot"):
            found = []
            for seed in seeds:
                name = {} if method == "fot" else {"method.name": method}
                folder = out / f"{split}-{method}-{seed}"
                engine = {"engine": {"name": "serial"}}
                found.append(finished(config, {**changes, **name, **engine, "seed": seed}, folder))
            columns = ("average_accuracy", "forgetting_first_last", "learning_accuracy")
            rows.append([split, method, *(spread(s[column] for s in found) for column in columns)])
    headings = [
        "split",
        "method",
        "average accuracy %",
        "forgetting (first-last) pp",
        "learning accuracy %",
    ]
    title = f"Permuted MNIST (domain-incremental), {changes['training.rounds']} rounds a task"
    show(title, headings, rows, out)


if __name__ == "__main__":
    main(sys.argv[1:])
