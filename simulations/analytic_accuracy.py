"""Analytic learning beside federated averaging, class-incremental, on three kinds of features.

Run: python simulations/analytic_accuracy.py --root FOLDER [--seeds 0 1 2] [--out FOLDER]

The folder has mnist.npz, cifar100_small.npz and backbone_resnet20_cifar10.npz. Published (He et
al., AFL, CVPR 2025, from memory): 58.56 % on CIFAR-100 with features of an ImageNet ResNet-18 and
all 50000 examples; ours is a ResNet-20 of CIFAR-10 with a tenth of them, and cannot be compared.
What is claimed is that the split makes no difference: the rows IID and Dirichlet 0.1 are equal.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner import Cell, arguments, summary_of, work
from study_tables import show, spread

SMOKE = {
    "dataset": {"name": "synthetic", "features": [1, 8, 8], "train": 200, "test": 100},
    "training.rounds": 1,
}
MNIST: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Split MNIST, FedAvg": ("split_mnist.toml", {"method.name": "fedavg"}),
    "Split MNIST, analytic on the first task's features": (
        "split_mnist.toml",
        {"method.name": "analytic"},
    ),
    "Split MNIST, analytic on random features": ("analytic_split_mnist.toml", {}),
}
ENGINE = {"engine": {"name": "vectorized"}}
IID = {"stream.partition": {"name": "iid"}}
CIFAR: Mapping[str, Mapping[str, Any]] = {
    "Dirichlet 0.1": {},
    "IID": IID,
    "Dirichlet 0.1, no projection": {"method.projection": 0},
    "IID, no projection": {"method.projection": 0, **IID},
}


def main(words: list[str]) -> None:
    """Runs what is not finished yet and prints the table."""
    args = arguments(__doc__ or "", "analytic_accuracy").parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            small = {name: (config, {**own, **SMOKE}) for name, (config, own) in MNIST.items()}
            study(Path(folder), [0], small)
        return
    root = {"dataset.root": args.root}
    rows = {name: (config, {**own, **root}) for name, (config, own) in MNIST.items()}
    given = {**root, "model.root": args.root, "dataset.file": "cifar100_small.npz"}
    for name, own in CIFAR.items():
        rows[f"Split CIFAR-100, analytic on ResNet-20, {name}"] = (
            "analytic_cifar100.toml",
            {**given, **own, "stream.clients": 10},
        )
    study(args.out, args.seeds, rows)


def study(out: Path, seeds: list[int], rows: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
    """Runs each row for each seed; several processes may share them."""
    cells = {
        name: [
            Cell(f"{number}-{seed}", config, {**changes, **ENGINE, "seed": seed}) for seed in seeds
        ]
        for number, (name, (config, changes)) in enumerate(rows.items())
    }
    work([cell for row in cells.values() for cell in row], out)
    lines = []
    for name, row in cells.items():
        found = [s for s in (summary_of(cell, out) for cell in row) if s is not None]
        columns = ("average_accuracy", "forgetting_first_last")
        numbers = [spread(summary[column] for summary in found) for column in columns]
        sent = max((s["bytes_up"] + s["bytes_down"] for s in found), default=0)
        lines.append([name, *numbers, f"{sent / 1e6:.1f}"])
    headings = ["stream and method", "average accuracy %", "forgetting (first-last) pp", "MB"]
    show("Class-incremental; MB up and down in all", headings, lines, out)


if __name__ == "__main__":
    main(sys.argv[1:])
