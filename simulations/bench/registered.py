"""Rounds of a fixed cohort out of any number of registered clients: time and memory."""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.clock import Clock, Enough
from bench.lanes import run_until_enough


def table(clients: int, cohort: int) -> dict[str, Any]:
    """Returns the config: each client draws 50 of the same 50,000 examples."""
    return {
        "dataset": {
            "name": "synthetic",
            "features": 64,
            "train": 50_000,
            "test": 100,
        },
        "stream": {
            "name": "domain_incremental",
            "tasks": 1,
            "clients": clients,
            "partition": {"name": "overlapping", "examples": 50},
        },
        "model": {"name": "mlp", "hidden": [128]},
        "method": {"name": "fedavg"},
        "training": {
            "rounds": 1_000_000,  # the clock ends it
            "cohort": cohort,
            "device": "cpu",
            "local": {"name": "sgd", "epochs": 1, "batch_size": 10, "lr": 0.05},
        },
        "evaluation": {"every": 0, "clients": 0},
        "engine": {"name": "vectorized"},
    }


def measure(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Measures rounds of `cohort` out of `clients`, and the most memory the process ever had."""
    import tomli_w

    import fedcl.experiment  # what it loads belongs to the imports

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        text = tomli_w.dumps(table(spec["clients"], spec["cohort"]))
        config.write_text(text, encoding="utf-8")
        clock = Clock(spec["seconds"])

        def watch(now: fedcl.experiment.Progress) -> None:
            if clock.tick():
                raise Enough

        run_until_enough(config, Path(folder) / "run", watch)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return {**clock.result(spec["cohort"]), "clients": spec["clients"], "peak_mb": most}
