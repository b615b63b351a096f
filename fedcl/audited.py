"""The audits of a run: opened before its first round, and what they found at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fedcl.config import Experiment
from fedcl.core.accounting.ledger import Ledger
from fedcl.core.audit import Repeat, Subject
from fedcl.core.channel import mechanism
from fedcl.core.errors import ConfigError
from fedcl.core.evaluate import predicted
from fedcl.core.params import Params
from fedcl.core.site import Site
from fedcl.core.watch import Finding, Watch
from fedcl.record import write_arrays, write_rows

NOTHING: Mapping[str, Any] = {"epsilon_lower": None, "audits": None}


def opened_watches(
    experiment: Experiment, site: Site, ledger: Ledger, whole: bool, repeat: Repeat | None = None
) -> tuple[Watch, ...]:
    """Begins to watch a run with the audits of its config.

    Args:
        experiment: The experiment.
        site: Where its clients run.
        ledger: What it releases.
        whole: Whether the run begins now, and does not go on from a checkpoint.
        repeat: Runs the same experiment once more.

    Raises:
        ConfigError: There is nothing in this run that an audit could look at.
    """
    protection = mechanism(experiment.channel)
    subject = Subject(
        site=site,
        stream=site.population.stream,  # type: ignore[attr-defined]
        method=experiment.method,
        seed=experiment.seed,
        rounds=experiment.training.rounds,
        sampling=experiment.training.sampling,
        cohort=experiment.training.cohort,
        mechanism=protection,
        spent=lambda: math.inf if protection is None else ledger.epsilon(protection.delta),
        whole=whole,
        repeat=repeat,
        poison=site.population.poison,  # type: ignore[attr-defined]
    )
    watches = []
    for index, audit in enumerate(experiment.audit):
        try:
            watches.append(audit.open(subject))
        except ConfigError as error:
            raise ConfigError(f"[audit[{index}]] {error}") from error
    return tuple(watches)


def shown(
    watches: Sequence[Watch], experiment: Experiment, model: nn.Module, state: Any, stage: int
) -> None:
    """Lets audits ask the global model at a stage's end.

    Args:
        watches: The audits.
        experiment: Its method says how to predict.
        model: The architecture.
        state: The method's state.
        stage: The stage.
    """
    method, batch = experiment.method, experiment.evaluation.batch_size
    for watch in watches:
        watch.stage_ended(
            stage, lambda x, allowed: predicted(method, state, model, x, allowed, batch)
        )


def examined(
    experiment: Experiment, watches: Sequence[Watch], params: Params, folder: Path | None
) -> dict[str, Any]:
    """Returns what summary.json says of audits, and writes their tables.

    `epsilon_lower` is the largest bound from below that one of them gives, or None.

    Args:
        experiment: The experiment.
        watches: Its audits, in the order of the config.
        params: The final global model.
        folder: The run's folder, or None.
    """
    if not watches:
        return dict(NOTHING)
    names = _different([part["name"] for part in experiment.resolved["audit"]])
    found = {name: watch.finish(params) for name, watch in zip(names, watches, strict=True)}
    if folder is not None:
        _write(folder / "audit", found)
    bounds = [f.numbers.get("epsilon_lower") for f in found.values()]
    lower = max((b for b in bounds if isinstance(b, int | float)), default=None)
    return {
        "epsilon_lower": "inf" if lower == math.inf else lower,
        "audits": {
            name: {**_plain(finding), "failed": finding.failed, "note": finding.note}
            for name, finding in found.items()
        },
    }


def _plain(finding: Finding) -> dict[str, Any]:
    """JSON has neither infinity nor NaN."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in finding.numbers.items()
    }


def _different(names: Sequence[str]) -> list[str]:
    """Returns names, numbered from the second of the same on."""
    seen: dict[str, int] = {}
    found = []
    for name in (name.rpartition(":")[2] for name in names):
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def _write(folder: Path, found: Mapping[str, Finding]) -> None:
    for name, finding in found.items():
        for table, rows in finding.tables.items():
            columns = list(rows[0]) if rows else []
            write_rows(folder / f"{_file(name, table)}.csv", columns, rows)
        for picture, arrays in finding.pictures.items():
            write_arrays(folder / f"{_file(name, picture)}.npz", arrays)


def _file(audit: str, part: str) -> str:
    return part if part == audit else f"{audit}_{part}"
