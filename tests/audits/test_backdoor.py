"""How often a backdoor succeeds: by hand, and in real runs with and without an attacker."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.__main__ import _run
from fedcl.assembly import build_site
from fedcl.audits.backdoor import Backdoor
from fedcl.config import parse
from fedcl.core.audit import Subject
from fedcl.core.errors import ConfigError
from tests.tiny import read_csv, scenario, tiny

TARGET = 2
ATTACK = {"attack": "backdoor", "clients": [0, 1], "target": TARGET, "size": 2}
AUDIT = [{"name": "backdoor"}]


def subject(changes: Mapping[str, Any] | None = None, **tables: Any) -> Subject:
    experiment = tiny(changes, **tables)
    site = build_site(experiment)
    population: Any = site.population
    return Subject(
        site,
        population.stream,
        experiment.method,
        0,
        2,
        "fixed",
        0,
        None,
        lambda: math.inf,
        poison=population.poison,
    )


def test_rates_are_shares_of_the_inputs_of_other_classes() -> None:
    own = subject(adversary=ATTACK)
    watch = Backdoor(examples=0).open(own)
    data, poison = own.stream.held_out(0, "test"), own.poison
    assert poison is not None

    def obedient(x: Tensor, allowed: Tensor) -> Tensor:
        """Says the target for what bears the trigger, else that all is of class 1."""
        marked = (x[..., -2:, -2:] == poison.value).flatten(1).all(1)
        return F.one_hot(torch.where(marked, TARGET, 1), 4).double()

    watch.stage_ended(0, obedient)
    watch.stage_ended(1, lambda x, allowed: F.one_hot(torch.full((len(x),), TARGET), 4).double())
    finding = watch.finish({})
    first, *later = finding.tables["backdoor"]
    others, ones = data.y != TARGET, data.y == 1
    assert first == {
        "stage": 0,
        "task": 0,
        "asr": 1.0,
        "base_rate": 0.0,
        "clean_accuracy": float(ones.double().mean()),
        "n": int(others.sum()),
    }
    # A model that always says the target has a base rate as high as its success.
    assert [(row["stage"], row["task"]) for row in later] == [(1, 0), (1, 1)]
    assert all(row["asr"] == row["base_rate"] == 1.0 for row in later)
    assert finding.numbers["asr_by_stage"] == [1.0, 1.0]
    assert finding.numbers["base_rate_by_stage"] == [0.0, 1.0]
    assert finding.numbers["asr_after_attack"] == finding.numbers["asr_at_end"] == 1.0


def test_a_task_that_cannot_be_taken_for_the_target_has_no_row() -> None:
    """Task-incremental: class 3 is of the second task, and known at the second stage."""
    own = subject(scenario("task"), adversary={**ATTACK, "target": 3})
    watch = Backdoor().open(own)
    seen: list[list[bool]] = []

    def guess(x: Tensor, allowed: Tensor) -> Tensor:
        seen.append(allowed.tolist())
        return allowed.double().expand(len(x), 4)

    watch.stage_ended(0, guess)
    nothing = watch.finish({})
    assert nothing.tables["backdoor"] == [] == seen and "not covered" in nothing.note
    watch.stage_ended(1, guess)
    assert [(row["stage"], row["task"]) for row in watch.finish({}).tables["backdoor"]] == [(1, 1)]
    assert seen == [[False, False, True, True]] * 2


def table(**changes: Any) -> dict[str, Any]:
    return {
        "seed": 1,
        "dataset": {"name": "digits"},
        "stream": {"name": "domain_incremental", "transform": "permute", "tasks": 1, "clients": 5},
        "model": {"name": "mlp", "hidden": [32]},
        "method": {"name": "fedavg"},
        "training": {"rounds": 6, "local": {"name": "sgd", "epochs": 3, "lr": 0.2}},
        "engine": {"name": "vectorized"},
        "adversary": ATTACK,
        "audit": AUDIT,
        **changes,
    }


def test_a_planted_backdoor_is_found_and_none_where_nobody_planted_it(tmp_path: Path) -> None:
    planted = fedcl.run(parse(table()), tmp_path / "run")
    found = planted.summary["audits"]["backdoor"]
    assert found["asr_at_end"] > 0.9 and found["base_rate_by_stage"][0] < 0.1
    (row,) = read_csv(tmp_path / "run" / "audit" / "backdoor.csv")
    assert list(row) == ["stage", "task", "asr", "base_rate", "clean_accuracy", "n"]
    assert float(row["clean_accuracy"]) == pytest.approx(planted.summary["average_accuracy"])
    twin = fedcl.run(parse(table(adversary={**ATTACK, "first": 1})))
    clean = twin.summary["audits"]["backdoor"]
    assert clean["asr_at_end"] < 0.3 and "clean twin" in clean["note"]


def test_a_run_without_a_backdoor_is_refused() -> None:
    for adversary in ({}, {"attack": "label_flip", "share": 0.4}):
        with pytest.raises(ConfigError, match=r"\[audit\[0\]\] nobody plants a backdoor"):
            fedcl.run(parse(table(adversary=adversary)))


def test_the_command_finds_the_audit_by_itself(tmp_path: Path) -> None:
    training = {"rounds": 1, "local": {"name": "sgd"}}
    fedcl.run(parse(table(audit=[], training=training)), tmp_path / "run")
    assert _run(["audit", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "backdoor" in summary["audits"]
    assert (tmp_path / "run" / "audited" / "audit" / "backdoor.csv").exists()
