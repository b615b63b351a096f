"""One NumPy archive (.npz) as arrays; nothing in it is ever unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedcl.core.data.table import IntArray
from fedcl.core.errors import ConfigError
from fedcl.datasets._arrays import Array, channels_first, unfit_row

__all__ = ["Archive", "read_archive", "read_inputs", "read_labels"]


@dataclass(frozen=True)
class Archive:
    """What a file holds.

    Attributes:
        path: The file.
        arrays: Its arrays by name; one of Python objects is an empty one of them.
    """

    path: Path
    arrays: Mapping[str, Array]

    def error(self, fact: str, remedy: str) -> ConfigError:
        """Returns the error that tells a fact about the file, and what to do about it."""
        return ConfigError(f"{fact}, in {self.path}; {remedy}")

    def check_length(self, key: str, inputs: str) -> None:
        """Raises ConfigError unless an array has one number for each row of the inputs."""
        shape, rows = self.arrays[key].shape, len(self.arrays[inputs])
        if shape != (rows,):
            fact = f"{key} has shape {shape} but {inputs} has {rows} rows"
            raise self.error(fact, f"save {key} with shape ({rows},)")


def read_archive(path: Path) -> Archive:
    """Returns the arrays of a file; raises ConfigError when it is missing or damaged."""
    arrays: dict[str, Array] = {}
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if start != b"PK" or not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no .npz archive, or cut short")
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                try:
                    arrays[key] = np.asanyarray(archive[key])
                except ValueError:  # Python objects: an error only if the array is needed
                    arrays[key] = np.empty((), dtype=object)
    except (OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        fact = f"the file cannot be read ({error}), in {path}"
        raise ConfigError(f"{fact}; save it with numpy.savez, or copy it again") from error
    return Archive(path, arrays)


def read_inputs(archive: Archive, key: str) -> Array:
    """Returns the (N, ...) inputs of that name, images channels first.

    Raises:
        ConfigError: They are no numbers, have no rows, or a row is NaN or infinite.
    """
    values = archive.arrays[key]
    if values.dtype.kind not in "iubf" or values.ndim < 2 or 0 in values.shape[1:]:
        fact = f"{key} is {values.dtype} of shape {values.shape}"
        raise archive.error(fact, "save inputs as numbers (no Python objects), shape (rows, ...)")
    row = unfit_row(values)
    if row is not None:
        raise archive.error(f"{key} is NaN or infinite in row {row}", "repair or remove it")
    return channels_first(values)


def read_labels(archive: Archive, key: str, inputs: str) -> IntArray:
    """Returns the (N,) int64 labels of that name.

    Args:
        archive: The file.
        key: Name of the labels.
        inputs: Name of the inputs that they are the labels of.

    Raises:
        ConfigError: They are no integers from 0, or not one for each row of the inputs.
    """
    labels = archive.arrays[key]
    if labels.dtype.kind not in "iub":
        raise archive.error(f"{key} is {labels.dtype}", "save class indices 0, 1, ... as integers")
    archive.check_length(key, inputs)
    labels = labels.astype(np.int64)
    if labels.size and labels.min() < 0:
        fact = f"{key} has the negative label {labels.min()}"
        raise archive.error(fact, "number the classes from 0 and remove rows without a class")
    return labels
