"""Data sets in one NumPy archive (.npz), already divided into train and test or divided here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.table import ArrayTable, IntArray
from fedcl.core.errors import ConfigError
from fedcl.datasets._archive import Archive, read_archive, read_inputs, read_labels
from fedcl.datasets._holdout import Mask, block_rows, random_rows
from fedcl.datasets._labels import class_count, listed
from fedcl.datasets._root import checked, named

__all__ = ["Npz"]

Holdout = Literal["random", "blocks", "marked"]


@dataclass(frozen=True)
class Npz:
    """Reads inputs, labels and columns from one archive; nothing is ever unpickled.

    A divided file holds `x_train`, `y_train`, `x_test`, `y_test`; further pairs of integer arrays
    `<column>_train`, `<column>_test` (or `y_train_<column>`, `y_test_<column>`) are columns. An
    undivided file holds `x`, `y` and columns under their plain names: a hold-out divides it, rows
    keep their order in both splits, and a column `position` (row in the file) is added unless the
    file has one. Other arrays are ignored.

    Bytes are images: (N, H, W) and (N, H, W, C) with C in 1, 3, 4 become channels first, scaled by
    1/255. A number `scale` in the file is the factor of integer inputs instead. Classes are named
    by `class_names` (by `<labels>_names` for other labels than `y`).

    Attributes:
        root: Folder of the data, or the .npz file itself.
        file: Name of the .npz file in that folder.
        labels: Label array, without `_train` and `_test`, e.g. "coarse".
        mean: Subtracted from the inputs after they are scaled.
        std: Divides the inputs after the mean is subtracted.
        holdout: How an undivided file is divided. "random": by class, at random. "blocks": the rows
            of each value of `holdout_column`, in order, are cut into blocks, every k-th held out
            (for windows that overlap). "marked": `holdout_column` is 1 in test rows and else 0.
        holdout_column: Column that tells recordings apart for "blocks" (empty: the file is one), or
            that marks the test rows for "marked".
        test_fraction: Share of the rows that "random" and "blocks" hold out, between 0 and 1.
        block: Rows in a block.
        gap: Train rows dropped next to a test block; 1 suits windows that overlap by half.
        seed: Decides which rows "random" holds out.
    """

    root: str = ""
    file: str = ""
    labels: str = "y"
    mean: float = 0.0
    std: float = 1.0
    holdout: Holdout = "random"
    holdout_column: str = ""
    test_fraction: float = 0.2
    block: int = 8
    gap: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the options that need no file."""
        if not (math.isfinite(self.mean) and 0.0 < self.std < math.inf):
            raise ValueError(f"std must be positive and mean finite, not {self.std}, {self.mean}")
        if self.holdout not in get_args(Holdout):
            raise ValueError(f"holdout must be one of {get_args(Holdout)}, not {self.holdout!r}")
        if self.holdout == "marked" and not self.holdout_column:
            raise ValueError('holdout_column must name the test marks with holdout = "marked"')
        if not 0.0 < self.test_fraction < 1.0:
            raise ValueError(f"test_fraction must lie between 0 and 1, not {self.test_fraction}")
        for name, least in (("block", 1), ("gap", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")

    def load(self) -> Dataset:
        """Returns the data set, named after its file.

        Raises:
            ConfigError: The file is missing or damaged, or its arrays are missing or do not fit.
        """
        archive = read_archive(_locate(self.root, self.file))
        tables = [self._table(archive, keys) for keys in _splits(archive, self.labels)]
        train, test = tables if len(tables) == 2 else self._divide(archive, tables[0])
        if not (len(train.labels) and len(test.labels)):
            fact = f"train has {len(train.labels)} rows and test {len(test.labels)}"
            remedy = "save some for each, or change dataset.test_fraction, block or gap"
            raise archive.error(fact, remedy)
        kinds = [
            f"{part.values.dtype} of shape {part.values.shape[1:]}, columns {listed(part.columns)}"
            for part in (train, test)
        ]
        if kinds[0] != kinds[1]:
            raise archive.error(f"train is {kinds[0]}, but test {kinds[1]}", "save both alike")
        key = "class_names" if self.labels == "y" else f"{self.labels}_names"
        saved = archive.arrays.get(key, np.empty(0, "U1"))
        names = tuple(map(str, saved)) if (saved.ndim, saved.dtype.kind) == (1, "U") else ()
        classes = class_count(train.labels, test.labels, names, archive.error)
        return Dataset(archive.path.stem, train, test, classes, train.values.shape[1:], names)

    def _table(self, archive: Archive, keys: Mapping[str, str]) -> ArrayTable:
        values = read_inputs(archive, keys["x"])
        labels = read_labels(archive, keys[self.labels], keys["x"])
        columns: dict[str, IntArray] = {}
        for name, key in keys.items():
            array = archive.arrays[key]
            if name in ("x", self.labels) or array.ndim != 1 or array.dtype.kind not in "iub":
                continue
            if name != key:  # in an undivided file, an array of another length is no column
                archive.check_length(key, keys["x"])
            if len(array) == len(values):
                columns[name] = array.astype(np.int64)
        scale = 1.0 / 255.0 if values.dtype == np.uint8 else 1.0
        saved = archive.arrays.get("scale")
        if saved is not None and values.dtype.kind in "iu":
            scale = float(saved) if saved.shape == () and saved.dtype.kind in "iuf" else 0.0
            if not math.isfinite(scale) or scale == 0.0:
                raise archive.error("scale is no factor", "save one finite number other than 0")
        return ArrayTable(values, labels, columns, scale / self.std, -self.mean / self.std)

    def _divide(self, archive: Archive, table: ArrayTable) -> tuple[ArrayTable, ArrayTable]:
        name = self.holdout_column if self.holdout != "random" else ""
        if name and name not in table.columns:
            remedy = f"set dataset.holdout_column to one of: {listed(table.columns)}"
            raise archive.error(f"there is no column {name!r}", remedy)
        column = table.columns.get(name, np.zeros_like(table.labels))
        if self.holdout == "random":
            kept, held = random_rows(table.labels, self.test_fraction, self.seed)
        elif self.holdout == "blocks":
            kept, held = block_rows(column, self.test_fraction, self.block, self.gap)
        else:
            kept, held = column == 0, column == 1
            if not (kept | held).all():
                fact = f"the column {name!r} has other values than 0 and 1"
                raise archive.error(fact, "set dataset.holdout_column to a column of marks")
        columns = {"position": np.arange(len(table.labels), dtype=np.int64), **table.columns}

        def part(mask: Mask) -> ArrayTable:
            chosen = {key: values[mask] for key, values in columns.items()}
            values, labels = table.values[mask], table.labels[mask]
            return replace(table, values=values, labels=labels, columns=chosen)

        return part(kept), part(held)


def _splits(archive: Archive, labels: str) -> list[dict[str, str]]:
    """Returns, for train and test or for the whole, each array's key by its plain name."""
    splits: list[dict[str, str]] = [{}, {}]
    for key in archive.arrays:
        match = re.fullmatch(r"(?:y_train_(.+)|(.+)_train)", key)
        if match and (other := key.replace("_train", "_test")) in archive.arrays:
            name = match[1] or match[2]
            splits[0][name], splits[1][name] = key, other
    if "x" in archive.arrays and "x_train" not in archive.arrays:
        splits = [{key: key for key in archive.arrays}]
    for name in ("x", labels):
        if name not in splits[0]:
            fact = f"{name}_train and {name}_test (or x and y undivided) are not all there"
            remedy = "save them, or set dataset.labels or dataset.file to what there is"
            raise archive.error(fact, f"{remedy}; found: {listed(archive.arrays)}")
    return splits


def _locate(root: str, file: str) -> Path:
    folder = named(root, "files")
    if folder.is_file() and not file:
        return folder
    checked(folder, "of the data")
    if file and (folder / file).is_file():
        return folder / file
    fact = f"the file {file} is missing" if file else "no file is chosen"
    found = listed(path.name for path in folder.glob("*.npz"))
    raise ConfigError(f"{fact}, in {folder} (dataset.root); set dataset.file to one of: {found}")
