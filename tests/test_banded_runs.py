"""DP-FTRL through the real server: noise that is correlated over rounds, for clients in turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedcl
from fedcl.config import Experiment, parse
from fedcl.core import release
from fedcl.core.accounting.composition import Charge, epsilon
from fedcl.core.errors import ConfigError
from fedcl.core.privacy.banded import coefficients, sensitivity


def turns(bands: int, **others: Any) -> Experiment:
    """Twelve clients in turns, three at a time: each waits for four rounds."""
    table = {
        "seed": 5,
        "dataset": {"name": "synthetic", "features": [20], "classes": 4, "train": 240, "test": 40},
        "stream": {"name": "class_incremental", "tasks": 2, "clients": 12},
        "model": {"name": "mlp", "hidden": [100]},
        "method": {"name": "fedavg"},
        "training": {"rounds": 8, "cohort": 3, "sampling": "round_robin"},
        "engine": {"name": "serial"},
        "evaluation": {"every": 0},
        "channel": [{"name": "central_dp", "noise_multiplier": 1.1, "bands": bands}],
        "audit": [{"name": "residual"}, {"name": "canaries"}],
    }
    return parse({**table, **others})


def test_banded_noise_is_charged_once_a_stage_by_its_sensitivity() -> None:
    summary = fedcl.run(turns(4)).summary
    sens = sensitivity(coefficients(4), 8, 4)
    assert summary["epsilon"] == pytest.approx(epsilon([Charge(1.1 / sens, 1.0, 2)], 1e-5))
    assert summary["epsilon_by_stage"][0] == pytest.approx(epsilon([Charge(1.1 / sens)], 1e-5))
    residual, canaries = summary["audits"]["residual"], summary["audits"]["canaries"]
    assert not residual["failed"] and residual["releases"] == 16
    assert not canaries["failed"] and canaries["epsilon_lower"] <= summary["epsilon"]
    # One band is independent noise, which is charged by turns: twice in each stage.
    plain = fedcl.run(turns(1)).summary["epsilon"]
    assert plain == pytest.approx(epsilon([Charge(1.1, 1.0, 4)], 1e-5))


def test_banded_noise_that_is_not_correlated_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "correlated", lambda column, number, drawn: drawn(number))
    assert fedcl.run(turns(4)).summary["audits"]["residual"]["failed"]


def test_a_resumed_run_repeats_its_banded_noise(tmp_path: Path) -> None:
    seeded = [{"name": "central_dp", "bands": 4, "noise": "seeded"}]
    table = {"channel": seeded, "audit": [], "checkpoint": {"seconds": 0.0}}

    def stop(progress: Any) -> None:
        if progress.done == 5:
            raise KeyboardInterrupt

    whole = fedcl.run(turns(4, **table)).params
    with pytest.raises(KeyboardInterrupt):
        fedcl.run(turns(4, **table), tmp_path / "run", watch=stop)
    resumed = fedcl.run(turns(4, **table), tmp_path / "run", resume=True).params
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())


def test_banded_noise_wants_clients_who_wait() -> None:
    for training in (
        {"rounds": 8, "cohort": 4, "sampling": "round_robin"},
        {"rounds": 8, "cohort": 3, "sampling": "poisson"},
        {"rounds": 8},
    ):
        with pytest.raises(ConfigError, match="bands = 4 needs clients who wait"):
            fedcl.run(turns(4, training=training))
