"""What does privacy cost? FedAvg, replay, FOT and analytic learning at several epsilon.

Run: python simulations/private_utility.py --root FOLDER [--seeds 0 1 2] [--unit client record leak]

The folder has mnist.npz. Every method spends the same epsilon on all that is sent in the whole run:
who also sends statistics (FOT, analytic) pays for them with more noise. `client` protects clients
(`central_dp`), `record` single examples (`dp_sgd`; clients take turns, and the client whose records
cost most decides), `leak` audits the membership of records at one pair of epsilon. No option was
chosen on the test data: clips of statistics, and `constant`, on validation data at seeds 100 on.
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

from runner import CONFIGS, Cell, arguments, show, spread, summary_of, work

from fedcl.config import load_config
from fedcl.core.accounting import Charge, epsilon_rdp
from fedcl.core.calibration import multiplier
from fedcl.core.ledger import Draw, Event, charges
from fedcl.core.privatedraws import PrivateSettings

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
LEAKS = {"Split digits": (3.0, math.inf)}
AUDIT = {"name": "membership", "shadows": 8, "records": 0, "population": 0}
SMOKE = {
    "dataset": {"name": "synthetic", "features": [1, 8, 8], "train": 200, "test": 100},
    "stream.clients": 20,
    "training.rounds": 1,
    "training.cohort": 10,
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
                study(Path(folder), unit, [0], digits, SMOKE, (8.0,))
        return
    for unit in args.unit:
        seeds = args.seeds[:1] if unit == "leak" else args.seeds
        study(args.out, unit, seeds, STREAMS, {}, EPSILONS, args.root)


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
        headings += ["worst AUC", "TPR at 1 % FPR"] if unit == "leak" else []
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
        leak = found[0]["audits"]["membership"]
        rate = leak["worst_tpr_1"]  # none where negatives are too few
        numbers += [f"{leak['worst_auc']:.3f}", "n/a" if rate is None else f"{100 * rate:.1f} %"]
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
        own |= {"channel": [], "training.sampling": "round_robin"}
        local = {k: v for k, v in table["training"]["local"].items() if k in _SHARED}
        local |= {"name": "dp_sgd", "clip": 1.0, "clips": clips, "delta": channel["delta"]}
        data = {
            k: own[k] for k in ("seed", "dataset", "dataset.root", "stream.clients") if k in own
        }
        shares = _shares(config, json.dumps(data))
        local["noise_multiplier"] = _record_noise(table, own, local, method, epsilon, shares)
        return Cell(name, config, {**own, "training.local": local})
    channel |= {"noise_multiplier": _noise(table, own, method, epsilon, channel["delta"])}
    channel["clips"] = clips
    if unit == "leak":
        own["audit"] = [AUDIT]
    return Cell(name, config, {**own, "channel": [channel]})


_SHARED = ("epochs", "batch_size", "lr")
Plan = tuple[tuple[float, int], ...]  # rate and steps of all that a record is part of


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
def _shares(config: str, changes: str) -> frozenset[tuple[int, ...]]:
    """Returns how many examples clients have of each task; those with the same ones once."""
    experiment = load_config(CONFIGS / config, json.loads(changes))
    dataset = experiment.dataset.load()
    stream = experiment.stream.build(dataset, experiment.seed, experiment.names["stream"])
    sizes = [stream.sizes(task.index).tolist() for task in stream.tasks]
    return frozenset(zip(*sizes, strict=True))


def _record_noise(
    table: Mapping[str, Any],
    own: Mapping[str, Any],
    local: Mapping[str, Any],
    method: str,
    epsilon: float,
    shares: frozenset[tuple[int, ...]],
) -> float:
    """Returns the noise multiplier at which no client's record costs more.

    A record is part of its stage's training, as often as its client's turn comes, and of its
    statistic; a record that is remembered is part of all later stages' training too.
    """
    if math.isinf(epsilon):
        return 0.0
    clients, cohort, rounds = _sizes(table, own)
    times = 0 if method in UNTRAINED else math.ceil(rounds * cohort / clients)
    settings = PrivateSettings(1.0, 1.0, local["batch_size"], local["epochs"], local["lr"])
    plans: set[Plan] = set()
    for sizes in shares:
        for stage in range(len(sizes)):
            if not sizes[stage]:
                continue
            if method == "replay":
                rows = [sum(sizes[: later + 1]) for later in range(stage, len(sizes))]
            else:
                rows = [sizes[stage]]
            plan = [(settings.rate(n), times * settings.steps(n)) for n in rows]
            plan += [(1.0, 1)] if method in STATISTICS else []
            plans.add(tuple(plan))

    return _dearest(frozenset(plans), epsilon, local["delta"])


@lru_cache
def _dearest(plans: frozenset[Plan], epsilon: float, delta: float) -> float:
    # A plan with smaller rates and fewer steps than another one's costs no more.
    dear = [p for p in sorted(plans) if not any(p != q and _within(p, q) for q in plans)]

    def dearest(z: float) -> list[Charge]:
        found = [[Charge(z, rate, steps) for rate, steps in plan] for plan in dear]
        return max(found, key=lambda own: epsilon_rdp(own, delta))

    return round(multiplier(dearest, epsilon, delta) + 5e-5, 4)


def _within(one: Plan, other: Plan) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) <= len(other) and all(a <= b and m <= n for (a, m), (b, n) in pairs)


if __name__ == "__main__":
    main(sys.argv[1:])
