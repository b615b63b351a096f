"""Images (PNG, JPEG) in a folder for each class, already divided into train and test or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fedcl.core.data.dataset import Dataset
from fedcl.core.errors import ConfigError
from fedcl.datasets._holdout import random_rows
from fedcl.datasets._images import Encoded, ImageOptions
from fedcl.datasets._labels import class_count, numbered
from fedcl.datasets._root import checked, named

__all__ = ["Folder"]

_ENDINGS = (".png", ".jpg", ".jpeg")
_Image: TypeAlias = tuple[str, tuple[str, ...]]  # path, names of the folders that it lies in


@dataclass(frozen=True, kw_only=True)
class Folder(ImageOptions):
    """Reads `train/<class>/<image>` and `test/<class>/<image>`, or undivided `<class>/<image>`.

    Classes are numbered in the order of their names. With `columns = ["domain"]` there is a level
    of folders above the classes, `train/<domain>/<class>/<image>`, whose names are numbered in the
    same way and become a column. Names that begin with a dot are ignored; links are followed.

    Attributes:
        root: Folder of the data.
        columns: Names of the levels of folders above the classes, from the top.
    """

    root: str = ""
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the options that need no file."""
        super().__post_init__()
        if "" in self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns must be different words, not {list(self.columns)}")

    def load(self) -> Dataset:
        """Returns the data set, named after its folder.

        Raises:
            ConfigError: A folder is missing, empty or out of place, or an image cannot be used.
        """
        root = checked(named(self.root, "images"), "of the images")
        depth = len(self.columns) + 1
        splits = [list(_images(part, (), depth)) for part in _parts(root)]
        if len(splits) == 1:
            splits = self._divided(splits[0], root)
        *columns, (classes, labels) = (
            numbered([[names[level] for _, names in split] for split in splits])
            for level in range(depth)
        )

        def error(fact: str, remedy: str) -> ConfigError:
            return ConfigError(f"{fact}, in {root}; {remedy}")

        class_count(labels[0], labels[1], classes, error)
        encoded = [
            Encoded(
                _Files(tuple(path for path, _ in split)),
                labels[part],
                {name: codes[part] for name, (_, codes) in zip(self.columns, columns, strict=True)},
            )
            for part, split in enumerate(splits)
        ]
        (train, test), shape = self.tables(encoded, ("PNG", "JPEG"))
        return Dataset(root.resolve().name, train, test, len(classes), shape, classes)

    def _divided(self, images: list[_Image], root: Path) -> list[list[_Image]]:
        _, (labels,) = numbered([[names[-1] for _, names in images]])
        kept, held = random_rows(labels, self.test_fraction, self.seed)
        if not held.any():
            fact = f"{len(images)} images leave none for testing, in {root}"
            raise ConfigError(f"{fact}; raise dataset.test_fraction or add images")
        return [[images[row] for row in np.flatnonzero(mask)] for mask in (kept, held)]


@dataclass(frozen=True)
class _Files:
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> str:
        return self.paths[row]

    place = __getitem__


def _parts(root: Path) -> list[Path]:
    """Returns the folders of train and test, or the one of all images."""
    parts = [root / "train", root / "test"]
    there = [part for part in parts if part.is_dir()]
    if len(there) == 1:
        (missing,) = set(parts) - set(there)
        remedy = f"put it there, or set dataset.root to {there[0]} to hold out a share of it"
        raise ConfigError(f"the folder {missing} is missing (dataset.root); {remedy}")
    return there or [root]


def _images(folder: Path, names: tuple[str, ...], depth: int) -> Iterator[_Image]:
    """Yields the images below a folder by name; `names` are those of the levels above."""
    folders, files = _visible(folder)
    if len(names) < depth:
        stray = next((file for file in files if _is_image(file)), None)
        if stray is not None:
            remedy = "put it into the folder of its class; dataset.columns names levels above"
            raise ConfigError(f"the image {stray} lies outside of a class; {remedy}")
        if not folders:
            raise ConfigError(f"{folder} holds no folder of a class; put some there, or remove it")
        for below in folders:
            yield from _images(below, (*names, below.name), depth)
        return
    if folders:
        remedy = "name each level above the classes in dataset.columns, or remove it"
        raise ConfigError(f"the folder {folders[0]} lies among images of a class; {remedy}")
    if not files:
        raise ConfigError(f"the class {folder} holds no image; put some there, or remove it")
    for file in files:
        if not _is_image(file):
            remedy = "save it as PNG or JPEG with a name that says so, or remove it"
            raise ConfigError(f"{file} is no image of a known kind; {remedy}")
        yield str(file), names


def _visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the folders and the files in a folder by name, those with a dot left out."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in entries:
            os.stat(entry.path)  # a link may lead nowhere
        folders = {entry.name for entry in entries if entry.is_dir()}
    except OSError as error:
        fact = f"{error.filename} cannot be read ({error.strerror})"
        raise ConfigError(f"{fact}, in dataset.root; mend or remove it") from error
    paths = [folder / entry.name for entry in entries]
    inside = [path for path in paths if path.name in folders]
    return inside, [path for path in paths if path.name not in folders]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS
