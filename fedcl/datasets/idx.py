"""Data sets in the four files of the MNIST format (IDX), gzipped or not.

Source of the format: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.table import ArrayTable
from fedcl.core.errors import ConfigError
from fedcl.datasets._root import checked, named

__all__ = ["Idx"]

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Idx:
    """Reads `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and their `t10k-` twins.

    The names may end in `.gz` and may have a dot before `idx`. Inputs have the shape (1, height,
    width).

    Attributes:
        root: Folder that holds the four files.
        mean: Subtracted from the inputs after they are scaled to [0, 1].
        std: Divides the inputs after the mean is subtracted.
    """

    root: str = ""
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Checks the options that need no file."""
        if not (math.isfinite(self.mean) and 0.0 < self.std < math.inf):
            raise ValueError(f"std must be positive and mean finite, not {self.std}, {self.mean}")

    def load(self) -> Dataset:
        """Returns the data set, named after its folder.

        Raises:
            ConfigError: A file is missing, damaged, of another format, or does not fit the others.
        """
        root = checked(named(self.root, "files"), "that holds the four files of the MNIST format")
        train, test = self._split(root, "train"), self._split(root, "t10k")
        shape = train.values.shape[1:]
        if shape != test.values.shape[1:]:
            fact = f"train images measure {shape[1:]}, test images {test.values.shape[2:]}"
            raise ConfigError(f"{fact}, in {root}; put the files of one data set there")
        classes = _classes(train, test, root)
        return Dataset(root.resolve().name or "idx", train, test, classes, shape)

    def _split(self, root: Path, prefix: str) -> ArrayTable:
        images = _read(_find(root, f"{prefix}-images", 3), 3)
        path = _find(root, f"{prefix}-labels", 1)
        labels = _read(path, 1)
        if len(images) != len(labels):
            fact = f"there are {len(labels)} labels for {len(images)} images"
            raise ConfigError(f"{fact}, in {path}; put images and labels of one split there")
        return ArrayTable(
            images[:, None],
            labels.astype(np.int64),
            scale=1.0 / 255.0 / self.std,
            shift=-self.mean / self.std,
        )


def _find(root: Path, stem: str, axes: int) -> Path:
    for dash in "-.":
        for ending in ("", ".gz"):
            path = root / f"{stem}{dash}idx{axes}-ubyte{ending}"
            if path.is_file():
                return path
    fact = f"the file {stem}-idx{axes}-ubyte (or .gz) is missing, in {root} (dataset.root)"
    raise ConfigError(f"{fact}; put it there, or set dataset.root to the folder that holds it")


def _read(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    """Reads one file: zero, zero, 8 (bytes), number of axes, big-endian sizes, then the data."""
    again = f"in {path}; download or copy the file again"
    try:
        content = path.read_bytes()
        if content[:2] == _GZIP:
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"the file cannot be read ({error}), {again}") from error
    magic, start = bytes((0, 0, 8, axes)), 4 + 4 * axes
    if content[:4] != magic:
        fact = f"the file starts with 0x{content[:4].hex()}, not with 0x{magic.hex()}, in {path}"
        remedy = "put images and labels of the MNIST format there, each under its own name"
        raise ConfigError(f"{fact}; {remedy}")
    if len(content) < start:
        raise ConfigError(f"the file is cut short within its header, {again}")
    sizes = [int.from_bytes(content[k : k + 4], "big") for k in range(4, start, 4)]
    promised, found = math.prod(sizes), len(content) - start
    if found != promised:
        fact = "the file is cut short" if found < promised else "bytes trail behind the data"
        raise ConfigError(f"{fact} ({promised} bytes promised, {found} found), {again}")
    if promised == 0:
        fact = f"the file holds no data (its sizes are {sizes}), in {path}"
        raise ConfigError(f"{fact}; put a file with at least one example there")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _classes(train: ArrayTable, test: ArrayTable, root: Path) -> int:
    """Returns the number of classes; they must be 0 to C - 1, and each must occur in train."""
    present = np.unique(train.labels)
    gaps = np.flatnonzero(present != np.arange(present.size))
    if gaps.size:
        fact = f"the train labels go up to {present[-1]} but none is {gaps[0]}"
        raise ConfigError(f"{fact}, in {root}; number the classes from 0 without gaps")
    unseen = np.setdiff1d(test.labels, present)
    if unseen.size:
        fact = f"the test labels have classes that train lacks: {unseen.tolist()}"
        raise ConfigError(f"{fact}, in {root}; put the files of one data set there")
    return len(present)
