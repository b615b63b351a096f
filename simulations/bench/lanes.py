"""One measurement a process: an engine does the reference work until the clock has seen enough.

`main` is what the processes run: it reads a measurement's description, a JSON object, from the
command line and prints its result as one JSON line.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from bench.clock import Clock, Enough
from bench.work import WORKS, client_data, make_model, train

Spec = Mapping[str, Any]

# Clients whose sums are made together, `training.fold`: what suits clients as small as these, and
# leaves work for two processes in a cohort of 100.
_FOLD = 50


def main() -> None:
    """Measures what the first argument describes."""
    torch.set_num_threads(1)
    spec = json.loads(sys.argv[1])
    module, _, name = MEASURES[spec["measure"]].partition(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(spec)))


def plain_loop(spec: Spec) -> dict[str, Any]:
    """Measures one resident model and a loop over the clients, in plain PyTorch."""
    cohort, work, device = spec["cohort"], WORKS[spec["model"]], torch.device(spec["device"])
    clock = Clock(spec["seconds"])
    data = [client_data(client, work.examples) for client in range(cohort)]
    data = [(x.to(device), y.to(device)) for x, y in data]
    model = make_model(spec["model"]).to(device)
    while True:
        received = {name: value.clone() for name, value in model.state_dict().items()}
        total = {name: torch.zeros_like(value) for name, value in received.items()}
        for x, y in data:
            model.load_state_dict(received)
            train(model, x, y, work)
            for name, value in model.state_dict().items():
                total[name] += value / cohort
        model.load_state_dict(total)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if clock.tick():
            return clock.result(cohort)


def fedcl_engine(spec: Spec) -> dict[str, Any]:
    """Measures an engine of ours through the public interface: all that a run does, files too."""
    import fedcl.experiment  # what it loads belongs to the imports, not to the first round

    with tempfile.TemporaryDirectory() as folder:
        config = write_config(spec, Path(folder))
        fedcl.load_config(config)  # loads the plug-ins
        if spec["engine"]["name"] == "ray":
            import ray  # noqa: F401
        clock = Clock(spec["seconds"])

        def watch(now: fedcl.experiment.Progress) -> None:
            if spec["device"] == "cuda":
                torch.cuda.synchronize()
            if clock.tick():
                raise Enough

        run_until_enough(config, Path(folder) / "run", watch)
    return clock.result(spec["cohort"])


def write_config(spec: Spec, folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Writes the reference work's config for fedcl and returns its path.

    Args:
        spec: The measurement.
        folder: Where to.
        changes: Overrides by dotted key.
    """
    import tomli_w
    from bench.plugins import table

    from fedcl.config import override

    config = table(spec["model"], spec["cohort"], spec["engine"])
    fold = spec.get("fold", _FOLD)
    config["training"] |= {"device": spec["device"], "fold": fold}
    if spec["model"] != "cnn" and spec["engine"]["name"] in ("vectorized", "ray"):
        config["engine"] = {"block": fold, **config["engine"]}
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(override(config, changes or {})), encoding="utf-8")
    return path


def run_until_enough(config: Path, out: Path, watch: Callable[[Any], None]) -> None:
    """Runs a config until the watcher has seen enough."""
    import fedcl

    with suppress(Enough):
        fedcl.run(fedcl.load_config(config), out, watch=watch)


# Looked up by name, since each environment has only some of what the others import.
MEASURES = {
    "bits": "bench.bits:bits",
    "commit": "bench.parts:commit",
    "fedcl": "bench.lanes:fedcl_engine",
    "flower": "bench.flower_work:measure",
    "long": "bench.long:measure",
    "parts": "bench.parts:parts",
    "peak": "bench.machine:peak",
    "pfl": "bench.pfl_work:measure",
    "plain loop": "bench.lanes:plain_loop",
    "registered": "bench.registered:measure",
}
