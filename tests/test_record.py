"""A run's folder: files appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedcl.record import (
    COSTS,
    EVALUATIONS,
    PRIVACY,
    Record,
    Row,
    export,
    finish,
    write_rows,
    write_text,
)
from tests.tiny import read_csv

EVALUATION: Row = dict.fromkeys(EVALUATIONS) | {"round": 1, "value": 0.1, "model": "global"}
COST: Row = dict.fromkeys(COSTS) | {"round": 1, "bytes": 2**40, "direction": "up"}


# --- Files. ---


def test_text_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text(path, "eins\nzwei Größen\n")
    assert path.read_bytes().decode("utf-8").splitlines() == ["eins", "zwei Größen"]

    def broken(self: Path, target: Path) -> Path:
        raise OSError("no room")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="no room"):
        write_text(path, "other")
    assert path.read_text(encoding="utf-8").startswith("eins")


def test_rows_are_csv_with_empty_cells_for_what_is_missing(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"a": None, "b": 0.1 + 0.2, "c": 'say "x", y'},
        {"a": 0, "b": 1e-300, "c": ""},
    ]
    write_rows(tmp_path / "t.csv", ("a", "b", "c"), rows)
    text = (tmp_path / "t.csv").read_bytes()
    assert text == b'a,b,c\n,0.30000000000000004,"say ""x"", y"\n0,1e-300,\n'
    assert float(read_csv(tmp_path / "t.csv")[0]["b"]) == 0.1 + 0.2


def test_a_finished_record_leaves_its_files_and_nothing_else(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    record = Record([EVALUATION], [COST], {"method": "x"}, {"w": weight}, tmp_path)
    privacy = [dict.fromkeys(PRIVACY) | {"epsilon": "inf"}]
    export(tmp_path, record.evaluations, record.costs, privacy)
    finish(record)
    names = {"evaluations.csv", "costs.csv", "privacy.csv", "model.safetensors", "summary.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert read_csv(tmp_path / "costs.csv")[0]["bytes"] == str(2**40)
    assert read_csv(tmp_path / "privacy.csv")[0]["epsilon"] == "inf"
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == {"method": "x"}
    assert torch.equal(safetensors.torch.load_file(tmp_path / "model.safetensors")["w"], weight)


def test_a_summary_never_holds_what_json_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        finish(Record(summary={"accuracy": float("nan")}, folder=tmp_path))
    assert not (tmp_path / "summary.json").exists(), "an unfinished run has no summary"
