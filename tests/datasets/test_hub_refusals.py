"""Data sets in Hugging Face's formats that cannot be used: what is wrong, where, what to do."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcl.core.errors import ConfigError
from fedcl.datasets.hub import Hub
from tests import hub_files
from tests.hub_files import TEST, TRAIN, features, pictures
from tests.pictures import picture


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Hub(path=str(path), **options).load()
    message = str(caught.value)
    assert "\n" not in message
    assert f", in {path} (dataset.path); " in message
    return message


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits of pictures as `save_to_disk` writes them."""
    folder = tmp_path_factory.mktemp("hub") / "disk"
    return hub_files.save(folder, "disk", features(), train=TRAIN, test=TEST)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as parquet files."""
    folder = tmp_path_factory.mktemp("hub") / "parquet"
    return hub_files.save(folder, "parquet", features(), train=TRAIN, test=TEST)


def test_asks_for_the_path() -> None:
    with pytest.raises(ConfigError, match=r"set dataset\.path, e\.g\. --set dataset\.path=FOLDER"):
        Hub().load()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r'not installed, .*; install fedcl with its extra "hub"'):
        Hub(path="anything").load()


def test_a_split_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="split_train must name a split"):
        Hub(split_train="")


# What cannot be loaded.


@pytest.mark.parametrize("path", ["nowhere", "someone/nothing", "no such name!"])
def test_a_name_that_cannot_be_reached_is_named(path: str) -> None:
    message = refusal(path)
    assert message.startswith("the data set cannot be loaded (ConnectionError: Couldn't reach ")
    assert 'check its path, config, revision, split_train and split_test ("": held out)' in message


def test_a_folder_that_is_missing_or_holds_nothing_is_named(tmp_path: Path) -> None:
    assert "Couldn't find any data file" in refusal(tmp_path / "none")
    (tmp_path / "void").mkdir()
    assert "the data set cannot be loaded (" in refusal(tmp_path / "void")


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_damaged_files_of_a_saved_set_are_refused(tmp_path: Path, file: str) -> None:
    path = hub_files.save(tmp_path / "set", "disk", features(), train=TRAIN, test=TEST)
    (path / "train" / file).write_bytes((path / "train" / file).read_bytes()[:40])
    assert refusal(path).startswith("the data set cannot be loaded (")
    (path / "train" / file).unlink()
    assert refusal(path).startswith("the data set cannot be loaded (")


def test_damaged_parquet_files_are_refused(tmp_path: Path) -> None:
    path = hub_files.save(tmp_path / "set", "parquet", features(), train=TRAIN, test=TEST)
    file = path / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    assert refusal(path).startswith("the data set cannot be loaded (")


def test_splits_that_are_not_there_are_refused_with_those_there_are(
    disk: Path, parquet: Path
) -> None:
    assert "there is no split 'valid' but test, train)" in refusal(disk, split_test="valid")
    assert "should be one of ['train', 'test']" in refusal(parquet, split_train="fit").lower()


def test_one_split_cannot_be_two(tmp_path: Path) -> None:
    path = hub_files.save(tmp_path / "one", "one", features(), any=TRAIN)
    message = refusal(path)
    assert "there is no split 'test' but train)" in message
    assert 'split_test ("": held out)' in message


def test_configurations_that_are_not_there_are_refused(disk: Path, parquet: Path) -> None:
    assert "what save_to_disk wrote has no config and no revision" in refusal(disk, config="x")
    assert "what save_to_disk wrote has no config" in refusal(disk, revision="main")
    assert "'x' not found. Available: ['default']" in refusal(parquet, config="x")


# Columns.


@pytest.mark.parametrize(
    ("option", "value"), [("input", "img"), ("label", "labels"), ("columns", ("domain", "city"))]
)
def test_an_absent_column_is_refused_with_those_there_are(
    disk: Path, option: str, value: Any
) -> None:
    message = refusal(disk, **{option: value})
    name = value if isinstance(value, str) else "city"
    assert message.startswith(f"there is no column {name!r}, in ")
    assert message.endswith(f"set dataset.{option} to one of: domain, image, label")


def test_a_column_that_is_no_input_is_refused(disk: Path) -> None:
    for name in ("domain", "label"):
        message = refusal(disk, input=name)
        assert message.startswith(f"the column {name!r} is ")
        assert "set dataset.input to a column of images or of arrays of numbers" in message


def test_a_column_that_cannot_be_numbered_is_refused(disk: Path) -> None:
    message = refusal(disk, label="image")
    assert message.startswith("the column 'image' is Image(")
    assert "name one of integers or words" in message


def saved(folder: Path, kinds: dict[str, Any], **columns: Any) -> Path:
    """Saves one split with inputs `x` and labels `y`, with changes."""
    from datasets import List, Value

    rows: hub_files.Rows = {"x": [[1.0], [2.0], [3.0]], "y": [0, 1, 0], **columns}
    types = {"x": List(Value("float32")), "y": Value("int64"), **kinds}
    return hub_files.save(folder / "set", "disk", types, train=rows, test=rows)


@pytest.mark.parametrize(
    ("element", "values", "words"),
    [
        ("float32", [[1.0], [2.0, 3.0], [4.0]], "rows of different shapes or without values"),
        ("float32", [[1.0], None, [4.0]], "rows of different shapes or without values"),
        ("int16", [[1], [None], [4]], "rows of different shapes or without values"),
        ("float32", [[1.0], [None], [4.0]], "is NaN or infinite in row 1"),
        ("float64", [[1.0], [2.0], [1e300]], "is NaN or infinite in row 2"),
        ("float32", [[], [], []], "rows of the shapes (0,)"),
        ("string", [["a"], ["b"], ["c"]], "the column 'x' is List(Value('string'))"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    tmp_path: Path, element: str, values: Any, words: str
) -> None:
    from datasets import List, Value

    path = saved(tmp_path, {"x": List(Value(element))}, x=values)
    assert words in refusal(path, input="x", label="y")


def test_shapes_that_differ_between_splits_are_refused(tmp_path: Path) -> None:
    one: hub_files.Rows = {"x": [[1.0], [2.0]], "y": [0, 1]}
    two: hub_files.Rows = {"x": [[1.0, 5.0], [2.0, 5.0]], "y": [0, 1]}
    path = hub_files.save(tmp_path / "set", "disk", None, train=one, test=two)
    assert "rows of the shapes (1,), (2,)" in refusal(path, input="x", label="y")


@pytest.mark.parametrize(
    ("kind", "labels", "words"),
    [
        ("int64", [0, None, 1], "the column 'y' has no value in row 1"),
        ("int64", [0, 2, 2], "the train labels go up to 2 but none is 1"),
        ("int64", [0, -1, 1], "there is the negative label -1"),
        ("string", ["a", None, "b"], "the column 'y' has no value in row 1"),
        ("float32", [0.0, 1.0, 1.0], "the column 'y' is Value('float32')"),
        ("timestamp[s]", [0, 1, 1], "the column 'y' is Value('timestamp[s]')"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, kind: str, labels: list[Any], words: str
) -> None:
    from datasets import Value

    path = saved(tmp_path, {"y": Value(kind)}, y=labels)
    assert words in refusal(path, input="x", label="y")


def test_a_class_label_without_a_class_is_refused(tmp_path: Path) -> None:
    path = hub_files.save(
        tmp_path / "set",
        "disk",
        features(domain=None),
        train=pictures([1, 2, 3, 4], [0, 0, -1, -1]),
    )
    assert "there is the negative label -1" in refusal(path, split_test="", test_fraction=0.5)


def test_classes_that_train_lacks_are_named(tmp_path: Path) -> None:
    splits = {"train": pictures([1, 2], [0, 0]), "test": pictures([3, 4], [2, 1])}
    path = hub_files.save(tmp_path / "set", "disk", features(domain=None), **splits)
    assert "classes that train lacks: ant, dog" in refusal(path)


def test_splits_whose_labels_mean_different_things_are_refused(tmp_path: Path) -> None:
    from datasets import ClassLabel

    path = tmp_path / "set"
    hub_files.save(path / "train", "one", features(), train=TRAIN)
    other = features(label=ClassLabel(names=["ant", "cat", "dog"]))
    hub_files.save(path / "test", "one", other, test=TEST)
    (path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    message = refusal(path)
    assert message.startswith("the column 'label' is ClassLabel(names=['cat', 'ant', 'dog'])")
    assert "in train, but ClassLabel(names=['ant', 'cat', 'dog']) in test" in message


def test_splits_without_rows_are_refused(disk: Path, parquet: Path) -> None:
    assert "corresponds to no data" in refusal(parquet, split_test="test[:0]")
    message = refusal(disk, split_test="", test_fraction=0.01)
    assert message.startswith("train has 4 rows and test 0, in ")
    assert message.endswith("name other splits, or raise dataset.test_fraction")


# Images.


def test_images_that_cannot_be_used_are_named_by_row(tmp_path: Path) -> None:
    import datasets

    kinds = features(image=datasets.Image(decode=False), domain=None)
    whole = hub_files.pictures([1, 2, 3], [0, 1, 2])
    for damage in (b"no image", None):
        split = datasets.Dataset.from_dict(dict(whole), datasets.Features(features(domain=None)))
        encoded = [row["image"] for row in split.cast_column("image", kinds["image"])]
        encoded[1] = {"bytes": damage, "path": None} if damage else None
        path = tmp_path / str(damage)
        rows = {"image": encoded, "label": [0, 1, 2]}
        hub_files.save(path, "disk", kinds, train=rows, test=whole)
        message = refusal_of_image(path)
        assert f"), in row 1 of column 'image' of the train part of {path}; save it as" in message
    assert message.startswith("an image cannot be used (there is none), in ")


def refusal_of_image(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        Hub(path=str(path)).load()
    return str(caught.value)


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    rows: hub_files.Rows = {"image": [picture(0), picture(1, 6, 7)], "label": [0, 1]}
    path = hub_files.save(tmp_path / "set", "disk", features(domain=None), train=rows, test=rows)
    message = refusal_of_image(path)
    assert message.startswith("images measure 4x5 and 6x7, in row 0 of column 'image' of the train")
    assert message.endswith("set dataset.size, e.g. dataset.size = 32")
    assert Hub(path=str(path), size=5).load().shape == (3, 5, 5)


def test_a_size_for_numbers_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {})
    message = refusal(path, input="x", label="y", size=4)
    assert message.startswith("the column 'x' holds no images to resize, in ")
    assert np.size(Hub(path=str(path), input="x", label="y").load().shape) == 1
