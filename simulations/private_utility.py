"""What does privacy cost? FedAvg, replay, FOT and analytic learning at several epsilon.

Run: python simulations/private_utility.py --root FOLDER [--seeds 0 1 2]

The folder has mnist.npz. Every method spends the same epsilon on all that it sends in the whole
run: who also sends statistics (FOT, analytic) pays for them with more noise. No option was chosen
on the test data; the clip is that of the configs, for all methods alike.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner import CONFIGS, Cell, arguments, show, spread, summary_of, work

from fedcl.config import load_config
from fedcl.core.calibration import multiplier
from fedcl.core.ledger import Draw, Event, charges

EPSILONS = (1.0, 3.0, 8.0, float("inf"))
STREAMS = {"Permuted MNIST": "private_pmnist.toml", "Split digits": "private_digits.toml"}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {"method": {"name": "fedavg"}},
    "replay": {"method": {"name": "replay"}},
    "fot": {"method": {"name": "fot"}},
    "analytic": {"method": {"name": "analytic", "pretrain": 0}},
}
# Programs that ask all members once, as a stage ends; `analytic` trains nothing in rounds then.
STATISTICS = {"fot": 1, "analytic": 1}
UNTRAINED = {"analytic"}
SMOKE = {
    "dataset": {"name": "synthetic", "features": [1, 8, 8], "train": 200, "test": 100},
    "stream.clients": 20,
    "training.rounds": 1,
    "training.cohort": 10,
}


def main(words: list[str]) -> None:
    """Runs what is not finished yet and prints the tables."""
    args = arguments(__doc__ or "", "private_utility").parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            study(Path(folder), [0], {"Split digits": "private_digits.toml"}, SMOKE, (8.0,))
        return
    study(args.out, args.seeds, STREAMS, {}, EPSILONS, args.root)


def study(
    out: Path,
    seeds: list[int],
    streams: Mapping[str, str],
    changes: Mapping[str, Any],
    epsilons: tuple[float, ...],
    root: str = "",
) -> None:
    """Runs each cell for each seed; several processes may share them."""
    cells = {
        (stream, method, epsilon): [
            _cell(stream, config, method, epsilon, seed, changes, root) for seed in seeds
        ]
        for stream, config in streams.items()
        for method in METHODS
        for epsilon in epsilons
    }
    work([cell for row in cells.values() for cell in row], out)
    for stream in streams:
        lines = []
        for (place, method, epsilon), row in cells.items():
            found = [s for s in (summary_of(cell, out) for cell in row) if s is not None]
            if place != stream or not found:
                continue
            told = [f"{float(s['epsilon']):.2f}" for s in found]
            columns = ("average_accuracy", "forgetting_first_last")
            numbers = [spread(s[column] for s in found) for column in columns]
            noise = row[0].changes["channel"][0]["noise_multiplier"]
            lines.append([method, f"{epsilon:g}", max(told), f"{noise:.3g}", *numbers])
        headings = ["method", "epsilon wished", "spent", "noise multiplier", "accuracy %"]
        show(f"{stream}, client-level", [*headings, "forgetting (first-last) pp"], lines, out)


def _cell(
    stream: str,
    config: str,
    method: str,
    epsilon: float,
    seed: int,
    changes: Mapping[str, Any],
    root: str,
) -> Cell:
    """Returns a run whose noise is what this epsilon needs."""
    own = {**METHODS[method], **changes, "seed": seed}
    if root and "dataset" not in changes and stream != "Split digits":
        own["dataset.root"] = root
    table = load_config(CONFIGS / config).resolved
    channel = dict(table["channel"][0])
    channel["noise_multiplier"] = _noise(table, own, method, epsilon, channel["delta"])
    name = f"{stream.replace(' ', '_')}-{method}-{epsilon:g}-{seed}"
    return Cell(name, config, {**own, "channel": [channel]})


def _noise(
    table: Mapping[str, Any], own: Mapping[str, Any], method: str, epsilon: float, delta: float
) -> float:
    """Returns the noise multiplier that all releases of a run may share."""
    if epsilon == float("inf"):
        return 0.0
    clients = own.get("stream.clients", table["stream"]["clients"])
    cohort = own.get("training.cohort", table["training"]["cohort"])
    rounds = own.get("training.rounds", table["training"]["rounds"])
    trained = 0 if method in UNTRAINED else rounds

    def planned(z: float) -> list[Any]:
        events = []
        for stage in range(table["stream"]["tasks"]):
            for number in range(trained):
                draw = Draw("poisson", clients, cohort, number)
                events.append(Event(stage, number, 0, "train", z, 1.0, draw))
            for number in range(STATISTICS.get(method, 0)):
                draw = Draw("all", clients, clients, rounds - 1)
                events.append(Event(stage, rounds, number, "statistics", z, 1.0, draw))
        return charges(events)

    return round(multiplier(planned, epsilon, delta) + 5e-5, 4)


if __name__ == "__main__":
    main(sys.argv[1:])
