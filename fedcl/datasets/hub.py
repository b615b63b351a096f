"""Data sets of the Hugging Face Hub, or saved in its formats (extra `hub`).

Lhoest et al., Datasets: a community library for natural language processing, EMNLP 2021 (system
demonstrations).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.table import Table
from fedcl.core.errors import ConfigError
from fedcl.datasets._holdout import random_rows
from fedcl.datasets._hub_columns import Images, arrays, codes, holds_images
from fedcl.datasets._images import Encoded, ImageOptions
from fedcl.datasets._labels import class_count, listed

if TYPE_CHECKING:
    import datasets

__all__ = ["Hub"]

_SAVED = ("dataset_dict.json", "state.json")  # written by save_to_disk for several splits, for one


@dataclass(frozen=True, kw_only=True)
class Hub(ImageOptions):
    """Loads images or arrays of numbers by the package `datasets`; no code of a data set is run.

    Images become bytes, channels first; so do arrays of bytes of shape (height, width) or (height,
    width, channels). Labels are the numbers of a ClassLabel, integers from 0, or words, which are
    numbered in their order; further columns likewise.

    Attributes:
        path: Name of the data set on the hub, a folder that `save_to_disk` wrote, or a folder of
            files that the package reads, such as parquet.
        config: Name of one of its configurations; empty takes its default.
        revision: Commit, tag or branch on the hub; empty takes the newest.
        split_train: Split to train on; but for `save_to_disk`, also a slice: "train[:10%]".
        split_test: Split to test on; empty holds out a share of the other one.
        input: Column of the inputs.
        label: Column of the labels.
        columns: Further columns, e.g. of domains or people.
    """

    path: str = ""
    config: str = ""
    revision: str = ""
    split_train: str = "train"
    split_test: str = "test"
    input: str = "image"
    label: str = "label"
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the options that need no data."""
        super().__post_init__()
        if not self.split_train:
            raise ValueError("split_train must name a split")

    def load(self) -> Dataset:
        """Returns the data set, named as the last part of its path.

        Raises:
            ConfigError: The extra is missing, the data cannot be loaded, or a column is missing or
                of a kind that cannot be used.
        """
        splits = self._splits()
        self._check_columns(splits)
        if len(splits) == 1:
            splits = self._divided(splits[0])
        if not all(len(split) for split in splits):
            fact = f"train has {len(splits[0])} rows and test {len(splits[1])}"
            raise self._error(fact, "name other splits, or raise dataset.test_fraction")
        names, labels = codes(splits, self.label, self._error)
        classes = class_count(labels[0], labels[1], names, self._error)
        further = {name: codes(splits, name, self._error)[1] for name in self.columns}
        columns = [{name: code[k] for name, code in further.items()} for k in (0, 1)]
        tables: Sequence[Table]
        if holds_images(splits[0], self.input):
            sources = [
                Images.of(split, self.input, f"the {part} part of {self.path}")
                for split, part in zip(splits, ("train", "test"), strict=True)
            ]
            tables, shape = self.tables(list(map(Encoded, sources, labels, columns)))
        elif self.size:
            fact = f"the column {self.input!r} holds no images to resize"
            raise self._error(fact, "leave out dataset.size, or set dataset.input")
        else:
            values = arrays(splits, self.input, self._error)
            tables = list(map(self.table, values, labels, columns))
            shape = values[0].shape[1:]
        return Dataset(Path(self.path).name, tables[0], tables[1], classes, shape, names)

    def _divided(self, split: datasets.Dataset) -> list[datasets.Dataset]:
        _, (labels,) = codes([split], self.label, self._error)
        masks = random_rows(labels, self.test_fraction, self.seed)
        return [split.select(np.flatnonzero(mask), keep_in_memory=True) for mask in masks]

    def _error(self, fact: str, remedy: str) -> ConfigError:
        return ConfigError(f"{fact}, in {self.path} (dataset.path); {remedy}")

    def _check_columns(self, splits: Sequence[datasets.Dataset]) -> None:
        options = [("input", self.input), ("label", self.label)]
        for option, name in options + [("columns", name) for name in self.columns]:
            for split in splits:
                if name not in split.features:
                    remedy = f"set dataset.{option} to one of: {listed(split.features)}"
                    raise self._error(f"there is no column {name!r}", remedy)
            train, test = splits[0].features[name], splits[-1].features[name]
            if train != test:
                fact = f"the column {name!r} is {train} in train, but {test} in test"
                raise self._error(fact, "save both alike")

    def _splits(self) -> list[datasets.Dataset]:
        """Returns the split to train on and, if one is named, the split to test on."""
        if not self.path:
            fact = "the dataset needs a name on the hub or a folder, in the table [dataset]"
            raise ConfigError(f"{fact}; set dataset.path, e.g. --set dataset.path=FOLDER")
        try:
            from datasets import load_dataset  # slow to import, and only needed here
        except ImportError as error:
            raise ConfigError(
                "data sets of the hub need the package datasets, which is not installed, in "
                'dataset.name; install fedcl with its extra "hub"'
            ) from error
        names = [name for name in (self.split_train, self.split_test) if name]
        folder = Path(self.path).expanduser()
        path = str(folder) if folder.exists() else self.path
        config, revision = self.config or None, self.revision or None
        try:
            with _no_progress():
                if any((folder / file).is_file() for file in _SAVED):
                    if config or revision:
                        raise ValueError("what save_to_disk wrote has no config and no revision")
                    return _saved(path, names)
                return list(load_dataset(path, config, split=names, revision=revision))
        except Exception as error:  # other people's files and networks may fail in any way
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            remedy = 'check its path, config, revision, split_train and split_test ("": held out)'
            raise self._error(f"the data set cannot be loaded ({reason})", remedy) from error


def _saved(folder: str, names: Sequence[str]) -> list[datasets.Dataset]:
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(folder)
    if not isinstance(loaded, DatasetDict):  # one split, whatever it is called
        loaded = DatasetDict({names[0]: loaded})
    for name in names:
        if name not in loaded:
            raise ValueError(f"there is no split {name!r} but {listed(loaded)}")
    return [loaded[name] for name in names]


@contextmanager
def _no_progress() -> Iterator[None]:
    from datasets import utils

    shown = not utils.are_progress_bars_disabled()
    if shown:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            utils.enable_progress_bars()
