"""What is read from an archive of arrays, and how it is scaled and laid out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcl.core.data.dataset import Dataset
from fedcl.datasets.npz import Npz

GREY = np.arange(6 * 2 * 2, dtype=np.uint8).reshape(6, 2, 2) * 10
DIVIDED: dict[str, Any] = {
    "x_train": GREY[:4],
    "y_train": np.array([0, 1, 2, 1]),
    "x_test": GREY[4:],
    "y_test": np.array([2, 0]),
}


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def load(folder: Path, arrays: dict[str, Any], **options: Any) -> Dataset:
    return Npz(str(save(folder, **arrays)), **options).load()


def test_reads_a_divided_file_of_grey_images(tmp_path: Path) -> None:
    dataset = load(tmp_path, DIVIDED)
    assert (dataset.name, dataset.classes, dataset.shape) == ("data", 3, (1, 2, 2))
    assert dataset.class_names == ()
    assert dataset.train.labels.tolist() == [0, 1, 2, 1]
    assert dataset.test.labels.tolist() == [2, 0]
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.columns == dataset.test.columns == {}
    rows = dataset.test.rows(np.array([1, 0]))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, GREY[[5, 4], None] / 255.0, rtol=1e-6)


def test_finds_the_file_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, **DIVIDED)
    assert Npz(str(tmp_path), "data.npz").load().classes == 3
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Npz("~", "data.npz").load().classes == 3


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_become_channels_first(tmp_path: Path, channels: int) -> None:
    images = np.arange(4 * 2 * 5 * channels, dtype=np.uint8).reshape(4, 2, 5, channels)
    dataset = load(tmp_path, DIVIDED | {"x_train": images, "x_test": images[:2]})
    assert dataset.shape == (channels, 2, 5)
    rows = dataset.train.rows(np.arange(4))
    np.testing.assert_allclose(rows, np.moveaxis(images, 3, 1) / 255.0, rtol=1e-6)
    assert rows.flags.c_contiguous


@pytest.mark.parametrize(
    ("values", "scale", "factor"),
    [
        (np.full((4, 3, 2), 100, np.int16), None, 1.0),
        (np.full((4, 3, 2), 100, np.int16), 0.25, 0.25),
        (np.full((4, 3), 100, np.uint8), None, 1.0 / 255.0),
        (np.full((4, 3), 100, np.uint8), 0.5, 0.5),
        (np.full((4, 3), 0.7, np.float64), 0.25, 1.0),
        (np.full((4, 3), 0.5, np.float16), None, 1.0),
        (np.full((4, 3), True), None, 1.0),
    ],
)
def test_numbers_are_scaled_by_their_kind(
    tmp_path: Path, values: np.ndarray, scale: float | None, factor: float
) -> None:
    arrays = DIVIDED | {"x_train": values, "x_test": values[:2]}
    dataset = load(tmp_path, arrays | ({} if scale is None else {"scale": scale}))
    rows = dataset.train.rows(np.arange(4))
    assert dataset.shape == values.shape[1:]
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, values * factor, rtol=1e-6)


def test_mean_and_std_apply_after_scaling(tmp_path: Path) -> None:
    table = load(tmp_path, DIVIDED, mean=0.25, std=0.5).train
    wanted = (GREY[:4, None] / 255.0 - 0.25) / 0.5
    np.testing.assert_allclose(table.rows(np.arange(4)), wanted, atol=1e-6)


def test_pairs_of_integers_are_columns_and_the_rest_is_ignored(tmp_path: Path) -> None:
    extra = {
        "domain_train": np.array([3, 3, 1, 0], np.uint8),
        "domain_test": np.array([1, 3], np.uint8),
        "marked_train": np.array([True, False, False, True]),
        "marked_test": np.array([False, True]),
        "y_train_coarse": np.array([0, 0, 1, 0]),
        "y_test_coarse": np.array([1, 0]),
        "index_train": np.arange(7),  # has no twin
        "weight_train": np.ones(4),  # no integers
        "weight_test": np.ones(2),
        "box_train": np.ones((4, 4), np.int64),  # not one number a row
        "box_test": np.ones((2, 4), np.int64),
        "notes": np.array([{"a": 1}], dtype=object),
        "domain_names": np.array(["a", "b", "c", "d"]),
    }
    dataset = load(tmp_path, DIVIDED | extra)
    columns = {key: values.tolist() for key, values in dataset.train.columns.items()}
    assert columns == {"domain": [3, 3, 1, 0], "marked": [1, 0, 0, 1], "coarse": [0, 0, 1, 0]}
    columns = {key: values.tolist() for key, values in dataset.test.columns.items()}
    assert columns == {"domain": [1, 3], "marked": [0, 1], "coarse": [1, 0]}
    assert {values.dtype for values in dataset.train.columns.values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize("form", ["y_{}_coarse", "coarse_{}"])
def test_other_labels_come_with_their_own_names(tmp_path: Path, form: str) -> None:
    arrays = DIVIDED | {
        form.format("train"): np.array([0, 0, 1, 0]),
        form.format("test"): np.array([1, 0]),
        "class_names": np.array(["cat", "dog", "oak"]),
        "coarse_names": np.array(["animal", "plant"]),
    }
    fine, coarse = load(tmp_path, arrays), load(tmp_path, arrays, labels="coarse")
    assert (fine.classes, fine.class_names) == (3, ("cat", "dog", "oak"))
    assert (coarse.classes, coarse.class_names) == (2, ("animal", "plant"))
    assert coarse.test.labels.tolist() == [1, 0]
    assert coarse.test.columns["y"].tolist() == [2, 0]


def test_names_may_be_more_than_the_classes_that_occur(tmp_path: Path) -> None:
    names = np.array(["a", "b", "c", "d", "e"])
    arrays = DIVIDED | {"class_names": names, "y_train": np.array([0, 1, 3, 1]), "y_test": [3, 0]}
    assert load(tmp_path, arrays).classes == 5


@pytest.mark.parametrize("names", [np.arange(3), np.array([["a", "b", "c"]]), np.array("abc")])
def test_names_of_another_kind_are_ignored(tmp_path: Path, names: np.ndarray) -> None:
    dataset = load(tmp_path, DIVIDED | {"class_names": names})
    assert (dataset.classes, dataset.class_names) == (3, ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.0}, "std must be positive and mean finite, not 0.0, 0.0"),
        ({"std": float("inf")}, "std must be positive"),
        ({"mean": float("nan")}, "mean finite, not 1.0, nan"),
        (
            {"holdout": "none"},
            r"holdout must be one of \('random', 'blocks', 'marked'\), not 'none'",
        ),
        ({"holdout": "marked"}, "holdout_column must name the test marks"),
        ({"test_fraction": 0.0}, "test_fraction must lie between 0 and 1, not 0.0"),
        ({"test_fraction": 1.0}, "test_fraction must lie between 0 and 1, not 1.0"),
        ({"block": 0}, "block must be at least 1, not 0"),
        ({"gap": -1}, "gap must be at least 0, not -1"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Npz(**options)
