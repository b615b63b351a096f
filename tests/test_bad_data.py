"""Damaged, truncated, missing and mislabelled data files are refused before anything is written."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import hub_files, pictures
from tests.commands import assert_refused, call, contents, write_config

ARRAYS: dict[str, Any] = {
    "x": np.zeros((40, 3), np.float32),
    "y": np.arange(40) % 2,
}


def npz(**arrays: Any) -> Callable[[Path], object]:
    """Returns what saves an archive with some arrays replaced, or left out where None."""
    kept = {key: array for key, array in {**ARRAYS, **arrays}.items() if array is not None}
    return lambda folder: np.savez(folder / "data.npz", **kept)


def damaged(keep: slice) -> Callable[[Path], object]:
    """Returns what saves a part of an archive."""

    def save(folder: Path) -> None:
        np.savez(folder / "data.npz", **ARRAYS)
        content = (folder / "data.npz").read_bytes()
        (folder / "data.npz").write_bytes(content[keep])

    return save


def idx(**files: bytes) -> Callable[[Path], object]:
    """Returns what saves four files of the MNIST format with some replaced."""
    images = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 5, 6))
    labels = bytes((0, 0, 8, 1, 0, 0, 0, 2, 0, 1))
    whole = {"train-images": images, "train-labels": labels}
    whole |= {"t10k-images": images, "t10k-labels": labels}
    whole |= {key.replace("_", "-"): content for key, content in files.items()}

    def save(folder: Path) -> None:
        for name, content in whole.items():
            axes = 3 if name.endswith("images") else 1
            if content:
                (folder / f"{name}-idx{axes}-ubyte").write_bytes(content)

    return save


def images(**files: bytes | None) -> Callable[[Path], object]:
    """Returns what saves a divided folder of images with some replaced or added; "__" is a "/"."""

    def save(folder: Path) -> None:
        for split, label in itertools.product(("train", "test"), ("ant", "dog")):
            pictures.save(folder / split / label / "0.png")
        for name, content in files.items():
            path = folder / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            if content is not None:
                path.write_bytes(content)

    return save


def hub(form: str, **columns: list[Any]) -> Callable[[Path], object]:
    """Returns what saves a split of arrays in a format of Hugging Face's."""
    rows: hub_files.Rows = {"x": [[1.0], [2.0], [3.0], [4.0]], "label": [0, 1, 0, 1], **columns}
    return lambda folder: hub_files.save(folder, form, train=rows, test=rows)


WHOLE = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x04\x00\x00\x00\x04\x08\x02"
NAN = np.where(np.arange(120).reshape(40, 3) == 31, np.nan, 0.0)


@pytest.mark.parametrize(
    ("kind", "save", "fragments"),
    [
        ("npz", lambda folder: None, ("data.npz is missing", "dataset.root", "dataset.file")),
        ("npz", damaged(slice(0, 300)), ("cannot be read", "data.npz", "copy it again")),
        ("npz", damaged(slice(5, None)), ("cannot be read", "data.npz", "numpy.savez")),
        ("npz", damaged(slice(0, 0)), ("cannot be read", "data.npz", "numpy.savez")),
        ("npz", npz(y=None), ("not all there", "data.npz", "dataset.labels", "found: x")),
        ("npz", npz(x=None), ("not all there", "data.npz", "save them")),
        ("npz", npz(y=ARRAYS["y"][:-1]), ("y has shape (39,)", "data.npz", "save y with")),
        ("npz", npz(y=np.linspace(0, 1, 40)), ("y is float64", "data.npz", "as integers")),
        ("npz", npz(y=ARRAYS["y"] - 1), ("negative label -1", "data.npz", "number the classes")),
        ("npz", npz(y=ARRAYS["y"] * 2), ("none is 1", "data.npz", "without gaps")),
        ("npz", npz(x=NAN), ("NaN or infinite in row 10", "data.npz", "repair or remove it")),
        ("npz", npz(x=np.array([{}] * 40)), ("x is object", "data.npz", "as numbers")),
        ("npz", npz(x=np.zeros(40)), ("x is float64 of shape (40,)", "data.npz", "(rows, ...)")),
        ("idx", idx(train_images=b""), ("train-images-idx3-ubyte", "missing", "put it there")),
        ("idx", idx(train_images=b"\0\0\x08\x03\0\0"), ("cut short", "train-images", "again")),
        ("idx", idx(t10k_images=b"GIF89a"), ("starts with 0x47494638", "t10k-images", "put")),
        ("idx", idx(train_labels=b"\0\0\x08\x01\0\0\0\x02\0"), ("cut short", "labels", "again")),
        ("idx", idx(train_labels=b"\0\0\x08\x01\0\0\0\x01\0"), ("1 labels for 2 images", "put")),
        ("idx", idx(train_labels=b"\0\0\x08\x01\0\0\0\x02\0\x02"), ("none is 1", "number the")),
        ("idx", idx(t10k_labels=b"\0\0\x08\x01\0\0\0\x02\0\x07"), ("train lacks: [7]", "put the")),
        (
            "idx",
            idx(train_images=gzip.compress(b"x" * 99, mtime=0)[:-9]),
            ("cannot be read", "again"),
        ),
        ("folder", lambda folder: None, ("holds no folder of a class", "put some there")),
        ("folder", images(train__ant__1_png=b"GIF89a"), ("ant/1.png", "no PNG or JPEG", "save it")),
        ("folder", images(test__dog__0_png=b""), ("test/dog/0.png", "cannot be used", "remove it")),
        ("folder", images(train__ant__1_png=WHOLE), ("ant/1.png", "cannot be used", "copy it")),
        ("folder", images(train__ant__1_gif=b"GIF89a"), ("ant/1.gif", "no image", "PNG or JPEG")),
        ("folder", images(train__1_png=WHOLE), ("train/1.png", "outside of a class", "put it")),
        ("folder", images(train__bee__0=None), ("train/bee", "holds no image", "put some there")),
        ("hub", lambda folder: None, ("cannot be loaded", "dataset.path", "check its path")),
        ("hub", hub("parquet", x=[[1.0]] * 3 + [[]]), ("different shapes", "make all rows")),
        ("hub", hub("disk", x=list("abcd")), ("'x' is Value('string')", "dataset.input")),
        ("hub", hub("disk", label=[0, 2, 2, 0]), ("none is 1", "dataset.path", "number the")),
        ("hub", hub("parquet", label=[0.0] * 4), ("'label' is Value('float64')", "name one of")),
        ("hub", hub("parquet", x=[[float("nan")]] * 4), ("NaN or infinite in row 0", "repair")),
    ],
)
def test_damaged_data_are_refused(
    kind: str, save: Callable[[Path], object], fragments: tuple[str, ...], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    save(data)
    dataset = {"name": kind, "path" if kind == "hub" else "root": str(data)}
    dataset |= {"npz": {"file": "data.npz"}, "hub": {"input": "x"}}.get(kind, {})
    config = write_config(tmp_path, {"dataset": dataset})
    before = contents(tmp_path)
    assert_refused(call("run", config, "--out", tmp_path / "out"), *fragments)
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"dataset": {"name": "npz", "root": str(tmp_path / "none")}})
    assert_refused(call("run", config), "none is missing", "dataset.root", "set it to the folder")
