"""Files in the MNIST format, written byte by byte."""

import gzip
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedcl.core.errors import ConfigError
from fedcl.datasets.idx import Idx

TRAIN_IMAGES = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3) * 11
TEST_IMAGES = TRAIN_IMAGES[:2] + 1


def packed(values: np.ndarray) -> bytes:
    """Returns an IDX file of bytes: zero, zero, 8, number of axes, sizes, data."""
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write(
    root: Path,
    name: Callable[[str, int], str] = lambda stem, axes: f"{stem}-idx{axes}-ubyte",
    pack: Callable[[bytes], bytes] = bytes,
    **changed: np.ndarray,
) -> Path:
    """Writes the four files; `changed` replaces arrays by the stem, e.g. `train_labels`."""
    arrays = {
        "train_images": TRAIN_IMAGES,
        "train_labels": np.array([0, 1, 2, 1]),
        "t10k_images": TEST_IMAGES,
        "t10k_labels": np.array([2, 0]),
    } | changed
    for key, values in arrays.items():
        stem, axes = key.replace("_", "-"), 3 if key.endswith("images") else 1
        (root / name(stem, axes)).write_bytes(pack(packed(values)))
    return root


def refusal(root: Path) -> str:
    """Returns the message of the ConfigError that loading raises."""
    with pytest.raises(ConfigError) as caught:
        Idx(str(root)).load()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        (lambda stem, axes: f"{stem}-idx{axes}-ubyte", bytes),
        (lambda stem, axes: f"{stem}-idx{axes}-ubyte.gz", gzip.compress),
        (lambda stem, axes: f"{stem}.idx{axes}-ubyte", bytes),
        (lambda stem, axes: f"{stem}.idx{axes}-ubyte.gz", gzip.compress),
        (lambda stem, axes: f"{stem}-idx{axes}-ubyte", gzip.compress),  # unpacked by name only
    ],
)
def test_reads_the_four_files_under_each_of_their_names(
    tmp_path: Path, name: Callable[[str, int], str], pack: Callable[[bytes], bytes]
) -> None:
    dataset = Idx(str(write(tmp_path, name, pack))).load()
    assert (dataset.name, dataset.classes, dataset.shape) == (tmp_path.name, 3, (1, 2, 3))
    assert dataset.train.labels.tolist() == [0, 1, 2, 1]
    assert dataset.test.labels.tolist() == [2, 0]
    assert dataset.train.labels.dtype == np.int64
    for table, images in ((dataset.train, TRAIN_IMAGES), (dataset.test, TEST_IMAGES)):
        rows = table.rows(np.arange(len(images)))
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, images[:, None] / 255.0, rtol=1e-6)


def test_mean_and_std_apply_after_scaling(tmp_path: Path) -> None:
    table = Idx(str(write(tmp_path)), mean=0.25, std=0.5).load().train
    wanted = (TRAIN_IMAGES[[3, 1], None] / 255.0 - 0.25) / 0.5
    np.testing.assert_allclose(table.rows(np.array([3, 1])), wanted, atol=1e-6)


@pytest.mark.parametrize("options", [{"std": 0.0}, {"std": float("nan")}, {"mean": float("inf")}])
def test_refuses_a_normalisation_that_is_none(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="std must be positive and mean finite"):
        Idx(**options)  # type: ignore[arg-type]


def test_asks_for_the_root() -> None:
    with pytest.raises(ConfigError, match=r"set dataset\.root, e\.g\. --set dataset\.root=FOLDER"):
        Idx().load()


def test_a_root_that_is_missing_or_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"{tmp_path / 'none'} is missing, in dataset.root; set it" in refusal(tmp_path / "none")
    assert f"{file} is not a folder, in dataset.root; set it to the folder" in refusal(file)


@pytest.mark.parametrize("stem", ["train-images-idx3", "t10k-labels-idx1"])
def test_a_missing_file_is_named(tmp_path: Path, stem: str) -> None:
    (write(tmp_path) / f"{stem}-ubyte").unlink()
    message = refusal(tmp_path)
    assert f"{stem}-ubyte (or .gz) is missing, in {tmp_path} (dataset.root); put it" in message


# Without the time, which would be another one in each process that collects these tests.
GZIPPED = gzip.compress(packed(TRAIN_IMAGES), mtime=0)


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "starts with 0x, not with 0x00000803"),
        (packed(np.zeros(4)), "starts with 0x00000801, not with 0x00000803"),
        (b"\0\0\x0d\x03" + bytes(12), "starts with 0x00000d03, not with 0x00000803"),
        (b"<html>Not found</html>", "starts with 0x3c68746d, not with 0x00000803"),
        (packed(TRAIN_IMAGES)[:15], "cut short within its header"),
        (packed(TRAIN_IMAGES)[:-1], "the file is cut short (24 bytes promised, 23 found)"),
        (packed(TRAIN_IMAGES) + b"\0", "bytes trail behind the data (24 bytes promised, 25 found)"),
        (packed(np.zeros((0, 2, 3))), "the file holds no data (its sizes are [0, 2, 3])"),
        (packed(np.zeros((4, 0, 3))), "the file holds no data (its sizes are [4, 0, 3])"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 9), "cut short"),
        (GZIPPED[:-9], "the file cannot be read"),
        (GZIPPED + b"junk", "the file cannot be read"),
        (GZIPPED[:12] + bytes(40), "the file cannot be read"),
        (GZIPPED[:10] + b"\xff" * 40, "the file cannot be read"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(tmp_path: Path, content: bytes, fact: str) -> None:
    path = write(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(content)
    message = refusal(tmp_path)
    assert fact in message
    assert re.search(f"in {re.escape(str(path))}; (download|put)", message)


@pytest.mark.parametrize(
    ("changed", "place", "message"),
    [
        (
            {"train_labels": np.array([0, 1, 2])},
            "train-labels-idx1-ubyte",
            "there are 3 labels for 4 images, in {}; put images and labels of one split there",
        ),
        (
            {"t10k_images": np.zeros((2, 3, 3))},
            ".",
            "train images measure (2, 3), test images (3, 3), in {}; put the files",
        ),
        (
            {"train_labels": np.array([0, 1, 3, 1])},
            ".",
            "the train labels go up to 3 but none is 2, in {}; number the classes from 0",
        ),
        (
            {"t10k_labels": np.array([9, 9])},
            ".",
            "the test labels have classes that train lacks: [9], in {}; put the files",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, changed: dict[str, np.ndarray], place: str, message: str
) -> None:
    write(tmp_path, **changed)  # type: ignore[arg-type]
    assert message.format(tmp_path / place) in refusal(tmp_path)
