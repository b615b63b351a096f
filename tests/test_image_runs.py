"""Whole runs on real image files: folders of PNG and JPEG, and data sets in the hub's formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import fedcl
from fedcl.core.task import Examples
from tests import hub_files
from tests.commands import call, write_config
from tests.pictures import learnable
from tests.ray_house import RayHouse
from tests.tiny import assert_same_runs, rows, stream_of, tiny

STREAM = {
    "stream.name": "class_incremental",
    "stream.tasks": 2,
    "stream.clients": 3,
    "stream.partition": {"name": "iid"},
    "training.rounds": 4,
    "training.cohort": 0,
}
NAMES = ("ant", "bee", "cat", "dog")
COUNTS = {"train": 96, "test": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `[dataset]` of a folder of images, half of them PNG and half JPEG."""
    root = tmp_path_factory.mktemp("images")
    for split, count in COUNTS.items():
        for number in range(count):
            place = root / split / NAMES[number % 4]
            place.mkdir(parents=True, exist_ok=True)
            ending = "png" if number < count // 2 else "jpg"
            learnable(number + 1000 * (split == "test")).save(place / f"{number:03}.{ending}")
    return {"name": "folder", "root": str(root)}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `[dataset]` of the same pictures as parquet files."""
    from datasets import ClassLabel, Image

    splits: dict[str, hub_files.Rows] = {
        split: {
            "image": [learnable(number + 1000 * (split == "test")) for number in range(count)],
            "label": [number % 4 for number in range(count)],
        }
        for split, count in COUNTS.items()
    }
    kinds = {"image": Image(), "label": ClassLabel(names=list(NAMES))}
    path = hub_files.save(tmp_path_factory.mktemp("hub") / "set", "parquet", kinds, **splits)
    return {"name": "hub", "path": str(path)}


@pytest.mark.parametrize("name", ["folder", "hub"])
def test_a_run_learns_its_last_task(name: str, request: pytest.FixtureRequest) -> None:
    dataset = request.getfixturevalue(name)
    record = fedcl.run(tiny(STREAM, dataset=dataset))
    before, after = (
        [row["value"] for row in rows(record, task=task, stage=stage)][-1]
        for task, stage in ((0, 0), (1, 1))
    )
    assert before > 0.9 and after > 0.9


def test_decoding_when_fetched_changes_no_bit_of_a_run(folder: dict[str, Any]) -> None:
    assert_same_runs(
        fedcl.run(tiny(STREAM, dataset=folder)),
        fedcl.run(tiny(STREAM, dataset={**folder, "memory": 1e-6})),
    )


@pytest.mark.ray
@pytest.mark.parametrize("name", ["folder", "hub"])
def test_workers_decode_what_they_need(
    name: str, request: pytest.FixtureRequest, ray_house: RayHouse
) -> None:
    dataset = {**request.getfixturevalue(name), "memory": 1e-6}
    experiment = tiny(STREAM, dataset=dataset)
    spread = ray_house.on(experiment, 2, "serial")
    assert_same_runs(fedcl.run(spread), fedcl.run(experiment))


def test_lossless_files_in_either_form_hold_the_same_examples(
    folder: dict[str, Any], hub: dict[str, Any]
) -> None:
    def values(dataset: dict[str, Any]) -> set[bytes]:
        examples: Examples = stream_of(tiny(STREAM, dataset=dataset)).held_out(0, "test")
        return {row.numpy().tobytes() for row in examples.x}

    one, other = values(folder), values(hub)
    assert len(one) == len(other) == 12 and len(one & other) == 6, "half of them are JPEG"


def test_the_command_line_runs_and_shows_a_folder(
    folder: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fedcl.report", None)  # figures take longer than the run
    config = write_config(tmp_path, {**STREAM, "dataset": folder, "training.rounds": 1})
    shown = call("show", config)
    assert shown.status == 0 and shown.err == ""
    assert 'name = "folder"' in shown.out and 'colour = "RGB"' in shown.out
    called = call("run", config, "--out", tmp_path / "out", "--quiet")
    assert called.status == 0 and called.err == ""
    again = call("run", tmp_path / "out" / "config.toml", "--out", tmp_path / "again", "--quiet")
    assert again.status == 0
    first, second = (tmp_path / name / "evaluations.csv" for name in ("out", "again"))
    assert first.read_bytes() == second.read_bytes()
