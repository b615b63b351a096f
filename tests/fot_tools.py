"""FOT's tiny experiments, data made by hand, and bases the slow way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.config import Experiment, parse
from fedcl.core.params import Params
from tests.tiny import (
    stream_of,
    tiny,
    trace,
)

DOUBLE = {"training.dtype": "float64"}
MLP = {"name": "mlp", "hidden": [12, 8]}


def fot(
    changes: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **options: Any
) -> Experiment:
    """The tiny experiment with FOT, in float64."""
    return tiny(
        {**DOUBLE, **(changes or {})}, method={"name": "fot", **options}, model=model or MLP
    )


def pooled(experiment: Experiment, stage: int, clients: Sequence[int] | None = None) -> Tensor:
    """The inputs of all clients at a stage, in float64."""
    stream = stream_of(experiment)
    ids = stream.members(stage) if clients is None else clients
    return torch.cat([stream.train(i, stage).x for i in ids]).double()


def flat(params: Params, name: str, biases: bool = False) -> Tensor:
    """A layer's weight as an (out, d) matrix, with its bias as the last column."""
    weight = params[name].double().flatten(1)
    bias = params.get(name.removesuffix("weight") + "bias")
    return torch.cat([weight, bias.double()[:, None]], 1) if biases and bias is not None else weight


def mlp_inputs(params: Params, x: Tensor) -> dict[str, Tensor]:
    """The inputs of the layers of MLP, by hand."""
    found = {"fc1.weight": x.flatten(1)}
    found["fc2.weight"] = F.relu(found["fc1.weight"] @ params["fc1.weight"].T + params["fc1.bias"])
    found["head.weight"] = F.relu(found["fc2.weight"] @ params["fc2.weight"].T + params["fc2.bias"])
    return found


def slow_basis(x: Tensor, old: Tensor | None, energy: float) -> tuple[Tensor, Tensor]:
    """Returns the principal directions of the residual that hold the share, and all energies."""
    rest = x if old is None else x - x @ old @ old.T
    _, singular, vectors = torch.linalg.svd(rest, full_matrices=False)
    total = float(x.square().sum())
    held = total - float(rest.square().sum())
    k = 0
    while held + float(singular[:k].square().sum()) < energy * total * (1 - 1e-12):
        k += 1
    new = vectors[:k].T
    return (new if old is None else torch.cat([old, new], 1)), singular.square() / total


def held_share(x: Tensor, basis: Tensor) -> float:
    return float((x @ basis).square().sum() / x.square().sum())


def write_domains(folder: Path, inputs: Sequence[np.ndarray]) -> None:
    """Writes a data set with a domain for each array of inputs, the same for training and test."""
    x = np.concatenate(inputs)
    y = np.arange(len(x), dtype=np.int64) % 2
    domain = np.repeat(np.arange(len(inputs)), [len(part) for part in inputs])
    columns = {"x": x, "y": y, "domain": domain}
    both: dict[str, Any] = {f"{k}_{s}": v for k, v in columns.items() for s in ("train", "test")}
    np.savez(folder / "crafted.npz", **both)


def crafted(folder: Path, energies: Sequence[Sequence[float]], width: int = 8) -> Path:
    """Writes one domain for each list: its rows are unit vectors times the roots of the energies,
    each twice, so that two clients can share them; its own right singular vectors are the units."""
    inputs = []
    for own in energies:
        rows = np.repeat(np.diag(np.sqrt(np.array(own) / 2)), 2, 0)
        rows = np.pad(rows, ((0, 0), (0, width - len(own))))
        inputs.append(rows.astype(np.float32))
    write_domains(folder, inputs)
    return folder


def linear(folder: Path, clients: int = 1, dtype: str = "float64", **options: Any) -> Experiment:
    return parse(
        {
            "dataset": {"name": "npz", "root": str(folder), "file": "crafted.npz"},
            "stream": {
                "name": "domain_incremental",
                "transform": "column",
                "tasks": 0,
                "clients": clients,
            },
            "model": {"name": "mlp", "hidden": [], "bias": False},
            "method": {"name": "fot", **options},
            "training": {"rounds": 1, "dtype": dtype, "local": {"name": "sgd", "lr": 0.1}},
            "engine": {"name": "serial"},
            "checkpoint": {"seconds": 0},
        }
    )


def ranks(experiment: Experiment, out: Path) -> list[int]:
    _, states = trace(experiment, out)
    return [state.basis["head.weight"].shape[1] for state in states]
