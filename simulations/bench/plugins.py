"""The reference work as plug-ins and configs of fedcl, found by names like any user's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from bench.work import CLASSES, SHAPE, WORKS, client_data, make_cnn
from torch import nn

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.table import ArrayTable


@dataclass(frozen=True)
class ReferenceData:
    """The clients' examples of the reference work; column `client` says whose they are.

    Attributes:
        clients: Number of clients.
        examples: Examples of each.
    """

    clients: int = 10
    examples: int = 50

    def load(self) -> Dataset:
        """Returns arrays in memory."""
        count = self.clients * self.examples
        values = np.empty((count, *SHAPE), dtype=np.float32)
        labels = np.empty(count, dtype=np.int64)
        for client in range(self.clients):
            own = slice(client * self.examples, (client + 1) * self.examples)
            x, y = client_data(client, self.examples)
            values[own], labels[own] = x.numpy(), y.numpy()
        owner = np.repeat(np.arange(self.clients, dtype=np.int64), self.examples)
        x, y = client_data(-1, 100)
        test = ArrayTable(x.numpy(), y.numpy())
        train = ArrayTable(values, labels, {"client": owner})
        return Dataset("reference", train, test, CLASSES, SHAPE)


@dataclass(frozen=True)
class ReferenceCnn:
    """The small convolutional network of the reference work."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Returns the network; raises ValueError for other inputs than the reference work's."""
        if shape != SHAPE or classes != CLASSES:
            raise ValueError(f"it is made for inputs of shape {SHAPE} and {CLASSES} classes")
        return make_cnn()


MODELS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [128]},
    "cnn": {"name": "bench.plugins:ReferenceCnn"},
    "mlp_dropout": {"name": "mlp", "hidden": [400, 400, 400], "dropout": [0.2, 0.5, 0.5]},
}


def table(model: str, clients: int, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of the reference work; all clients take part in every round.

    Args:
        model: A name of `bench.work.WORKS`.
        clients: Number of clients.
        engine: The table `[engine]`.
    """
    work = WORKS[model]
    return {
        "dataset": {
            "name": "bench.plugins:ReferenceData",
            "clients": clients,
            "examples": work.examples,
        },
        "stream": {
            "name": "domain_incremental",
            "tasks": 1,
            "partition": {"name": "natural", "column": "client"},
        },
        "model": copy.deepcopy(dict(MODELS[model])),
        "method": {"name": "fedavg"},
        "training": {
            "rounds": 1_000_000,  # the clock ends it
            "device": "cpu",
            "local": {
                "name": "sgd",
                "epochs": 1,
                "batch_size": work.batch_size,
                "lr": work.lr,
            },
        },
        "evaluation": {"every": 0, "clients": 0},
        "engine": dict(engine),
    }
