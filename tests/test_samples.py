"""Synthetic images in a run's record and report: which, to the byte after a stop, and how shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedcl
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError
from fedcl.core.generative.samples import EACH, MOST, few_of_each
from fedcl.report import write_report
from fedcl.reporting.samples import Samples, choose, grids, read_samples
from tests.fake_runs import write_run
from tests.report_pages import assert_self_contained, figure_names
from tests.tiny import Interrupted, assert_same_folders, interrupt_after, scenario, tiny, trace

THREE_TASKS = {**scenario("class"), "dataset.classes": 6, "stream.tasks": 3}


def target(changes: dict[str, Any] | None = None, **options: Any) -> Experiment:
    method = {"name": "target", "images": 60, "steps": 2, "batch": 8, "rounds": 3, "width": 4}
    return tiny({**THREE_TASKS, **(changes or {})}, method={**method, **options})


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "samples").iterdir())}


def fake(stages: int, each: int, channels: int, classes: int, size: int) -> dict[int, Samples]:
    """Stage k has the classes below (k + 1) * classes / stages; image values are its label's."""
    found = {}
    for stage in range(stages):
        labels = np.repeat(np.arange((stage + 1) * classes // stages), each)
        images = np.zeros((len(labels), channels, size, size), np.float32)
        found[stage] = Samples(images + labels[:, None, None, None].astype(np.float32), labels)
    return found


def test_a_few_of_each_class_are_chosen_once_and_for_all() -> None:
    labels = torch.arange(100) % 3
    rows = few_of_each(labels, 7)
    assert torch.bincount(labels[rows]).tolist() == [EACH] * 3
    assert labels[rows].tolist() == sorted(labels[rows].tolist())
    assert len(set(rows.tolist())) == len(rows)
    assert few_of_each(labels[rows], 8).tolist() == list(range(len(rows)))
    assert few_of_each(labels, 8).tolist() != rows.tolist()
    assert few_of_each(labels, 7).tolist() == rows.tolist()
    assert few_of_each(torch.tensor([5, 2]), 0).tolist() == [1, 0], "fewer than EACH is no error"
    assert len(few_of_each(torch.zeros(0, dtype=torch.int64), 0)) == 0


@pytest.mark.parametrize(("classes", "each"), [(64, 8), (100, 5), (600, 1)])
def test_many_classes_have_fewer_each(classes: int, each: int) -> None:
    labels = torch.arange(10 * classes) % classes
    assert torch.bincount(labels[few_of_each(labels, 0)]).tolist() == [each] * classes
    assert each == 1 or each * classes <= MOST


def test_a_run_keeps_the_images_of_every_stage_that_has_some(tmp_path: Path) -> None:
    experiment = target()
    _, states = trace(experiment, tmp_path / "run")
    found = read_samples(tmp_path / "run")
    assert list(stored(tmp_path / "run")) == ["stage_1.npz", "stage_2.npz"]
    for stage, classes in ((1, 2), (2, 4)):
        one, held = found[stage], states[2 * stage + 1].pictures
        assert one.images.shape == (EACH * classes, 1, 4, 4) and one.images.dtype == np.float32
        assert one.labels.tolist() == [c for c in range(classes) for _ in range(EACH)]
        made = {(int(y), x.numpy().tobytes()) for x, y in zip(held.images, held.y, strict=True)}
        for image, label in zip(one.images, one.labels, strict=True):
            assert (int(label), image.tobytes()) in made


@pytest.mark.parametrize("seconds", [0, 1e9], ids=["every round", "stage ends"])
def test_a_stopped_run_keeps_the_same_bytes(seconds: float, tmp_path: Path) -> None:
    changes = {"checkpoint.seconds": seconds}
    fedcl.run(target(changes), tmp_path / "whole")
    for rounds in (3, 4, 5):
        folder = tmp_path / f"stopped after {rounds}"
        with pytest.raises(Interrupted):
            fedcl.run(target(changes), folder, watch=interrupt_after(rounds))
        fedcl.run(target(changes), folder, resume=True)
        assert_same_folders(folder, tmp_path / "whole")
        assert stored(folder) == stored(tmp_path / "whole")


def test_images_of_a_stage_that_was_not_committed_are_written_again(tmp_path: Path) -> None:
    """As after a power cut between the two: the files of later stages are replaced."""
    changes = {"checkpoint.seconds": 1e9}
    fedcl.run(target(changes), tmp_path / "whole")
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fedcl.run(target(changes), folder, watch=interrupt_after(4))
    (folder / "samples" / "stage_2.npz").write_bytes(b"half")
    fedcl.run(target(changes), folder, resume=True)
    assert stored(folder) == stored(tmp_path / "whole")


def test_the_report_shows_them(tmp_path: Path) -> None:
    fedcl.run(target(), tmp_path / "run")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "samples" in figure_names(tmp_path / "run")
    assert "What the generator draws" in page and "None is real data" in page
    assert "8 of a class at most" in page and "evenly spaced" not in page
    assert_self_contained(page)


def test_a_run_without_a_generator_has_neither(tmp_path: Path) -> None:
    for name, experiment in (("plain", tiny()), ("silent", target(strength=0.0))):
        fedcl.run(experiment, tmp_path / name)
        page = write_report(tmp_path / name).read_text(encoding="utf-8")
        assert not (tmp_path / name / "samples").exists()
        assert "samples" not in figure_names(tmp_path / name)
        assert "generator" not in page


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "samples").mkdir()
    for stage, one in fake(12, 5, 3, 96, 8).items():
        path = run / "samples" / f"stage_{stage}.npz"
        np.savez(path, images=one.images, labels=one.labels)
    page = write_report(run).read_text(encoding="utf-8")
    assert "20 of 96 classes and 10 of 12 stages" in page
    assert "3 of a class at most" in page


def test_first_and_last_are_among_those_chosen() -> None:
    shown = choose(fake(25, 8, 1, 100, 4))
    assert (shown.stages[0], shown.stages[-1], len(shown.stages)) == (0, 24, 10)
    assert (shown.classes[0], shown.classes[-1], len(shown.classes)) == (0, 99, 20)
    few = choose(fake(2, 8, 1, 3, 4))
    assert (few.stages, few.classes, few.each) == ((0, 1), (0, 1, 2), 8)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_number_of_channels_is_drawn(channels: int) -> None:
    samples = fake(3, 4, channels, 6, 5)
    picture = grids(samples, choose(samples))
    assert picture.startswith(b"\x89PNG") and grids(samples, choose(samples)) == picture


def test_constant_images_and_numbers_that_are_none_are_drawn() -> None:
    images = np.full((2, 1, 3, 3), np.nan, np.float32)
    samples = {
        0: Samples(images, np.array([0, 1])),
        1: Samples(np.ones_like(images), np.array([0, 1])),
    }
    assert grids(samples, choose(samples)).startswith(b"\x89PNG")


def test_what_are_no_images_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    np.savez(tmp_path / "samples/stage_0.npz", images=np.zeros((2, 7)), labels=np.zeros(2, int))
    np.savez(tmp_path / "samples/other.npz", images=np.zeros(2))
    assert read_samples(tmp_path) == {}


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"labels": np.zeros(2, int)}, "lacks 'images"),
        ({"images": np.zeros((2, 1, 3, 3)), "labels": np.zeros(3, int)}, "one label for each"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, arrays: dict[str, np.ndarray[Any, Any]] | None, fault: str
) -> None:
    run = write_run(tmp_path / "run")
    (run / "samples").mkdir()
    path = run / "samples" / "stage_1.npz"
    if arrays is None:
        path.write_bytes(b"no archive")
    else:
        np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"is damaged: samples/stage_1.npz .*{fault}"):
        write_report(run)
