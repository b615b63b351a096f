"""Privacy of single records through the real server: what is charged, refused, and told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fedcl
from fedcl.core.accounting import Charge, epsilon
from fedcl.core.errors import ExposureError
from tests.conformance import every_method
from tests.tiny import scenario, tiny

# Five clients of 16 examples at each of two stages; no row comes again.
EVEN = {**scenario("class"), "stream.partition": {"name": "iid"}}
DP = {"name": "dp_sgd", "noise_multiplier": 2.0, "batch_size": 8, "lr": 0.05}


def private(changes: Mapping[str, Any] | None = None, **options: Any) -> fedcl.Experiment:
    local = {"training.local": {**DP, **options}}
    return tiny({**EVEN, "evaluation.every": 0, **(changes or {}), **local})


def test_a_record_pays_for_the_rounds_of_its_stage(tmp_path: Path) -> None:
    summary = fedcl.run(private({"training.cohort": 0}, delta=1e-4), tmp_path / "run").summary
    stage = epsilon([Charge(2.0, 8 / 16, 2 * 2)], 1e-4)
    assert summary["epsilon"] == pytest.approx(stage, rel=1e-9)
    assert summary["epsilon_by_stage"] == [summary["epsilon"]] * 2
    assert summary["epsilon_by_task_met"] == [[summary["epsilon"]] * 2, [None, summary["epsilon"]]]
    assert (summary["delta"], summary["privacy_unit"]) == (1e-4, "record")
    assert summary["epsilon_rdp"] > summary["epsilon"]
    assert summary["sampling"] == "poisson" and "record" in summary["adjacency"]
    by_unit = {"client": None, "client_task": None, "client_round": None}
    assert summary["epsilon_by_unit"] == {**by_unit, "record": summary["epsilon"]}


@every_method
def test_every_method_runs_with_an_exact_epsilon_or_is_refused_by_name(name: str) -> None:
    public = {"stream.public": 0.1} if name == "cfed" else {}
    changes = {"method.name": name, "training.rounds": 1, **public}
    try:
        experiment = private(changes, clip=0.5)
    except ExposureError as error:
        assert f"method {name!r}" in str(error) and "; " in str(error)
        assert name in ("fedcbdr", "fpf", "glfc", "prd", "refed")
        return
    record = fedcl.run(experiment)
    assert 0 < record.summary["epsilon"] < math.inf
    assert all(math.isfinite(float(v.abs().sum())) for v in record.params.values())


# --- What a noised statistic may look like. ---

DROWNED = ("analytic", "cuber", "ewc", "fot", "gpm", "kron", "lander", "mas", "mfcl", "target")


@pytest.mark.parametrize("name", DROWNED)
@pytest.mark.parametrize("clip", [1e-3, 1e5])
def test_methods_stay_finite_with_statistics_that_are_noise(name: str, clip: float) -> None:
    names = ("correlations", "fisher", "gram", "moments", "sensitivity")
    clips = {"clips": dict.fromkeys(names, clip)}
    changes = {"method.name": name, "training.rounds": 1, "stream.tasks": 4, "training.cohort": 0}
    cheap: dict[str, dict[str, Any]] = {
        "analytic": {"method.balance": "expected"},
        "lander": {"method.steps": 2, "method.images": 32, "stream.tasks": 2},
        "mfcl": {"method.steps": 2, "stream.tasks": 2},
        "target": {"method.steps": 2, "method.images": 32, "stream.tasks": 2},
    }
    changes |= cheap.get(name, {})
    record = fedcl.run(private(changes, clip=1e-3, noise_multiplier=20.0, **clips))
    assert all(math.isfinite(float(v.abs().sum())) for v in record.params.values())
    assert all(math.isfinite(row["value"]) for row in record.evaluations)
