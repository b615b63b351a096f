"""The study of all methods: every method is in it, all are tuned alike, and work is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from all_rows import ROWS, SETTINGS
from all_tables import Study, possible
from ladder import TUNING_SEED
from runner import CONFIGS, Cell

import fedcl
from fedcl.config import Experiment, available

PAIRS = [(stream, row) for stream in SETTINGS for row in ROWS if possible(stream, row)]


def built(cell: Cell) -> Experiment:
    return fedcl.load_config(CONFIGS / cell.config, cell.changes)


def finish(study: Study, cell: Cell, accuracy: float) -> None:
    folder = study.out / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"split": "validation", "average_accuracy": accuracy}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def test_every_method_has_a_row() -> None:
    assert {row.method["name"] for row in ROWS.values()} == set(available("methods"))


@pytest.mark.parametrize(("stream", "row"), PAIRS)
def test_values_are_chosen_on_validation_data_and_the_work_is_the_same(
    stream: str, row: str, tmp_path: Path
) -> None:
    study = Study(tmp_path, "data")
    tried = study.search(stream, row).tried
    assert len(tried) == (3 if ROWS[row].option else 0), "as many for every row"
    for number, cell in enumerate(tried):
        experiment = built(cell)
        assert experiment.evaluation.splits == ("validation",) and experiment.seed == TUNING_SEED
        finish(study, cell, -abs(number - 1))
    final = study.final(stream, row, 2)
    assert final is not None
    experiment, plain = built(final), study.final(stream, "fedavg", 2)
    assert plain is not None
    assert experiment.evaluation.splits == ("test",) and experiment.seed == 2 != TUNING_SEED
    if tried:
        assert final.changes["method"] == tried[1].changes["method"]
    # All but the method, and what a row is about, is FedAvg's.
    same = built(plain).resolved
    for table in ("dataset", "stream", "model", "engine"):
        assert experiment.resolved[table] == same[table]
    about = {key.split(".")[1] for key in ROWS[row].changes}
    for key, value in experiment.resolved["training"].items():
        assert value == same["training"][key] or key in about


@pytest.mark.parametrize("stream", SETTINGS)
def test_whoever_keeps_examples_may_keep_the_same_bytes(stream: str, tmp_path: Path) -> None:
    setting = SETTINGS[stream]
    found = {
        row: built(study_cell).resolved["method"]
        for row in ROWS
        if ROWS[row].exemplars and possible(stream, row)
        for study_cell in [Study(tmp_path, "data").cell(stream, row, None, 0, "test")]
    }
    counted = found.pop("fedcbdr")
    assert {method["budget"] for method in found.values()} == {setting.budget}
    # An example with its columns: the image, label, stage and a mask of classes.
    pixels, classes, clients = {
        "split-mnist": (28 * 28, 10, 10),
        "cifar100-small": (3 * 32 * 32, 20, 5),
        "pacs": (3 * 32 * 32, 7, 10),
    }[stream]
    bytes_of_one = 4 * pixels + 8 + 8 + classes
    plan: Any = built(Study(tmp_path, "data").cell(stream, "fedavg", None, 0, "test")).stream
    tasks = plan.tasks
    kept = counted["samples"] * tasks * bytes_of_one / clients
    assert kept == pytest.approx(setting.budget, rel=0.02)
