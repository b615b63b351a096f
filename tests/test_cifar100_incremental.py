"""The study of class-incremental CIFAR-100: its rows are experiments, of one protocol."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from cifar100_incremental import BUDGET, STUDY
from fot_table import Metric, Row, Study, run
from runner import CONFIGS, summary_of

import fedcl
from fedcl.config import Experiment, available
from fedcl.core.tree import nbytes
from tests.test_studies import TINY

METHODS = {
    name: dict(row.changes)["method.name"]
    for name, row in STUDY.rows.items()
    if dict(row.changes)["method.name"] in available("methods")
}


def built(split: str, row: str) -> Experiment:
    cell = STUDY.cell(split, row, 3, {"dataset.root": "data"})
    return fedcl.load_config(CONFIGS / cell.config, cell.changes)


@pytest.mark.parametrize("row", METHODS)
def test_rows_differ_in_the_method_and_the_optimizer_alone(row: str) -> None:
    for split in ("0.1", "0.5", "1.0"):
        found, plain = built(split, row).resolved, built(split, "finetune").resolved
        assert found["stream"]["partition"] == {
            **plain["stream"]["partition"],
            "alpha": float(split),
        }
        for table in ("dataset", "stream", "model", "aggregation"):
            assert found[table] == plain[table]
        mine, theirs = found["training"], plain["training"]
        assert mine["rounds"] == 100 and mine["cohort"] == theirs["cohort"]
        free = {"lr", "momentum", "weight_decay"}
        for key, value in mine["local"].items():
            assert key in free or value == theirs["local"][key], key
        assert found["seed"] == 3 and found["method"]["name"] == METHODS[row]


def test_half_is_the_split_that_runs() -> None:
    assert STUDY.splits == ("0.5",) and list(STUDY.configs) == ["0.1", "0.5", "1.0"]


def test_replay_may_keep_the_bytes_of_fedcbdrs_examples() -> None:
    """An image with its label, the stage it came from and the classes it is compared with."""
    example = (
        torch.zeros((1, 3, 32, 32)),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros((1, 100), dtype=torch.bool),
    )
    asked, clients, earlier = dict(STUDY.rows["fedcbdr"].changes)["method.samples"], 5, 9
    assert nbytes(example) * asked * earlier == BUDGET * clients
    for row in ("replay", "refed", "glfc"):
        assert dict(STUDY.rows[row].changes)["method.budget"] == BUDGET


def test_a_table_of_other_numbers(tmp_path: Path) -> None:
    """One metric, a split by its changes alone, and what another paper says beside it."""
    study = Study(
        "title",
        "name",
        dict.fromkeys(("few", "many"), "fot_digits.toml"),
        {
            "fedavg": Row(
                {"method.name": "fedavg"},
                published={"many": ((50.0, 1.0),)},
                elsewhere={"many": "49 / 3"},
            )
        },
        2,
        1,
        {},
        {},
        by_split={"many": {"stream.clients": 6}},
        metrics=(Metric("pooled_accuracy", "accuracy", 3.0),),
    )
    args = argparse.Namespace(
        rows=["fedavg"],
        splits=["few", "many"],
        seeds=[0],
        part=(1, 1),
        table=False,
        compare=True,
    )
    run(study, args, TINY, tmp_path, "title")
    text = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    names, _, few, many = ([word.strip() for word in line.split("|")[1:-1]] for line in text)
    assert names[2:5] == ["accuracy", "published", "difference"] and names[-1] == "elsewhere"
    assert few[3:6] == ["", "", ""] and few[-1] == ""
    cell = study.cell("many", "fedavg", 0, TINY)
    plan: Any = fedcl.load_config(CONFIGS / cell.config, cell.changes).stream
    assert plan.clients == 6
    found = summary_of(cell, tmp_path)
    assert found is not None
    ours = 100 * found["pooled_accuracy"]
    assert many[2:5] == [f"{ours:.2f} (n=1)", "50.00 ± 1.00", f"{ours - 50:+.2f}"]
    assert many[5] == ("yes" if abs(ours - 50) <= 3 else "no") and many[-1] == "49 / 3"
