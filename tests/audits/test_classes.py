"""Which classes a client has is told from what it sends, until noise hides it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedcl
import fedcl.core.release
from fedcl.config import parse
from tests.tiny import read_csv

NOISE = {"name": "central_dp", "clip": 1.0, "noise_multiplier": 1.0, "noise": "seeded"}


def shards(**tables: Any) -> dict[str, Any]:
    """Returns ten classes of one task, of which a client has two or three."""
    return {
        "seed": 21,
        "dataset": {"name": "digits", "seed": 8},
        "stream": {
            "name": "domain_incremental",
            "tasks": 1,
            "clients": 12,
            "partition": {"name": "shards", "per_client": 2},
        },
        "model": {"name": "mlp", "hidden": [32]},
        "method": {"name": "fedavg"},
        "training": {"rounds": 1},
        "engine": {"name": "serial"},
        "evaluation": {"every": 0},
        "audit": [{"name": "classes"}],
        **tables,
    }


def found(table: dict[str, Any], out: Path) -> list[dict[str, str]]:
    fedcl.run(parse(table), out)
    return read_csv(out / "audit" / "classes.csv")


def test_the_classes_of_every_client_are_told(tmp_path: Path) -> None:
    (row,) = found(shards(), tmp_path / "run")
    assert (row["payload"], row["view"], row["replies"]) == ("model", "reply", "12")
    assert float(row["f1"]) > 0.95 and float(row["f1_coin"]) < 0.4 and float(row["f1_all"]) < 0.5
    assert float(row["labels"]) > 0.85 > 0.4 > float(row["labels_guessed"])


def test_noise_on_a_client_brings_it_down_to_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {"rounds": 1, "cohort": 1}

    def mean(folder: str) -> tuple[float, float]:
        rows = []
        for seed in range(12):
            table = shards(training=alone, channel=[NOISE])
            rows += found({**table, "seed": seed}, tmp_path / folder / str(seed))
        assert {row["view"] for row in rows} == {"sum"}
        return tuple(float(np.mean([float(r[k]) for r in rows])) for k in ("f1", "f1_coin"))  # type: ignore[return-value]

    told, coin = mean("noise")
    # One set of ten coins has an F1 that spreads by .18.
    assert abs(told - coin) < 4 * 0.18 / np.sqrt(12)
    monkeypatch.setattr(
        fedcl.core.release,
        "gaussian",
        lambda root, shape, scale, *place: torch.zeros(shape, dtype=torch.float64),
    )
    told, coin = mean("forgotten")
    assert told > 0.9 > 0.5 > coin


def test_sums_that_hold_counts_tell_them_exactly(tmp_path: Path) -> None:
    rows = found(shards(method={"name": "analytic", "pretrain": 0}), tmp_path / "run")
    assert [(r["payload"], r["f1"], r["labels"]) for r in rows] == [("cross", "1.0", "1.0")]
    balanced = {"name": "analytic", "pretrain": 0, "balance": "expected"}
    rows = found(shards(method=balanced), tmp_path / "balanced")
    assert {(r["payload"], r["f1"]) for r in rows} == {("cross", "1.0"), ("counts", "1.0")}


def test_gradients_of_single_examples_carry_their_labels(tmp_path: Path) -> None:
    glfc = {"name": "glfc", "images": 1, "iterations": 1}
    rows = found(shards(method=glfc), tmp_path / "run")
    (own,) = (row for row in rows if row["payload"] == "gradients")
    assert float(own["f1"]) == 1.0 and own["labels"] == ""


def test_who_met_a_new_class_is_told(tmp_path: Path) -> None:
    table = shards()
    table["stream"] = {"name": "class_incremental", "tasks": 5, "clients": 6}
    rows = found(table, tmp_path / "run")
    assert [row["new"] for row in rows] == ["", "1.0", "1.0", "1.0", "1.0"]
    assert all(float(row["new_right"]) == 1.0 for row in rows[1:])
    same = shards()
    same["stream"] = {**same["stream"], "tasks": 3, "transform": "permute", "fixed_shares": True}
    rows = found(same, tmp_path / "same")
    assert [row["new"] for row in rows] == ["", "0.0", "0.0"]


def test_a_method_that_sends_no_head_is_said_to(tmp_path: Path) -> None:
    summary = fedcl.run(parse(shards(method={"name": "lingo"}))).summary["audits"]["classes"]
    assert summary["exchanges"] == 0 and "No payload had" in summary["note"]
