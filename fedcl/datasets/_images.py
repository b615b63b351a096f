"""Images as arrays of one shape: decoded at the start, or when fetched where memory is short."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache, partial
from importlib.util import find_spec
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedcl.core.data.table import ArrayTable, IntArray, Table
from fedcl.core.errors import ConfigError
from fedcl.datasets._arrays import Array
from fedcl.datasets._decoder import Decoder, Pixels, Shape, Sources

__all__ = ["Encoded", "ImageOptions"]


@dataclass(frozen=True)
class Encoded:
    """A split before its images are decoded."""

    sources: Sources
    labels: IntArray
    columns: Mapping[str, IntArray]


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options of all data sets of images, which become bytes, channels first.

    Attributes:
        size: Height and width that images are resized to (bilinear; their proportions change), or
            one number for both; 0 keeps the images, which must then be of one size.
        colour: "RGB" for three channels or "L" (luminance) for one; transparency is dropped.
        memory: Gigabytes (2^30 bytes) for decoded images. If all fit, they are decoded at the
            start; otherwise when they are fetched, and the latest that fit are kept.
        mean: Subtracted from the inputs after they are scaled to [0, 1].
        std: Divides the inputs after the mean is subtracted.
        test_fraction: Share of each class that is held out where the data name no test split.
        seed: Decides which rows are held out.
    """

    size: int | tuple[int, int] = 0
    colour: Literal["RGB", "L"] = "RGB"
    memory: float = 4.0
    mean: float = 0.0
    std: float = 1.0
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the options that need no file."""
        if self.size != 0 and min(self._sides) < 1:
            raise ValueError(f"size must be 0 or positive, not {self.size}")
        if self.colour not in ("RGB", "L"):
            raise ValueError(f'colour must be "RGB" or "L", not {self.colour!r}')
        if not 0.0 <= self.memory < math.inf:
            raise ValueError(f"memory must be finite and not negative, not {self.memory}")
        if not (math.isfinite(self.mean) and 0.0 < self.std < math.inf):
            raise ValueError(f"std must be positive and mean finite, not {self.std}, {self.mean}")
        if not 0.0 < self.test_fraction < 1.0:
            raise ValueError(f"test_fraction must lie between 0 and 1, not {self.test_fraction}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")

    def table(self, values: Array, labels: IntArray, columns: Mapping[str, IntArray]) -> ArrayTable:
        """Returns a split in memory; bytes are scaled to [0, 1]."""
        scale = 1.0 / 255.0 if values.dtype == np.uint8 else 1.0
        return ArrayTable(values, labels, columns, scale / self.std, -self.mean / self.std)

    def tables(
        self, splits: Sequence[Encoded], formats: tuple[str, ...] = ()
    ) -> tuple[list[Table], Shape]:
        """Returns the splits with their images, and the shape of one.

        Args:
            splits: Splits, none of them empty.
            formats: Formats that an image may have, by Pillow's names; none means any.

        Raises:
            ConfigError: An image cannot be read, or differs in size from the others.
        """
        if find_spec("PIL") is None:
            raise ConfigError(
                "images need the package pillow, which is not installed, in dataset.name; install "
                'fedcl with its extra "sim"'
            )
        decoder = Decoder(self._sides if self.size else None, self.colour, formats)
        first = splits[0].sources
        shape = decoder(first, 0).shape

        def check(found: Shape, sources: Sources, row: int) -> None:
            if found != shape:
                fact = f"images measure {_measured(shape)} and {_measured(found)}"
                places = f"{first.place(0)} and {sources.place(row)}"
                raise ConfigError(f"{fact}, in {places}; set dataset.size, e.g. dataset.size = 32")

        total = sum(len(split.labels) for split in splits)
        room = int(self.memory * 2**30 / math.prod(shape))
        tables: list[Table] = []
        for split in splits:
            if total > room:
                for row in range(len(split.labels)):
                    check(decoder.shape(split.sources, row), split.sources, row)
                kept = room * len(split.labels) // total
                tables.append(_Images(split, decoder, shape, self, kept))
            else:
                values = np.empty((len(split.labels), *shape), dtype=np.uint8)
                for row in range(len(values)):
                    pixels = decoder(split.sources, row)
                    check(pixels.shape, split.sources, row)
                    values[row] = pixels
                tables.append(self.table(values, split.labels, split.columns))
        return tables, shape

    @property
    def _sides(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True)
class _Images:
    """A split whose images are decoded when fetched; the latest ones are kept."""

    split: Encoded
    decoder: Decoder
    shape: Shape
    options: ImageOptions
    kept: int

    def __getstate__(self) -> dict[str, object]:
        # A worker decodes what it needs by itself.
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def labels(self) -> IntArray:
        return self.split.labels

    @property
    def columns(self) -> Mapping[str, IntArray]:
        return self.split.columns

    @cached_property
    def _pixels(self) -> Callable[[int], Pixels]:
        decode = partial(self.decoder, self.split.sources)
        return lru_cache(maxsize=self.kept)(decode)

    def rows(self, indices: IntArray) -> npt.NDArray[np.float32]:
        """Returns (len(indices), *shape) float32 inputs, the bits that `ArrayTable` gives."""
        values = np.empty((len(indices), *self.shape), dtype=np.uint8)
        for place, row in enumerate(indices.tolist()):
            values[place] = self._pixels(row)
        return self.options.table(values, indices, {}).rows(np.arange(len(values)))


def _measured(shape: Shape) -> str:
    return f"{shape[1]}x{shape[2]}"
