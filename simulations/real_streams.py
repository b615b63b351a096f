"""The shipped real streams, each method beside FedAvg over three seeds: README's table.

Run: python simulations/real_streams.py --root FOLDER [--seeds 0 1 2] [--out FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from runner import arguments, finished
from study_tables import show, spread

CONFIGS = ("split_mnist.toml", "pacs_domains.toml", "uci_har_people.toml")
SMOKE: dict[str, dict[str, Any]] = {
    "split_mnist.toml": {
        "dataset": {"name": "synthetic", "features": [1, 8, 8], "train": 200, "test": 100}
    },
    "pacs_domains.toml": {
        "dataset": {
            "name": "synthetic",
            "features": [3, 8, 8],
            "train": 200,
            "test": 100,
            "domains": 4,
        },
        "model": {"name": "cnn", "channels": [8], "hidden": 8},
    },
}


def main(words: list[str]) -> None:
    """Runs what is not finished yet and prints the table."""
    args = arguments(__doc__ or "", "real_streams").parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            small = {"training.rounds": 1, "training.cohort": 4}
            study(Path(folder), [0], {config: {**own, **small} for config, own in SMOKE.items()})
        return
    study(args.out, args.seeds, {config: {"dataset.root": args.root} for config in CONFIGS})


def study(out: Path, seeds: list[int], changes: dict[str, dict[str, Any]]) -> None:
    """Runs FedAvg and the config's own method on each stream."""
    rows = []
    for config, own in changes.items():
        for method in ("fedavg", ""):
            found = []
            for seed in seeds:
                name = {"method.name": method} if method else {}
                folder = out / f"{Path(config).stem}-{method or 'own'}-{seed}"
                changed = {
                    **own,
                    **name,
                    "evaluation.every": 0,
                    "engine": {"name": "serial"},
                    "seed": seed,
                }
                found.append(finished(config, changed, folder))
            accuracy = spread(s["average_accuracy"] for s in found)
            forgetting = spread(s["forgetting"] for s in found)
            worst = spread(s["clients"]["average_accuracy"]["worst"] for s in found)
            scenario = f"{found[0]['scenario']}-incremental"
            rows.append(
                [f"`configs/{config}`", scenario, found[0]["method"], accuracy, forgetting, worst]
            )
    headings = [
        "config",
        "scenario",
        "method",
        "average accuracy %",
        "forgetting pp",
        "worst client %",
    ]
    show("Real streams, mean ± sample standard deviation over seeds", headings, rows, out)


if __name__ == "__main__":
    main(sys.argv[1:])
