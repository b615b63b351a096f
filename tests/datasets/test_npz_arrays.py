"""Arrays that do not fit: each is refused with its name, the file and a remedy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcl.core.errors import ConfigError
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


def refusal(folder: Path, arrays: dict[str, Any], **options: Any) -> str:
    """Returns the message of the ConfigError that loading raises; it must name the file."""
    with pytest.raises(ConfigError) as caught:
        Npz(str(save(folder, **arrays)), **options).load()
    assert f", in {folder / 'data.npz'}; " in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        (
            {"x_train": None},
            ("x_train and x_test", "not all there", "found: x_test, y_test, y_train"),
        ),
        ({"x_test": None}, ("x_train and x_test", "save them", "found: x_train, y_test, y_train")),
        ({"y_test": None}, ("y_train and y_test", "dataset.labels", "x_test, x_train, y_train")),
        ({"x_train": GREY[:3]}, ("y_train has shape (4,) but x_train has 3 rows", "shape (3,)")),
        ({"y_test": np.zeros((2, 1), int)}, ("y_test has shape (2, 1)", "save y_test with shape")),
        (
            {"domain_train": np.zeros(4, int), "domain_test": np.zeros(3, int)},
            (
                "domain_test has shape (3,) but x_test has 2 rows",
                "save domain_test with shape (2,)",
            ),
        ),
        (
            {"domain_train": np.zeros(4, int), "domain_test": np.zeros(2)},
            ("columns domain, but test", "columns (none)", "save both alike"),
        ),
        ({"y_train": np.zeros(4)}, ("y_train is float64", "as integers")),
        ({"y_test": np.array(["a", "b"])}, ("y_test is <U1", "as integers")),
        ({"y_train": np.array([0, -1, 2, 1])}, ("negative label -1", "number the classes from 0")),
        ({"y_train": np.array([0, 3, 2, 3])}, ("go up to 3 but none is 1", "save class_names")),
        ({"y_train": np.array([1, 2, 3, 1]), "y_test": [1, 2]}, ("none is 0", "from 0")),
        ({"y_test": np.array([5, 0])}, ("test labels have classes that train lacks: 5", "remove")),
        (
            {"class_names": np.array(["a", "b"])},
            ("the label 2 lies beyond the 2 names of the classes", "a name for each"),
        ),
        (
            {"class_names": np.array(["a", "b", "c"]), "y_test": [3, 0]},
            ("the label 3 lies beyond the 3 names", "number the classes from 0"),
        ),
        ({"x_train": GREY[:0], "y_train": np.zeros(0, int)}, ("train has 0 rows", "save some")),
        ({"x_test": GREY[:0], "y_test": np.zeros(0, int)}, ("and test 0", "save some for each")),
        ({"x_test": np.zeros((2, 3, 3), np.uint8)}, ("of shape (1, 3, 3)", "save both alike")),
        ({"x_test": np.zeros((2, 1, 2, 2))}, ("uint8 of shape", "but test float64", "save both")),
        ({"x_train": np.zeros(4)}, ("x_train is float64 of shape (4,)", "shape (rows, ...)")),
        ({"x_train": np.zeros((4, 0))}, ("x_train is float64 of shape (4, 0)", "save inputs")),
        (
            {"x_train": np.zeros((4, 2), complex)},
            ("x_train is complex128", "save inputs as numbers"),
        ),
        ({"x_train": np.array([["a"]] * 4)}, ("x_train is <U1", "save inputs as numbers")),
        ({"scale": np.nan}, ("scale is no factor", "save one finite number other than 0")),
        ({"scale": 0}, ("scale is no factor", "save one finite number other than 0")),
        ({"scale": "big"}, ("scale is no factor", "save one finite number other than 0")),
        ({"scale": np.ones(2)}, ("scale is no factor", "save one finite number other than 0")),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, changed: dict[str, Any], parts: tuple[str, ...]
) -> None:
    arrays = {key: array for key, array in (DIVIDED | changed).items() if array is not None}
    message = refusal(tmp_path, arrays)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("key", ["x_train", "x_test"])
def test_inputs_that_are_not_finite_are_refused(tmp_path: Path, key: str, value: float) -> None:
    arrays = DIVIDED | {"x_train": np.zeros((4, 3)), "x_test": np.zeros((2, 3))}
    arrays[key][1, 2] = value
    message = refusal(tmp_path, arrays)
    assert f"{key} is NaN or infinite in row 1" in message
    assert "repair or remove it" in message


def test_the_row_that_is_not_finite_is_found_among_many(tmp_path: Path) -> None:
    x = np.zeros((9, 2**18), np.float32)
    x[7, 5] = np.nan
    message = refusal(tmp_path, {"x": x, "y": np.zeros(9, int)})
    assert "x is NaN or infinite in row 7" in message


def test_unknown_labels_are_refused_with_what_there_is(tmp_path: Path) -> None:
    message = refusal(tmp_path, DIVIDED, labels="coarse")
    assert "coarse_train and coarse_test" in message
    assert "set dataset.labels" in message
    assert message.endswith("found: x_test, x_train, y_test, y_train")


def test_long_lists_are_cut(tmp_path: Path) -> None:
    message = refusal(tmp_path, {f"layer{k:02}": np.zeros(2) for k in range(30)})
    assert "layer19 and 10 more" in message
    assert "layer20" not in message
