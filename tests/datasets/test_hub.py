"""What is read from data sets in Hugging Face's formats: images, arrays, labels and columns."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.table import ArrayTable, Table
from fedcl.datasets.hub import Hub
from tests import hub_files
from tests.hub_files import TEST, TRAIN, features
from tests.pictures import pixels


def load(path: Path, **options: Any) -> Dataset:
    return Hub(path=str(path), **options).load()


def every(table: Table) -> np.ndarray:
    return table.rows(np.arange(len(table.labels)))


def inputs(*numbers: int) -> np.ndarray:
    return np.stack([np.moveaxis(pixels(number), 2, 0) for number in numbers]) / 255.0


@pytest.fixture(scope="module", params=["disk", "parquet"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with classes and domains."""
    folder = tmp_path_factory.mktemp("hub") / "animals"
    return hub_files.save(folder, request.param, features(), train=TRAIN, test=TEST)


def test_reads_images_with_named_classes(saved: Path) -> None:
    dataset = load(saved)
    assert (dataset.name, dataset.classes, dataset.shape) == ("animals", 3, (3, 4, 5))
    assert dataset.class_names == ("cat", "ant", "dog")
    assert dataset.train.labels.tolist() == [0, 2, 1, 0]
    assert dataset.test.labels.tolist() == [1, 2]
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.columns == dataset.test.columns == {}
    assert every(dataset.train).dtype == np.float32
    np.testing.assert_allclose(every(dataset.train), inputs(1, 2, 3, 4), rtol=1e-6)
    np.testing.assert_allclose(every(dataset.test), inputs(5, 6), rtol=1e-6)


def test_words_in_columns_are_numbered_over_both_splits(saved: Path) -> None:
    dataset = load(saved, columns=("domain", "label"))
    assert {k: v.tolist() for k, v in dataset.train.columns.items()} == {
        "domain": [1, 0, 1, 0],  # art, photo, sketch
        "label": [0, 2, 1, 0],
    }
    assert {k: v.tolist() for k, v in dataset.test.columns.items()} == {
        "domain": [2, 0],
        "label": [1, 2],
    }


def test_words_may_be_the_labels(saved: Path) -> None:
    dataset = load(saved, label="domain", split_test="train")
    assert (dataset.classes, dataset.class_names) == (2, ("art", "photo"))
    assert dataset.train.labels.tolist() == [1, 0, 1, 0]


def test_images_are_resized_and_coloured(saved: Path) -> None:
    dataset = load(saved, size=(2, 3), colour="L", mean=0.25, std=0.5)
    assert dataset.shape == (1, 2, 3)
    grey = Image.fromarray(pixels(1)).convert("L").resize((3, 2), Image.Resampling.BILINEAR)
    wanted = (np.asarray(grey)[None] / 255 - 0.25) / 0.5
    np.testing.assert_allclose(every(dataset.train)[0], wanted, atol=1e-6)


def test_a_share_of_a_split_is_held_out(saved: Path) -> None:
    dataset = load(saved, split_test="", test_fraction=0.5, columns=("domain",))
    assert dataset.class_names == ("cat", "ant", "dog")
    assert sorted(dataset.train.labels) == [0, 1, 2] and dataset.test.labels.tolist() == [0]
    rows = np.concatenate([every(dataset.train), every(dataset.test)])
    order = [int(row[0, 0, 0] * 255 + 0.5) // 31 for row in rows]
    assert sorted(order) == [1, 2, 3, 4]
    np.testing.assert_allclose(rows, inputs(*order), rtol=1e-6)
    held = order[-1]
    assert dataset.test.columns["domain"].tolist() == [[1, 0, 1, 0][held - 1]]


def test_images_decoded_when_fetched_give_the_same_bits(saved: Path) -> None:
    whole, lazy = load(saved), load(saved, memory=100 / 2**30)
    assert isinstance(whole.train, ArrayTable) and not isinstance(lazy.train, ArrayTable)
    chosen = np.array([3, 0, 0, 2])
    expected = whole.train.rows(chosen)
    np.testing.assert_array_equal(lazy.train.rows(chosen), expected)
    copy = pickle.loads(pickle.dumps(lazy.train))
    np.testing.assert_array_equal(copy.rows(chosen), expected)


def test_a_set_of_one_split_without_a_name(tmp_path: Path) -> None:
    path = hub_files.save(tmp_path / "one", "one", features(), any=TRAIN)
    dataset = load(path, split_test="", test_fraction=0.5)
    assert len(dataset.train.labels) == 3 and len(dataset.test.labels) == 1


def test_slices_of_parquet_files(tmp_path: Path) -> None:
    path = hub_files.save(tmp_path / "set", "parquet", features(), train=TRAIN, test=TEST)
    dataset = load(path, split_train="train[1:]", split_test="train[:2]")
    np.testing.assert_allclose(every(dataset.train), inputs(2, 3, 4), rtol=1e-6)
    np.testing.assert_allclose(every(dataset.test), inputs(1, 2), rtol=1e-6)


def test_other_names_and_configurations(tmp_path: Path) -> None:
    """A data card says which files are which configuration, as on the hub."""
    hub_files.save(tmp_path / "all" / "x", "parquet", features(), fit=TRAIN, eval=TEST)
    hub_files.save(tmp_path / "all" / "y", "parquet", features(), fit=TEST, eval=TEST)
    entries = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: fit\n    path: {name}/fit-*\n"
        f"  - split: eval\n    path: {name}/eval-*\n"
        for name in ("x", "y")
    )
    (tmp_path / "all" / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    names = {"split_train": "fit", "split_test": "eval"}
    assert len(load(tmp_path / "all", config="x", **names).train.labels) == 4
    assert len(load(tmp_path / "all", config="y", **names).train.labels) == 2


# Arrays of numbers.


def arrays(folder: Path, kind: Any, values: Any, form: str = "disk", **options: Any) -> Dataset:
    from datasets import Value

    rows = {"x": values, "y": [0, 1, 0, 1]}
    kinds = {"x": kind, "y": Value("int32")}
    path = hub_files.save(folder / "set", form, kinds, train=rows, test=rows)
    return load(path, input="x", label="y", **options)


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_bytes_in_arrays_are_images(tmp_path: Path, form: str) -> None:
    from datasets import Array2D, Array3D

    grey = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3) * 9
    dataset = arrays(tmp_path / "grey", Array2D((2, 3), "uint8"), grey, form)
    assert (dataset.shape, dataset.classes, dataset.class_names) == ((1, 2, 3), 2, ())
    np.testing.assert_allclose(every(dataset.train), grey[:, None] / 255, rtol=1e-6)
    colours = np.arange(4 * 2 * 5 * 3, dtype=np.uint8).reshape(4, 2, 5, 3)
    dataset = arrays(tmp_path / "colour", Array3D((2, 5, 3), "uint8"), colours, form, mean=0.5)
    wanted = np.moveaxis(colours, 3, 1) / 255 - 0.5
    np.testing.assert_allclose(every(dataset.train), wanted, atol=1e-6)


@pytest.mark.parametrize("form", ["disk", "parquet"])
@pytest.mark.parametrize("element", ["int16", "uint8", "float16", "float32", "float64", "bool"])
def test_lists_of_numbers_are_inputs(tmp_path: Path, form: str, element: str) -> None:
    from datasets import List, Value

    values = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]]).astype(element)
    dataset = arrays(tmp_path / form, List(Value(element)), values.tolist(), form)
    assert dataset.shape == (3,)
    factor = 255 if element == "uint8" else 1
    np.testing.assert_allclose(every(dataset.test), values.astype(float) / factor, rtol=1e-6)


def test_lists_of_lists_of_numbers_are_inputs(tmp_path: Path) -> None:
    from datasets import List, Value

    values = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    kind = List(List(Value("float32"), length=2))
    dataset = arrays(tmp_path, kind, values.tolist(), mean=0.5, std=2.0)
    np.testing.assert_allclose(every(dataset.train), (values - 0.5) / 2, rtol=1e-5, atol=1e-6)


def test_more_rows_than_are_converted_at_once(tmp_path: Path) -> None:
    from datasets import Array2D, Value

    values = np.random.default_rng(0).integers(0, 256, (2500, 2, 2), dtype=np.uint8)
    rows: hub_files.Rows = {"x": list(values), "y": [0, 1] * 1250}
    kinds = {"x": Array2D((2, 2), "uint8"), "y": Value("int64")}
    path = hub_files.save(tmp_path / "set", "disk", kinds, train=rows)
    dataset = load(path, input="x", label="y", split_test="", test_fraction=0.1)
    assert len(dataset.test.labels) == 250
    assert isinstance(dataset.train, ArrayTable) and dataset.train.values.dtype == np.uint8
    both = np.concatenate([every(dataset.train), every(dataset.test)])
    counts = (np.bincount((both * 255).round().astype(int).ravel(), minlength=256)).tolist()
    assert counts == np.bincount(values.ravel(), minlength=256).tolist()


def test_no_bar_of_progress_is_drawn(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from datasets import utils

    shown = utils.are_progress_bars_disabled()
    load(saved)
    assert capfd.readouterr() == ("", "")
    assert utils.are_progress_bars_disabled() == shown
