"""Canaries in real runs: right claims stand, wrong ones fall, the estimate is near the truth."""

from __future__ import annotations

import csv
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedcl
import fedcl.core.release
from fedcl.audits.canaries import Canaries
from fedcl.channels.central_dp import CentralDp
from fedcl.config import parse
from fedcl.core.accounting.calibration import multiplier
from fedcl.core.accounting.composition import Charge
from fedcl.core.channel import Sending
from fedcl.core.client import Client, Reply
from fedcl.core.errors import ConfigError
from tests.audits.test_residual import none, private

ALL = {"rounds": 3}
DRAWN = {"rounds": 3, "cohort": 2, "sampling": "poisson"}


def found(seed: int = 1, z: float = 3.0, training: Any = ALL, **options: Any) -> dict[str, Any]:
    table = private(
        seed=seed,
        training=training,
        channel=[{"name": "central_dp", "noise": "seeded", "noise_multiplier": z}],
        audit=[{"name": "canaries", **options}],
    )
    audits: dict[str, Any] = fedcl.run(parse(table)).summary["audits"]["canaries"]
    return audits


@pytest.mark.parametrize("training", [ALL, DRAWN], ids=["all", "poisson"])
def test_right_claims_stand_and_something_is_found(training: Any) -> None:
    runs = [found(seed, 2.0, training) for seed in range(8)]
    assert not any(run["failed"] for run in runs)
    assert all(run["epsilon_lower"] <= run["epsilon_claimed"] for run in runs)
    assert statistics.median(run["epsilon_lower"] for run in runs) > 0.5


@pytest.mark.parametrize("epsilon", [3.0, 8.0])
def test_the_estimate_is_near_the_truth(epsilon: float) -> None:
    """T10: the median of eight runs lies within a fifth; single ones scatter more."""
    z = multiplier(lambda z: [Charge(z, 1.0, 6)], epsilon, 1e-5)
    runs = [found(seed, z) for seed in range(8)]
    claimed = runs[0]["epsilon_claimed"]
    assert claimed == pytest.approx(epsilon, abs=1e-3)
    middle = statistics.median(run["epsilon_estimate"] for run in runs)
    assert middle == pytest.approx(claimed, rel=0.2)


def test_forgotten_noise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedcl.core.release, "gaussian", none)
    assert all(found(seed)["failed"] for seed in range(4))


@pytest.mark.parametrize("fault", ["weight", "clip"])
def test_a_client_that_counts_three_times_is_found(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = CentralDp.upload

    def heavy(self: CentralDp, reply: Reply, client: Client, sending: Sending) -> Reply:
        if fault == "weight":
            return replace(right(self, reply, client, sending), weight=3.0)
        return right(replace(self, clip=3 * self.clip), reply, client, sending)

    monkeypatch.setattr(CentralDp, "upload", heavy)
    assert sum(found(seed)["failed"] for seed in range(6)) >= 5


def test_canaries_that_never_joined_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit reads releases, not its own coins."""
    monkeypatch.setattr(CentralDp, "upload", lambda self, reply, client, sending: _empty(reply))
    runs = [found(seed) for seed in range(4)]
    assert not any(run["failed"] for run in runs)
    assert max(run["epsilon_lower"] for run in runs) < 0.8


def _empty(reply: Reply) -> Reply:
    return replace(reply, tensors={k: torch.zeros_like(v) for k, v in reply.tensors.items()})


def test_its_tables_tell_every_canary_and_every_stage(tmp_path: Path) -> None:
    table = private(audit=[{"name": "canaries", "canaries": 40}])
    fedcl.run(parse(table), tmp_path / "run")
    folder = tmp_path / "run" / "audit"
    rows = list(csv.DictReader((folder / "canaries.csv").read_text().splitlines()))
    included = np.array([row["included"] == "1" for row in rows])
    total = np.array([float(row["total"]) for row in rows])
    assert len(rows) == 40 and 8 < included.sum() < 32
    # Six releases of norm 1 in units of the clip; what is left is noise of 1.3 times the root of 6.
    assert total[included].mean() - total[~included].mean() == pytest.approx(6, abs=3)
    stages = list(csv.DictReader((folder / "canaries_by_stage.csv").read_text().splitlines()))
    assert [row["stage"] for row in stages] == ["0", "1"]


def test_what_cannot_be_audited_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[audit\[0\]\] no step of \[\[channel\]\] claims"):
        fedcl.run(parse(private(channel=[], audit=[{"name": "canaries"}])))
    for wrong in ({"canaries": 3}, {"confidence": 1.0}, {"guesses": 0.0}):
        with pytest.raises(ValueError, match="must"):
            Canaries(**wrong)
