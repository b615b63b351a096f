"""What the study of all methods compares: rows, streams, and their tiny forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST = 7  # values of one hyper-parameter
STRENGTHS = tuple(float(f"{digit}e{power}") for power in range(-6, 6) for digit in (1, 3))
ENERGIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True)
class Row:
    """A method with at most one hyper-parameter to choose.

    Attributes:
        method: The table [method].
        option: The hyper-parameter; empty for none.
        ladder: Values that it may take, ascending.
        first: The least of the values that are tried at first.
        exemplars: Whether clients keep examples, within the stream's budget.
        changes: Overrides beside the method's table.
    """

    method: Mapping[str, Any]
    option: str = ""
    ladder: tuple[float, ...] = ()
    first: float = 0.0
    exemplars: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)


def _row(name: str, option: str = "", first: float = 0.0, **options: Any) -> Row:
    ladder = ENERGIES if option == "energy" else STRENGTHS
    return Row({"name": name, **options}, option, ladder if option else (), first)


def _keeping(name: str, option: str = "", first: float = 0.0, **options: Any) -> Row:
    ladder = STRENGTHS if option else ()
    return Row({"name": name, **options}, option, ladder, first, exemplars=True)


CROPS: Mapping[str, Any] = {"training.local.augment": "crop_flip"}
ROWS: Mapping[str, Row] = {
    "fedavg": _row("fedavg"),
    "fedavg, masked": _row("fedavg", masked=True),
    "fedavg, cosine": Row({"name": "fedavg"}, changes={"training.schedule.name": "cosine"}),
    "fedavg, crops": Row({"name": "fedavg"}, changes=CROPS),
    "fedavg, crops, view batch": Row(
        {"name": "fedavg"}, changes={**CROPS, "training.local.view_batch": 4}
    ),
    "fedavg, infinite": Row({"name": "fedavg"}, changes={"training.schedule.name": "infinite"}),
    "fedprox": _row("fedprox", "mu", 0.01),
    "l2": _row("l2", "strength", 0.01),
    "ewc": _row("ewc", "strength", 1.0),
    "mas": _row("mas", "strength", 0.01),
    "lwf": _row("lwf", "strength", 1.0),
    "cfed": _row("cfed"),
    "cfed, masked": _row("cfed", "strength", 0.03, masked=True),
    "prd": _row("prd", "distillation", 1.0),
    "lingo": Row({"name": "lingo"}, "scale", SCALES, 4.0),
    "target": _row("target", "strength", 0.3),
    "mfcl": _row("mfcl", "strength", 0.03),
    "lander": _row("lander", "size", 0.1),
    "osft": _row("osft", "energy", 0.4),
    "fot": _row("fot", "energy", 0.8),
    "fot, head": _row("fot", "energy", 0.8, head="protect"),
    "cuber": _row("cuber", "energy", 0.8),
    "gpm": _row("gpm", "energy", 0.8, energy_step=0.0),
    "gpm, head": _row("gpm", "energy", 0.8, energy_step=0.0, head="protect"),
    "kron": _row("kron", "mu", 0.1),
    "analytic": _row("analytic", "gamma", 0.1),
    "analytic, projected": _row("analytic", "gamma", 0.1, projection=1000),
    "replay": _keeping("replay"),
    "replay, reservoir": _keeping("replay", selection="reservoir"),
    "replay, herding": _keeping("replay", selection="herding"),
    "replay, balanced": _keeping("replay", selection="balanced"),
    "replay, crops": Row({"name": "replay"}, exemplars=True, changes=CROPS),
    "replay, crops, view batch": Row(
        {"name": "replay"}, exemplars=True, changes={**CROPS, "training.local.view_batch": 4}
    ),
    "replay, weighted": _keeping("der", "beta", 1.0, alpha=0.0),
    "der": _keeping("der", "beta", 1.0, alpha=1.0),
    "refed": _keeping("refed"),
    "fedcbdr": _keeping("fedcbdr"),
    "fpf": _keeping("fpf"),
    "glfc": Row({"name": "glfc"}, "distillation", RATIOS, 0.5, exemplars=True),
    "joint": _row("joint"),
}


@dataclass(frozen=True)
class Setting:
    """A stream, with all of a run but the method.

    Attributes:
        title: For tables.
        config: File in configs/.
        budget: Bytes of examples that a client may keep.
        samples: Examples of a stage that all clients together may keep where a method counts so:
            after the last stage they take as many bytes as all budgets.
        changes: Overrides of the config.
        cut: Whether its data are the study's cut of MNIST.
    """

    title: str
    config: str
    budget: int
    samples: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    cut: bool = False


SETTINGS: Mapping[str, Setting] = {
    "split-mnist": Setting(
        "Split MNIST, class-incremental: 5 tasks, 11,250 examples of 10 clients, Dirichlet 0.5",
        "kron_split_mnist.toml",
        200_000,
        127,
        cut=True,
    ),
    "cifar100-small": Setting(
        "CIFAR-100's superclasses in small, class-incremental: 10 tasks of two, 5 clients, "
        "Dirichlet 0.5, cnn",
        "kron_cifar100_small.toml",
        600_000,
        24,
        {"stream.name": "class_incremental", "stream.tasks": 10, "stream.clients": 5},
    ),
    "pacs": Setting(
        "PACS, domain-incremental: 4 domains, 10 clients, Dirichlet 0.5, cnn",
        "pacs_domains.toml",
        600_000,
        122,
        # The network of the stream above: with pacs_domains' own, a run takes twice as long.
        {"model.channels": [16, 32, 32], "model.hidden": 64},
    ),
}
PARTITION = {"name": "dirichlet", "alpha": 0.5}
SMALL = {
    "stream.tasks": 2,
    "stream.clients": 3,
    "training.rounds": 2,
    "training.local.batch_size": 8,
    "training.local.lr": 0.1,
}
SMOKE: Mapping[str, Mapping[str, Any]] = {
    "split-mnist": {
        "dataset": {"name": "synthetic", "features": [1, 4, 4], "train": 240, "test": 50},
        "model.hidden": [12],
        **SMALL,
    },
    "pacs": {
        "dataset": {
            "name": "synthetic",
            "features": [3, 8, 8],
            "train": 150,
            "test": 50,
            "domains": 2,
        },
        "model": {"name": "cnn", "channels": [4], "hidden": 8, "groups": 2},
        **SMALL,
    },
}
# Servers that train generators or invert gradients do little of it.
LIGHT: Mapping[str, Mapping[str, Any]] = {
    "glfc": {"images": 4, "iterations": 4},
    "lander": {"images": 32, "rounds": 2, "steps": 4, "width": 8},
    "mfcl": {"steps": 4, "batch": 32, "width": 8},
    "target": {"images": 32, "rounds": 2, "steps": 4, "batch": 32, "width": 8},
}
