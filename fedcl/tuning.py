"""Measures which path trains a config's clients fastest, and writes the choice into the config.

A choice decides the bits of a result. It is made once, before a run begins, and stands in its
`config.toml` like any other option: the same file gives the same bits on any machine.
"""

from __future__ import annotations

import statistics
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcl.config import Experiment, parse
from fedcl.core.batch import run_batched
from fedcl.core.block import Batching
from fedcl.core.block import Path as TrainingPath
from fedcl.core.client import Model
from fedcl.core.data.stream import Stream
from fedcl.core.errors import ConfigError, FedclError
from fedcl.core.local import Local, cross_entropy
from fedcl.core.params import copy
from fedcl.core.privacy.noise import secret_root
from fedcl.core.request import Position, Request
from fedcl.core.site import Site

_PATHS: tuple[TrainingPath, ...] = ("loop", "fused", "grouped", "vmap")
_BLOCKS = (8, 16, 32, 64)
_REPEATS = 3


def tuned(experiment: Experiment, site: Site, folder: Path | None) -> Experiment:
    """Returns the experiment with the engine's path and block chosen, if `engine.tune` asks for it.

    A run that goes on keeps the choice in its folder.

    Args:
        experiment: A validated experiment.
        site: Where its clients run.
        folder: The run's folder, or None.
    """
    engine: Mapping[str, Any] = experiment.resolved["engine"]
    if not engine.get("tune"):
        return experiment
    before = folder / "config.toml" if folder is not None else None
    if before is not None and before.exists():
        chosen = tomllib.loads(before.read_text(encoding="utf-8")).get("engine", {})
        choice = {key: chosen[key] for key in ("path", "block") if key in chosen}
    else:
        choice = _fastest(experiment, site)
    return parse({**experiment.resolved, "engine": {**engine, **choice, "tune": False}})


def _fastest(experiment: Experiment, site: Site) -> dict[str, Any]:
    """Returns the path and block that train a fold block of the first stage in the least time."""
    stream: Stream = site.population.stream  # type: ignore[attr-defined]
    members = stream.members(0)
    ids = tuple(int(members[k]) for k in range(min(site.fold, len(members))))
    start = Model(copy(dict(site.model.named_parameters())))
    # A trainer that hides examples wants keys; what it computes here is thrown away.
    request = Request(Position(0, 0, 0), Local(cross_entropy), start, secret=secret_root())
    candidates = [Batching("loop", len(ids))] + [
        Batching(path, block)
        for path in _PATHS[1:]
        for block in _BLOCKS
        if block <= max(len(ids), _BLOCKS[0])
    ]
    times: dict[Batching, list[float]] = {candidate: [] for candidate in candidates}
    for _ in range(_REPEATS + 1):
        for candidate in list(times):
            began = time.perf_counter()
            try:
                run_batched(site, request, ids, {}, candidate)
            except FedclError:
                del times[candidate]  # this model has no such path
                continue
            times[candidate].append(time.perf_counter() - began)
    if not times:
        raise ConfigError("[engine] tune = true: no path could train the first clients")
    # The first time of each pays for what is made once.
    best = min(times, key=lambda candidate: statistics.median(times[candidate][1:]))
    return {"path": best.path, "block": best.block}
