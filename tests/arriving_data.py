"""Files as they arrive: written under another name, then renamed; a house of several clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedcl.config import Experiment, override, parse
from tests.tiny import TABLE

SHAPE = (1, 4, 4)
CLASSES = 4


def arrival(client: int, number: int, rows: int = 24) -> dict[str, Any]:
    """Returns the arrays of a client's arrival: blobs that move from one arrival to the next."""
    centres = np.random.default_rng(7).normal(size=(CLASSES, 16)) * 1.5
    random = np.random.default_rng(1000 * client + number)
    y = random.permutation(np.arange(rows + client) % CLASSES)
    x = centres[y] + random.normal(size=(len(y), 16)) + number
    return {"x": x.reshape(-1, *SHAPE).astype(np.float32), "y": y}


def arrive(folder: Path, name: str, **arrays: Any) -> Path:
    """Lets a file arrive, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.part"
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    return partial.replace(folder / name)


def deliver(root: Path, client: int, number: int) -> Path:
    """Lets a client's arrival of that number come into its folder of a house."""
    return arrive(root / str(client), f"{number:03}.npz", **arrival(client, number))


def house(root: Path, clients: int = 5, arrivals: int = 3) -> Path:
    """Returns a folder with all arrivals of all clients."""
    for client in range(clients):
        (root / str(client)).mkdir(parents=True)
        for number in range(arrivals):
            deliver(root, client, number)
    return root


def live(root: Path | str, changes: dict[str, Any] | None = None) -> Experiment:
    """Returns the tiny experiment on data that arrive below a folder."""
    data = {"name": "arrivals", "root": str(root), "shape": list(SHAPE), "classes": CLASSES}
    stream = {"name": "live", "clients": 5, "stages": 3}
    evaluation = {"where": "clients", "every": 1}
    table = {**TABLE, "dataset": data, "stream": stream, "evaluation": evaluation}
    return parse(override(table, changes or {}))
