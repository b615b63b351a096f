"""Reconstructed images in a report: read, summed up by payload, drawn beside their originals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedcl
from fedcl.core.errors import ConfigError
from fedcl.report import write_report
from fedcl.reporting.reconstructions import Told, decibels, read_reconstructions
from tests.fake_runs import write_run
from tests.report_pages import assert_self_contained, figure_names
from tests.tiny import tiny

HEAD = "view,payload,attack,examples,psnr_best,baseline_best,recovered_25,membership_auc"
ROWS = (
    "3,model,linear layer,10,120.5,14.5,0.5,",
    "7,model,linear layer,30,11,15.5,0.1,",
    "3,model,search by cosine,10,130,14.5,0,",
    "3,cross,none fits,10,,14.5,0,",
    "sum,gram,first eigenvector,40,12,16,0,0.75",
)
SETS = ("model,reply,4,0.9,0.4", "model,reply,2,0.6,0.4", "count,sum,1,1,0.5")


def write_tables(run: Path, folder: str = "audit", count: int = 3, channels: int = 1) -> None:
    (run / folder).mkdir(parents=True, exist_ok=True)
    (run / folder / "inversion.csv").write_text("\n".join((HEAD, *ROWS)) + "\n")
    heads = "payload,view,replies,f1,f1_coin"
    (run / folder / "classes.csv").write_text("\n".join((heads, *SETS)) + "\n")
    random = np.random.default_rng(0)
    images = random.random((2 * count, channels, 8, 6))
    arrays: dict[str, Any] = {
        "payload": np.array(["model"] * count + ["gram"] * count),
        "attack": np.array(["linear layer"] * count + ["ICA"] * count),
        "found": images,
        "original": images.clip(0.2, 0.8),
        "psnr": np.linspace(250, 8, 2 * count),
        "baseline": np.linspace(12, 14, 2 * count),
    }
    np.savez(run / folder / "inversion_pictures.npz", **arrays)


def test_rows_are_summed_up_by_payload_and_what_the_server_saw(tmp_path: Path) -> None:
    assert read_reconstructions(tmp_path) is None
    write_tables(tmp_path)
    found = read_reconstructions(tmp_path)
    assert found is not None
    model, cross, gram, count = found.told
    assert (model.view, model.attack, model.best, model.baseline) == (
        "reply", "linear layer", 120.5, 15.5,
    )  # fmt: skip
    assert model.span is None
    assert [model.recovered, model.classes, model.coin] == pytest.approx([0.2, 0.8, 0.4])
    assert cross == Told("cross", "reply")
    assert gram == Told("gram", "sum", "first eigenvector", 12.0, 16.0, 0.0, 0.75)
    assert count == Told("count", "sum", classes=1.0, coin=0.5)
    assert [strip.name for strip in found.strips] == ["model: linear layer", "gram: ICA"]
    assert found.baseline == (12.0, 14.0)
    assert [decibels(value) for value in (None, 250.0, float("inf"), 12.34)] == [
        "n/a", "exact", "exact", "12.3",
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (8, 3), (3, 2)])
def test_a_report_shows_images_beside_the_baseline(
    tmp_path: Path, count: int, channels: int
) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    without = write_report(run).read_text(encoding="utf-8")
    assert "What payloads give away" not in without
    write_tables(run, "audited/audit", count, channels)
    page = write_report(run).read_text(encoding="utf-8")
    assert "reconstructions" in figure_names(run)
    assert "has 12.0 to 14.0 dB" in page and "no privacy" in page and "none fits" in page
    assert_self_contained(page)


def test_a_report_of_an_audited_run_has_its_images(tmp_path: Path) -> None:
    audits = [{"name": "inversion"}, {"name": "classes"}]
    fedcl.run(tiny(audit=audits), tmp_path / "run")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "reconstructions" in figure_names(tmp_path / "run")
    assert "linear layer" in page
    flat = tiny({"dataset.features": [6]}, audit=audits)
    fedcl.run(flat, tmp_path / "flat")
    page = write_report(tmp_path / "flat").read_text(encoding="utf-8")
    assert "What payloads give away" in page and "linear layer" in page
    assert "reconstructions" not in figure_names(tmp_path / "flat")


@pytest.mark.parametrize("file", ["inversion.csv", "classes.csv", "inversion_pictures.npz"])
def test_damaged_files_are_refused(tmp_path: Path, file: str) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    write_tables(run)
    (run / "audit" / file).write_text("payload,view\nmodel,reply,x\n")
    with pytest.raises(ConfigError, match="damaged: audit/"):
        write_report(run)
