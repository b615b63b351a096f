"""How a file of one piece is divided into train and test."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcl.core.data.dataset import Dataset
from fedcl.core.errors import ConfigError
from fedcl.datasets.npz import Npz


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def load(folder: Path, arrays: dict[str, Any], **options: Any) -> Dataset:
    return Npz(str(save(folder, **arrays)), **options).load()


def refusal(folder: Path, arrays: dict[str, Any], **options: Any) -> str:
    """Returns the message of the ConfigError that loading raises; it must name the file."""
    with pytest.raises(ConfigError) as caught:
        load(folder, arrays, **options)
    assert f", in {folder / 'data.npz'}; " in str(caught.value)
    return str(caught.value)


def recording(rows: int, **columns: Any) -> dict[str, Any]:
    """Returns an undivided file whose inputs are the row numbers; two classes take turns."""
    x = np.arange(rows, dtype=np.float32)[:, None]
    return {"x": x, "y": np.arange(rows) % 2, **columns}


def test_random_holdout_takes_the_share_of_each_class_and_keeps_the_order(tmp_path: Path) -> None:
    arrays = recording(103, who=np.arange(103) // 10, names=np.arange(5))
    arrays["y"] = np.array([0] * 60 + [1] * 42 + [2])
    dataset = load(tmp_path, arrays, test_fraction=0.25)
    train, test = dataset.train, dataset.test
    assert np.bincount(test.labels, minlength=3).tolist() == [15, 11, 0]  # never all of a class
    places = [table.columns["position"] for table in (train, test)]
    assert sorted(np.concatenate(places).tolist()) == list(range(103))
    for table, place in zip((train, test), places, strict=True):
        assert (np.diff(place) > 0).all()
        np.testing.assert_array_equal(table.rows(np.arange(len(place)))[:, 0], place)
        np.testing.assert_array_equal(table.columns["who"], place // 10)
        np.testing.assert_array_equal(table.labels, arrays["y"][place])
        assert table.columns.keys() == {"position", "who"}


def test_random_holdout_leaves_a_lone_row_to_train(tmp_path: Path) -> None:
    dataset = load(tmp_path, recording(10) | {"y": np.array([0] + [1] * 9)}, test_fraction=0.5)
    assert np.bincount(dataset.train.labels).tolist() == [1, 5]
    assert dataset.test.labels.tolist() == [1] * 4


def test_the_seed_decides_the_random_holdout(tmp_path: Path) -> None:
    first, again, other = (
        load(tmp_path, recording(100), seed=seed).test.columns["position"].tolist()
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_blocks_are_held_out_with_a_gap_on_either_side(tmp_path: Path) -> None:
    dataset = load(
        tmp_path, recording(22), holdout="blocks", block=3, gap=1, test_fraction=0.2
    )  # blocks 2 and 7
    assert dataset.test.columns["position"].tolist() == [6, 7, 8, 21]
    train = dataset.train.columns["position"].tolist()
    assert train == [0, 1, 2, 3, 4, *range(10, 20)]
    assert dataset.train.rows(np.arange(6))[:, 0].tolist() == train[:6]


def test_each_recording_is_cut_into_blocks_of_its_own(tmp_path: Path) -> None:
    # Recordings 5 and 3 lie one after the other; then they take turns, row by row.
    who = np.array([5] * 8 + [3] * 8 + [5, 3] * 4)
    options: dict[str, Any] = {"holdout": "blocks", "holdout_column": "who", "test_fraction": 0.5}
    dataset = load(tmp_path, recording(24, who=who), block=2, gap=1, **options)
    test, train = dataset.test.columns["position"], dataset.train.columns["position"]
    for value in (3, 5):
        rows = np.flatnonzero(who == value)
        assert rows[np.isin(rows, test)].tolist() == rows[[0, 1, 4, 5, 8, 9]].tolist()
        assert rows[np.isin(rows, train)].tolist() == [rows[11]]
    dataset = load(tmp_path, recording(24, who=who), block=2, gap=0, **options)
    assert len(dataset.train.labels) == len(dataset.test.labels) == 12


@pytest.mark.parametrize("gap", [0, 1, 2, 5, 500])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 1 / 3])
def test_no_train_row_lies_within_the_gap(tmp_path: Path, gap: int, fraction: float) -> None:
    who = np.repeat([1, 2, 3, 9], [400, 16, 170, 3])
    arrays = recording(len(who), who=who) | {"y": np.zeros(len(who), np.int64)}
    options: dict[str, Any] = {"holdout": "blocks", "holdout_column": "who", "gap": gap}
    dataset = load(tmp_path, arrays, test_fraction=fraction, **options)
    test, train = dataset.test.columns["position"], dataset.train.columns["position"]
    near = np.abs(test[:, None] - train) <= gap
    assert not (near & (who[test][:, None] == who[train])).any()
    assert not np.isin(test, train).any()
    share = (who[test] == 1).mean() * len(test) / 400
    assert abs(share - fraction) < 0.02
    assert (np.diff(test) > 0).all()
    assert (np.diff(train) > 0).all()


def test_marked_rows_are_held_out(tmp_path: Path) -> None:
    mark = np.array([False, True, False, False, True, True])
    dataset = load(tmp_path, recording(6, mark=mark), holdout="marked", holdout_column="mark")
    assert dataset.test.columns["position"].tolist() == [1, 4, 5]
    assert dataset.train.columns["position"].tolist() == [0, 2, 3]


def test_a_position_of_the_files_own_is_kept(tmp_path: Path) -> None:
    dataset = load(tmp_path, recording(20, position=np.arange(20) * 7))
    assert (dataset.train.columns["position"] % 7 == 0).all()


def test_images_of_an_undivided_file_become_channels_first(tmp_path: Path) -> None:
    images = np.arange(20 * 12, dtype=np.uint8).reshape(20, 2, 2, 3)
    dataset = load(tmp_path, {"x": images, "y": np.arange(20) % 2})
    place = dataset.test.columns["position"]
    wanted = np.moveaxis(images[place], 3, 1) / 255.0
    np.testing.assert_allclose(dataset.test.rows(np.arange(len(place))), wanted, rtol=1e-6)


def test_an_unknown_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    arrays = recording(20, who=np.zeros(20, int), other=np.zeros(3, int))
    for holdout in ("blocks", "marked"):
        message = refusal(tmp_path, arrays, holdout=holdout, holdout_column="subject")
        assert "there is no column 'subject'" in message
        assert message.endswith("set dataset.holdout_column to one of: who")


def test_marks_other_than_zero_and_one_are_refused(tmp_path: Path) -> None:
    arrays = recording(20, who=np.arange(20))
    message = refusal(tmp_path, arrays, holdout="marked", holdout_column="who")
    assert "the column 'who' has other values than 0 and 1" in message
    assert "set dataset.holdout_column to a column of marks" in message


def test_a_holdout_that_leaves_a_split_empty_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, recording(20), holdout="blocks", block=100)
    assert "train has 20 rows and test 0" in message
    assert "change dataset.test_fraction, block or gap" in message


def test_a_holdout_that_takes_all_rows_of_a_class_is_refused(tmp_path: Path) -> None:
    arrays = recording(20) | {"y": np.arange(20) // 2 % 10}
    message = refusal(tmp_path, arrays, holdout="blocks", block=2)
    assert "the test labels have classes that train lacks: 2, 7" in message
    assert "divide the data differently" in message
