"""Analytic learning is exact: federated in any way, it is ridge regression on all data at once.

Run: python simulations/analytic_exactness.py [--root FOLDER] [--seeds 0 1 2] [--out FOLDER]

Features are those of a random network, in float64; data are scikit-learn's digits, or mnist.npz in
a root. The truth is computed once, from the data set alone, by least squares on the stacked matrix
of all features. Every run divides the same examples otherwise: among clients, over stages, in an
order of classes that each seed draws. A line holds the largest relative error, of the weights and
of the answers to the test set, of all runs that have it; exits with an error at 1e-8 or above.
The last lines have features in float32, as usual, and sums that travel in float64 or float32; they
are measured, not judged.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runner import arguments
from study_tables import show
from torch import Tensor

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment, parse
from fedcl.core.features.analytic import Regressors, head_of
from fedcl.core.federation import Federation
from fedcl.core.model import Net
from fedcl.methods.analytic import Analytic, State

LIMIT = 1e-8
PARTITIONS: Mapping[str, Mapping[str, Any]] = {
    "iid": {"name": "iid"},
    "dirichlet 0.05": {"name": "dirichlet", "alpha": 0.05},
    "shards": {"name": "shards", "per_client": 1},
    "quantity": {"name": "quantity", "exponent": 1.0},
}
Setting = dict[str, Any]


@dataclass(frozen=True)
class Watched(Analytic):
    """Analytic learning that shows its states.

    Attributes:
        states: State after each stage.
    """

    states: list[State] = field(default_factory=list, compare=False)

    def end_task(self, state: State, fed: Federation) -> State:
        """Does what it always does."""
        self.states.append(super().end_task(state, fed))
        return self.states[-1]


@dataclass(frozen=True)
class Truth:
    """Ridge regression on all data at once.

    Attributes:
        weights: (m, classes).
        test: (n, m) regressors of the test set.
    """

    weights: Tensor
    test: Tensor


def main(words: list[str]) -> None:
    """Runs all settings and prints the table."""
    parser = arguments(__doc__ or "", "analytic_exactness")
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            few = {"clients": (1, 10), "partition": ("iid", "shards"), "stages": (1, 2)}
            study(Path(folder), {**few, "seed": (0,), "projection": (0, 50)}, "")
        return
    levels: dict[str, tuple[Any, ...]] = {
        "clients": (1, 10, 100),
        "partition": tuple(PARTITIONS),
        "stages": (1, 2, 5, 10),
        "seed": tuple(args.seeds),
        "projection": (0, 500),
    }
    study(args.out, levels, args.root)


def study(out: Path, levels: Mapping[str, tuple[Any, ...]], root: str) -> None:
    """Runs every combination of levels, and one in less precision."""
    found: list[tuple[Setting, float, float]] = []
    for seed, projection in itertools.product(levels["seed"], levels["projection"]):
        own = {**levels, "seed": (seed,), "projection": (projection,)}
        truth = solved(experiment(next(settings(own)), root))
        found += [(s, *errors(experiment(s, root), truth)) for s in settings(own)]
    rows = []
    for name, values in levels.items():
        for value in values:
            rows.append(row(f"{name} {value}", [f for f in found if f[0][name] == value]))
    rows.append(row("all", found))
    # Ten stages would leave most of so many clients next to nothing.
    last = {name: values[-1] for name, values in levels.items()} | {"stages": levels["stages"][0]}
    single: Setting = {**last, "dtype": "float32"}
    truth = solved(experiment(single, root))
    for exact in (True, False):
        less = {**single, "exact": exact}
        travel = "float64" if exact else "float32"
        what = f"features in float32, sums travel in {travel}"
        rows.append(row(what, [(less, *errors(experiment(less, root), truth))]))
    title = "Relative errors against ridge regression on all data at once"
    show(title, ["runs with", "runs", "weights", "answers"], rows, out)
    worst = max(max(weights, answers) for _, weights, answers in found)
    if not worst < LIMIT:
        sys.exit(f"the largest relative error is {worst:.1e}, not below {LIMIT:.0e}")


def settings(levels: Mapping[str, tuple[Any, ...]]) -> Iterator[Setting]:
    """Yields every combination."""
    for values in itertools.product(*levels.values()):
        yield dict(zip(levels, values, strict=True))


def row(what: str, found: list[tuple[Setting, float, float]]) -> list[str]:
    """Returns a line of the table."""
    worst = [max(errors) for errors in list(zip(*found, strict=True))[1:]]
    return [what, str(len(found)), *(f"{error:.1e}" for error in worst)]


def experiment(setting: Setting, root: str) -> Experiment:
    """Returns the experiment of a setting."""
    digits: Setting = {"name": "digits"}
    mnist: Setting = {"name": "npz", "root": root, "file": "mnist.npz"}
    found = parse(
        {
            "seed": setting["seed"],
            "dataset": mnist if root else digits,
            "stream": {
                "name": "class_incremental",
                "shuffle_classes": True,
                "tasks": setting["stages"],
                "clients": setting["clients"],
                "partition": PARTITIONS[setting["partition"]],
            },
            "model": {"name": "mlp", "hidden": [100]},
            "method": {
                "name": "analytic",
                "pretrain": 0,
                "projection": setting["projection"],
                "projection_seed": setting["seed"],
                "exact": setting.get("exact", True),
            },
            "training": {"rounds": 1, "dtype": setting.get("dtype", "float64")},
            "engine": {"name": "serial"},
        }
    )
    options = {key: value for key, value in found.resolved["method"].items() if key != "name"}
    return replace(found, method=Watched(**options))


def solved(found: Experiment) -> Truth:
    """Returns ridge regression by least squares on the data set: no stream, no sums."""
    model, data = build_site(found).model, found.dataset.load()
    assert isinstance(found.method, Analytic)
    regressors = Regressors(found.method.projection, found.method.projection_seed)
    dtype = head_of(model).weight.dtype
    inputs = [
        torch.from_numpy(table.rows(np.arange(len(table.labels)))).to(dtype)
        for table in (data.train, data.test)
    ]
    train, test = (regressors(Net(model), x) for x in inputs)
    h, labels = train.numpy(), np.asarray(data.train.labels)
    width = h.shape[1]
    stacked = np.vstack([h, found.method.gamma**0.5 * np.eye(width)])
    wanted = np.vstack([np.eye(data.classes)[labels], np.zeros((width, data.classes))])
    weights = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    return Truth(torch.from_numpy(weights), test)


def errors(found: Experiment, truth: Truth) -> tuple[float, float]:
    """Runs an experiment; returns the relative errors of its weights and of its answers."""
    fedcl.run(found)
    assert isinstance(found.method, Watched)
    state = found.method.states[-1]
    weights = state.weights
    if weights is None:
        params = state.params
        weights = torch.cat([params["head.weight"].T, params["head.bias"][None]]).double()
    away = weights - truth.weights
    answers = truth.test @ away
    return (
        float(away.norm() / truth.weights.norm()),
        float(answers.norm() / (truth.test @ truth.weights).norm()),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
