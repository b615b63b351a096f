"""What the study of kron compares: rows, streams, and in which order they are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SIGMAS = (1e-3, 1e-2, 1e-1, 1.0)
EPSILON, DELTA = 1.0, 1e-5  # of one release, in the remark on what a private sum would need

Values = tuple[float, ...]
ENERGIES: Values = (
    0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999
)  # fmt: skip
STRENGTHS: Values = tuple(
    float(f"{digit}e{power}") for power in range(-5, 6) for digit in (1, 3)
)  # a factor of about three apart


@dataclass(frozen=True)
class Row:
    """A method with one hyper-parameter.

    Attributes:
        method: The table [method].
        option: The hyper-parameter; empty for none.
        ladder: Values that it may take, ascending.
        first: The least of the five values that are tried at first.
        ours: Whether it is kron or a form of it, and so no rival.
        scenarios: Of the streams in which it differs from other rows.
    """

    method: Mapping[str, Any]
    option: str = ""
    ladder: Values = ()
    first: float = 0.0
    ours: bool = False
    scenarios: tuple[str, ...] = ("domain", "class", "task")


def _kron(first: float, **options: Any) -> Row:
    return Row({"name": "kron", **options}, "mu", STRENGTHS, first, ours=True)


def _energy(name: str, first: float = 0.8, **options: Any) -> Row:
    return Row({"name": name, **options}, "energy", ENERGIES, first)


INCREMENTAL = ("class", "task")
ROWS: Mapping[str, Row] = {
    "fedavg": Row({"name": "fedavg"}),
    "l2": Row({"name": "l2"}, "strength", tuple(v for v in STRENGTHS if v <= 10), 0.01),
    "osft": _energy("osft", 0.5),
    "gpm": _energy("gpm", energy_step=0.0),
    "gpm-biases": _energy("gpm", energy_step=0.0, biases="project"),
    "gpm-head": replace(_energy("gpm", energy_step=0.0, head="protect"), scenarios=INCREMENTAL),
    "fot": _energy("fot"),
    "fot-biases": _energy("fot", biases=True),
    "fot-head": replace(_energy("fot", head="protect"), scenarios=INCREMENTAL),
    "cuber": _energy("cuber"),
    "kron": _kron(0.1),
    "kron-identity-S": replace(_kron(0.001, outputs="identity"), scenarios=("domain", "task")),
    "kron-fisher": replace(_kron(3.0, outputs="fisher"), scenarios=("class",)),
    "kron-identity-A": _kron(3.0, inputs="identity"),
    "kron-identities": _kron(0.01, inputs="identity", outputs="identity"),
    "kron-mean": _kron(0.3, schedule="mean"),
    "kron-own": _kron(0.1, outputs="empirical"),
    "kron-free-head": replace(_kron(0.1, head="free"), scenarios=INCREMENTAL),
    "joint": Row({"name": "joint"}),
}
CORE = ("fedavg", "kron", "fot", "fot-biases", "gpm")
ABLATIONS = (
    "kron-identity-S",
    "kron-fisher",
    "kron-identity-A",
    "kron-identities",
    "kron-mean",
    "kron-own",
    "kron-free-head",
    "fot-head",
)
OTHERS = tuple(name for name in ROWS if name not in (*CORE, *ABLATIONS))


@dataclass(frozen=True)
class Setting:
    """A stream, with all of a run but the method.

    Attributes:
        title: For tables.
        config: File in configs/.
        scenario: `domain`, `class` or `task`.
        changes: Overrides of the config.
        mnist: Whether its data are the study's cut of MNIST.
        masked: Whether every method that can compares the present classes only.
    """

    title: str
    config: str
    scenario: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    mnist: bool = True
    masked: bool = False


def _stream(name: str, clients: int) -> dict[str, Any]:
    partition = {"name": "dirichlet", "alpha": 0.5}
    held = {"validation": 0.2, "partition": partition}
    return {"stream": {"name": f"{name}_incremental", "tasks": 5, "clients": clients, **held}}


SPLIT, CIFAR = "kron_split_mnist.toml", "kron_cifar100_small.toml"
SETTINGS: Mapping[str, Setting] = {
    "pmnist-iid": Setting("Permuted MNIST, IID", "kron_pmnist_small.toml", "domain"),
    "pmnist-shards": Setting(
        "Permuted MNIST, two label shards a client",
        "kron_pmnist_small.toml",
        "domain",
        {"stream.partition": {"name": "shards", "per_client": 2}},
    ),
    "split-mnist-class": Setting("Split MNIST, class-incremental", SPLIT, "class"),
    "split-mnist-task": Setting(
        "Split MNIST, task-incremental", SPLIT, "task", _stream("task", 10)
    ),
    "cifar-task": Setting(
        "CIFAR-100 superclasses in small, task-incremental", CIFAR, "task", {}, mnist=False
    ),
    "cifar-class": Setting(
        "CIFAR-100 superclasses in small, class-incremental",
        CIFAR,
        "class",
        _stream("class", 5),
        mnist=False,
    ),
    "split-mnist-masked": Setting(
        "Split MNIST, class-incremental, masked losses", SPLIT, "class", masked=True
    ),
}
PMNIST = ("pmnist-iid", "pmnist-shards")
SPLITS = ("split-mnist-class", "split-mnist-task")
CIFARS = ("cifar-task", "cifar-class")
SMALL = {
    "stream.tasks": 2,
    "training.rounds": 2,
    "training.local.batch_size": 8,
    "training.local.lr": 0.3,
}
SMOKE_MNIST = {
    "dataset": {"name": "synthetic", "features": [1, 4, 4], "train": 250, "test": 50},
    "model.hidden": [12],
    **SMALL,
}
SMOKE_CIFAR = {
    "dataset": {"name": "synthetic", "features": [3, 8, 8], "train": 150, "test": 50},
    "model": {"name": "cnn", "channels": [8], "hidden": 8},
    **SMALL,
}


@dataclass(frozen=True)
class Phase:
    """A part of the study; those that matter more come first."""

    streams: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: int
    noise: bool = False


PHASES = (
    Phase(PMNIST, CORE, 5),
    Phase(PMNIST, ABLATIONS, 5),
    Phase(SPLITS, tuple(ROWS), 3),
    Phase(CIFARS, (*CORE, *ABLATIONS), 3),
    Phase(PMNIST[:1], ("kron",), 3, noise=True),
    Phase(PMNIST, OTHERS, 3),
    Phase(CIFARS, OTHERS, 3),
    Phase(("split-mnist-masked",), tuple(ROWS), 3),
)
