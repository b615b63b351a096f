"""Columns of a Hugging Face data set as arrays, codes or encoded images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fedcl.core.data.table import IntArray
from fedcl.core.errors import ConfigError
from fedcl.datasets._arrays import Array, channels_first, unfit_row
from fedcl.datasets._labels import listed, numbered

if TYPE_CHECKING:
    import datasets

__all__ = ["Images", "arrays", "codes", "holds_images"]

Splits: TypeAlias = "Sequence[datasets.Dataset]"
Error: TypeAlias = Callable[[str, str], ConfigError]  # of a fact and a remedy

_BATCH = 1000  # rows converted at once: bounds the memory that wider numbers need


def holds_images(split: datasets.Dataset, name: str) -> bool:
    """Returns whether a column is one of images."""
    from datasets import Image

    return isinstance(split.features[name], Image)


@dataclass(frozen=True)
class Images:
    """The images of a split, not yet decoded."""

    split: datasets.Dataset
    name: str
    origin: str

    @classmethod
    def of(cls, split: datasets.Dataset, name: str, origin: str) -> Images:
        """Returns the images of a column; `origin` says in errors where they come from."""
        from datasets import Image

        kept = split.select_columns([name]).cast_column(name, Image(decode=False))
        return cls(kept, name, origin)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> str | bytes:
        """Returns the content of an image, or the path of its file."""
        value = self.split[row][self.name]
        found: str | bytes | None = value and (value["bytes"] or value["path"])
        if found is None:
            raise ValueError("there is none")
        return found

    def place(self, row: int) -> str:
        """Returns where an image comes from."""
        return f"row {row} of column {self.name!r} of {self.origin}"


def codes(splits: Splits, name: str, error: Error) -> tuple[tuple[str, ...], list[IntArray]]:
    """Returns the names of a column's values, none for plain integers, and its codes by split."""
    from datasets import ClassLabel, Value

    feature = splits[0].features[name]
    words = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    dtype = _number(feature.dtype) if isinstance(feature, ClassLabel | Value) else None
    if not words and (dtype is None or dtype.kind == "f"):
        raise error(f"the column {name!r} is {feature}", "name one of integers or words")
    values = [split.select_columns([name])[:][name] for split in splits]
    for part in values:
        if None in part:
            fact = f"the column {name!r} has no value in row {part.index(None)}"
            raise error(fact, "remove that row, or name another column")
    if words:
        return numbered(values)
    names = tuple(feature.names) if isinstance(feature, ClassLabel) else ()
    return names, [np.array(part, np.int64) for part in values]


def arrays(splits: Splits, name: str, error: Error) -> list[Array]:
    """Returns a column of numbers as (N, ...) arrays by split; those of bytes are images."""
    feature = splits[0].features[name]
    dtype = _element(feature)
    if dtype is None:
        fact = f"the column {name!r} is {feature}"
        raise error(fact, "set dataset.input to a column of images or of arrays of numbers")
    found = []
    for split in splits:
        batches = split.select_columns([name]).with_format("numpy").iter(_BATCH)
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
                parts = [_narrowed(batch[name], dtype) for batch in batches]
            found.append(np.concatenate(parts))
        except ValueError as reason:
            fact = f"the column {name!r} has rows of different shapes or without values"
            raise error(fact, "make all rows arrays of one shape") from reason
    shapes = {values.shape[1:] for values in found}
    if len(shapes) > 1 or 0 in found[0].shape[1:]:
        fact = f"the column {name!r} has rows of the shapes {listed(shapes)}"
        raise error(fact, "make all rows arrays of one shape, none of them empty")
    for values in found:
        row = unfit_row(values)
        if row is not None:
            fact = f"the column {name!r} is NaN or infinite in row {row}"
            raise error(fact, "repair or remove it")
    return [channels_first(values) for values in found]


def _narrowed(values: Array, dtype: np.dtype[Any]) -> Array:
    """Undoes that the package widens integers; raises ValueError where values are missing."""
    if values.dtype == object or values.dtype.kind == "f" != dtype.kind:
        raise ValueError("not an array of numbers alone")
    return values.astype(dtype)


def _element(feature: Any) -> np.dtype[Any] | None:
    """Returns the type of the numbers in a column of arrays, or None where it holds no such."""
    from datasets import Array2D, Array3D, Array4D, Array5D, LargeList, List, Value

    arrays = (Array2D, Array3D, Array4D, Array5D)
    if not isinstance(feature, (*arrays, List, LargeList)):
        return None
    while isinstance(feature, List | LargeList):
        feature = feature.feature
    return _number(feature.dtype) if isinstance(feature, (*arrays, Value)) else None


def _number(name: str) -> np.dtype[Any] | None:
    """Returns the type of numbers of a name; None for words, dates and whatever else there is."""
    try:
        dtype = np.dtype(name)
    except TypeError:
        return None
    if dtype.kind == "f":
        return np.dtype(np.float32)
    return dtype if dtype.kind in "iub" else None
