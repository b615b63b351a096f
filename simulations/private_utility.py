"""What does privacy cost? FedAvg, replay, FOT and analytic learning at several epsilon.

Run: python simulations/private_utility.py --root FOLDER [--seeds 0 1 2] [--unit client record leak]

The folder has mnist.npz. Every method spends the same epsilon on all that is sent in the whole run:
who also sends statistics (FOT, analytic) pays for them with more noise. `client` protects clients
(`central_dp`), `record` single examples (`dp_sgd`) of few clients with much data each, who all take
part in every round: the client whose records cost most decides; `leak` audits the membership of
records at one pair of epsilon. No option was chosen on the test data: clips of statistics, and
`constant`, on validation data at seeds 100 on; the streams of `record` were set before any run.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from runner import CONFIGS, Cell, arguments, summary_of, work
from study_tables import show, spread

from fedcl.config import load_config
from fedcl.core.accounting.appearances import appearances
from fedcl.core.accounting.calibration import multiplier
from fedcl.core.accounting.composition import Charge
from fedcl.core.accounting.ledger import Draw, Event, charges
from fedcl.core.accounting.recordledger import RecordEvent, RecordLedger, grouped
from fedcl.core.client import Spent
from fedcl.core.data.stream import Stream
from fedcl.core.privacy.draws import PrivateSettings
from fedcl.core.privacy.examples import ExampleMechanism

EPSILONS = (1.0, 3.0, 8.0, math.inf)
STREAMS = {"Permuted MNIST": "private_pmnist.toml", "Split digits": "private_digits.toml"}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {"method": {"name": "fedavg"}},
    "replay": {"method": {"name": "replay"}},
    "fot": {"method": {"name": "fot"}},
    "analytic": {"method": {"name": "analytic", "pretrain": 0, "constant": False}},
}
# Programs that ask all members once, as a stage ends; `analytic` trains nothing in rounds then.
STATISTICS = {"fot": "gram", "analytic": "correlations"}
UNTRAINED = {"analytic"}
# Largest norms of statistics: of a client's, and of one example's part.
CLIPS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "Permuted MNIST": {
        "client": {"gram": 1000.0, "correlations": 10.0},
        "record": {"gram": 100.0, "correlations": 1.0},
    },
    "Split digits": {
        "client": {"gram": 20.0, "correlations": 1.0},
        "record": {"gram": 10.0, "correlations": 1.0},
    },
}
# A client of few records needs much noise for each: records are what organisations protect.
RECORDS: Mapping[str, Mapping[str, Any]] = {
    "Permuted MNIST": {"clients": 10, "rounds": 5, "epochs": 1, "batch_size": 64, "delta": 1e-5},
    "Split digits": {"clients": 5, "rounds": 10, "epochs": 2, "batch_size": 16, "delta": 1e-3},
}
LEAKS = {"Split digits": (3.0, math.inf)}
AUDIT = {"name": "membership", "shadows": 8, "records": 0, "population": 0}
SMOKE = {
    "dataset": {"name": "synthetic", "features": [1, 8, 8], "train": 200, "test": 100},
    "stream.tasks": 2,
    "stream.clients": 8,
    "training.rounds": 1,
    "training.cohort": 4,
}


def main(words: list[str]) -> None:
    """Runs what is not finished yet and prints the tables."""
    parser = arguments(__doc__ or "", "private_utility")
    units = ["client", "record", "leak"]
    parser.add_argument("--unit", nargs="+", choices=units, default=units, help="which parts")
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            for unit in args.unit:
                digits = {"Split digits": "private_digits.toml"}
                study(Path(folder), unit, [0], digits, SMOKE, (1.0,))
        return
    for unit in args.unit:
        study(args.out, unit, args.seeds, STREAMS, {}, EPSILONS, args.root)


def study(
    out: Path,
    unit: str,
    seeds: list[int],
    streams: Mapping[str, str],
    changes: Mapping[str, Any],
    epsilons: tuple[float, ...],
    root: str = "",
) -> None:
    """Runs each cell for each seed; several processes may share them."""
    cells = {
        (stream, method, epsilon): [
            _cell(unit, stream, config, method, epsilon, seed, changes, root) for seed in seeds
        ]
        for stream, config in streams.items()
        for method in METHODS
        for epsilon in (epsilons if unit != "leak" else LEAKS.get(stream, ()))
        if unit != "leak" or method in ("fedavg", "replay")
    }
    work([cell for row in cells.values() for cell in row], out)
    for stream in streams:
        lines = []
        for (place, method, epsilon), row in cells.items():
            found = [s for s in (summary_of(cell, out) for cell in row) if s is not None]
            if place == stream and found:
                lines.append(_line(unit, method, epsilon, row[0], found))
        headings = ["method", "epsilon wished", "spent", "noise multiplier", "accuracy %"]
        headings += ["forgetting (first-last) pp"]
        headings += ["worst AUC %", "TPR at 1 % FPR %"] if unit == "leak" else []
        if lines:
            title = f"{stream}, {unit}"
            show(title, headings, lines, out, f"{unit}_{stream.replace(' ', '_').lower()}.md")


def _line(
    unit: str, method: str, epsilon: float, cell: Cell, found: list[dict[str, Any]]
) -> list[str]:
    told = [float(s["epsilon"]) for s in found if s["epsilon"] is not None]
    columns = ("average_accuracy", "forgetting_first_last")
    numbers = [spread(s[column] for s in found) for column in columns]
    if unit == "record":
        noise = cell.changes["training.local"]["noise_multiplier"]
    else:
        noise = cell.changes["channel"][0]["noise_multiplier"]
    if unit == "leak":
        leaks = [s["audits"]["membership"] for s in found]  # no rate where negatives are too few
        numbers += [
            spread(leak[column] for leak in leaks) for column in ("worst_auc", "worst_tpr_1")
        ]
    return [method, f"{epsilon:g}", f"{max(told, default=math.inf):.2f}", f"{noise:.3g}", *numbers]


def _cell(
    unit: str,
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
    statistic = STATISTICS.get(method)
    kind = "record" if unit == "record" else "client"
    clips = {statistic: CLIPS[stream][kind][statistic]} if statistic else {}
    name = f"{unit}-{stream.replace(' ', '_')}-{method}-{epsilon:g}-{seed}"
    if unit == "record":
        few = RECORDS[stream]
        size = {"stream.clients": few["clients"], "training.rounds": few["rounds"]}
        own = {"channel": [], **size, "training.cohort": 0, "training.sampling": "fixed", **own}
        if method == "replay":  # as with many small clients, all that a client met fits
            own["method"] = {**own["method"], "budget": 100_000_000}
        local = {k: few[k] for k in ("epochs", "batch_size", "delta")}
        lr = table["training"]["local"]["lr"]
        local |= {"name": "dp_sgd", "lr": lr, "clip": 1.0, "clips": clips}
        data = {k: v for k, v in own.items() if k.split(".")[0] in ("seed", "dataset", "stream")}
        whole = _stream(config, json.dumps(data))
        local["noise_multiplier"] = _record_noise(own, local, method, epsilon, whole)
        return Cell(name, config, {**own, "training.local": local})
    channel |= {"noise_multiplier": _noise(table, own, method, epsilon, channel["delta"])}
    channel["clips"] = clips
    if unit == "leak":
        own["audit"] = [AUDIT]
    return Cell(name, config, {**own, "channel": [channel]})


def _noise(
    table: Mapping[str, Any], own: Mapping[str, Any], method: str, epsilon: float, delta: float
) -> float:
    """Returns the noise multiplier that all releases of a run may share."""
    if math.isinf(epsilon):
        return 0.0
    return _searched(table["stream"]["tasks"], *_sizes(table, own), method, epsilon, delta)


@lru_cache
def _searched(
    tasks: int, clients: int, cohort: int, rounds: int, method: str, epsilon: float, delta: float
) -> float:
    trained = 0 if method in UNTRAINED else rounds

    def planned(z: float) -> list[Any]:
        events = []
        for stage in range(tasks):
            for number in range(trained):
                draw = Draw("poisson", clients, cohort, number)
                events.append(Event(stage, number, 0, "train", z, 1.0, draw))
            if method in STATISTICS:
                draw = Draw("all", clients, clients, rounds - 1)
                events.append(Event(stage, rounds, 0, STATISTICS[method], z, 1.0, draw))
        return charges(events)

    return round(multiplier(planned, epsilon, delta) + 5e-5, 4)


def _sizes(table: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns clients, clients of a cohort, and rounds of a stage."""
    clients: int = own.get("stream.clients", table["stream"]["clients"])
    cohort: int = own.get("training.cohort", table["training"]["cohort"])
    rounds: int = own.get("training.rounds", table["training"]["rounds"])
    return clients, cohort, rounds


@lru_cache
def _stream(config: str, changes: str) -> Stream:
    """Returns the stream of a config with these changes."""
    experiment = load_config(CONFIGS / config, json.loads(changes))
    dataset = experiment.dataset.load()
    return experiment.stream.build(dataset, experiment.seed, experiment.names["stream"])


def _record_noise(
    own: Mapping[str, Any], local: Mapping[str, Any], method: str, epsilon: float, stream: Stream
) -> float:
    """Returns the noise multiplier at which no client's record costs more.

    All that every client will send is charged to a ledger as a run would charge it.
    """
    if math.isinf(epsilon):
        return 0.0
    rounds, kept = 0 if method in UNTRAINED else own["training.rounds"], method == "replay"
    settings = PrivateSettings(1.0, 1.0, local["batch_size"], local["epochs"], local["lr"])
    met = appearances(stream)
    sizes = [
        [len(stream.rows_at(client, stage)) for stage in range(stream.stages)]
        for client in range(stream.clients)
    ]

    def planned(z: float) -> list[Charge]:
        ledger, promise = RecordLedger(met=met), ExampleMechanism(z, 1.0)
        for stage in range(stream.stages):
            spent = {}
            for client, own_sizes in enumerate(sizes):
                rows = sum(own_sizes[: stage + 1]) if kept else own_sizes[stage]
                steps = rounds * settings.steps(rows)
                spent[client] = Spent(z, settings.rate(rows), steps, kept)
            ledger.intend(RecordEvent(stage, 0, 0, 0, "train", grouped(spent)), promise)
            if method in STATISTICS:
                spent = dict.fromkeys(range(stream.clients), Spent(z, 1.0, 1))
                name = STATISTICS[method]
                ledger.intend(RecordEvent(stage, 1, 0, 0, name, grouped(spent)), promise)
        return ledger.dearest(local["delta"])

    return round(multiplier(planned, epsilon, local["delta"]) + 5e-5, 4)


if __name__ == "__main__":
    main(sys.argv[1:])
