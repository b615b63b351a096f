"""The study of payloads: every method is in it by its name alone; its table says what it did."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner import CONFIGS, Cell
from what_methods_send import CHANNELS, SLOW, SUMS, VARIANTS, planned, shadows, table

import fedcl
from fedcl.config import available
from fedcl.record import write_rows

METHODS = available("methods")


def test_every_method_is_there_by_its_name_alone() -> None:
    cells = planned([0, 1], {}, METHODS)
    assert set(METHODS) < set(cells) and len(cells) == len(METHODS) + len(VARIANTS) + len(
        SUMS
    ) * len(CHANNELS)
    for name in METHODS:
        one, other = cells[name]
        assert one.changes["method"] == {"name": name} and one.changes["channel"] == []
        assert (one.changes["seed"], other.changes["seed"]) == (0, 1)
        experiment = fedcl.load_config(CONFIGS / one.config, one.changes)
        assert experiment.names["method"] == name and len(experiment.audit) == 2
    folders = [cell.name for own in cells.values() for cell in own]
    assert len(set(folders)) == len(folders) and set(SLOW) < set(METHODS)
    (cell,) = shadows(["fedavg"], 4, 8, {}).values()
    assert cell.changes["audit"][0]["shadows"] == 8 and cell.changes["seed"] == 4


def test_a_row_names_the_attack_by_which_most_came_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search that only small replies are given to does not count as more than it is."""
    cell = Cell("one", "private_digits.toml", {})
    folder = tmp_path / "one"
    (folder / "audit").mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    write_rows(
        folder / "costs.csv",
        ["direction", "payload", "bytes"],
        [
            {"direction": "up", "payload": "model", "bytes": 2500},
            {"direction": "up", "payload": "count", "bytes": 8},
            {"direction": "down", "payload": "model", "bytes": 9000},
        ],
    )
    columns = [
        "payload",
        "attack",
        "examples",
        "psnr_best",
        "baseline_best",
        "recovered_25",
        "membership_auc",
    ]
    rows = [
        ("model", "linear layer", 38, 120.0, 14.0, 0.5, None),
        ("model", "linear layer", 2, 90.0, 15.0, 0.5, None),
        ("model", "search by cosine", 2, 130.0, 15.0, 1.0, None),
    ]
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    write_rows(folder / "audit" / "inversion.csv", columns, found)
    told = ["payload", "replies", "f1", "f1_coin", "labels", "labels_guessed"]
    sets = [("model", 1, 1.0, 0.4, 0.9, 0.3), ("model", 3, 0.8, 0.4, 0.7, 0.3)]
    write_rows(
        folder / "audit" / "classes.csv", told, [dict(zip(told, row, strict=True)) for row in sets]
    )
    table({"fedavg": [cell]}, {}, tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 3
    assert lines[2] == (
        "| fedavg | model | 2.5 | linear layer | 120.0 (15.0) | 50.0 |  | 0.85 (0.40) "
        "| 75% (30%) |  |  |"
    )
    assert "What methods send" in capsys.readouterr().out
