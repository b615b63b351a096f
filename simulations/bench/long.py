"""Memory over a long run: a small stream with memories, all files, and samples on the way."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.memory import megabytes

STAGES = 4


def table(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config: clients remember examples, stages change, and Ray has several blocks."""
    return {
        "dataset": {"name": "synthetic", "features": 20, "train": 4000, "test": 200},
        "stream": {"name": "domain_incremental", "tasks": STAGES, "clients": 40},
        "model": {"name": "mlp", "hidden": [32]},
        "method": {"name": spec["method"]},
        "training": {
            "rounds": max(1, spec["rounds"] // STAGES),
            "cohort": 20,
            "fold": 8,
            "device": "cpu",
            "local": {"name": "sgd", "epochs": 1, "batch_size": 10, "lr": 0.05},
        },
        "engine": dict(spec["engine"]),
    }


def measure(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns (round, MB by process) pairs, one every `every` rounds, and tells of them."""
    import tomli_w

    import fedcl.experiment

    samples: list[tuple[int, dict[str, float]]] = []

    def watch(now: fedcl.experiment.Progress) -> None:
        if now.done % spec["every"] == 0:
            samples.append((now.done, megabytes()))
            if now.done % (10 * spec["every"]) == 0:
                size = sum(samples[-1][1].values())
                told = f"  round {now.done} of {now.total}: {size:.1f} MB"
                print(told, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        config.write_text(tomli_w.dumps(table(spec)), encoding="utf-8")
        fedcl.run(fedcl.load_config(config), Path(folder) / "run", watch=watch)
    return {"samples": samples}
