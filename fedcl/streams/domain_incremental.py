"""Domain-incremental learning: the classes stay, the inputs change.

They are permuted, rotated, or come from natural domains. van de Ven, Tuytelaars and Tolias, Three
types of incremental learning, Nature Machine Intelligence, 2022; permuted MNIST: Goodfellow et al.,
2013; rotated MNIST: Lopez-Paz and Ranzato, NeurIPS 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.scenario import InputTransform
from fedcl.core.data.table import IntArray
from fedcl.core.errors import ConfigError
from fedcl.core.seeds import numpy_generator
from fedcl.core.task import ScenarioKind
from fedcl.streams._scenario import Cut, Scenario

__all__ = ["DomainIncremental"]


@dataclass(frozen=True)
class Permute:
    """Puts the features of every input in another order.

    Attributes:
        order: (features,) a permutation.
    """

    order: IntArray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Returns (n, ...) inputs of the same shape."""
        return np.take(x.reshape(len(x), len(self.order)), self.order, axis=1).reshape(x.shape)


@dataclass(frozen=True)
class Rotate:
    """Turns images about their centre, with linear interpolation and zeros outside.

    Attributes:
        degrees: Angle, counter-clockwise.
    """

    degrees: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Returns (n, channels, height, width) images of the same shape."""
        places, weights = _bilinear(self.degrees, *x.shape[2:])
        flat = x.reshape(-1, places.shape[1])
        turned = np.zeros_like(flat)
        for place, weight in zip(places, weights, strict=True):
            turned += np.take(flat, place, axis=1) * weight
        return turned.reshape(x.shape)


@lru_cache(maxsize=32)
def _bilinear(
    degrees: float, height: int, width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Returns the four pixels that each pixel of a turned image is made of, and their weights.

    Both are (4, height * width). The weights of a pixel that comes from outside the image are 0.
    """
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    down, right = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    # Where a pixel comes from: as far back, clockwise. Rounded, so that quarter turns are exact.
    row = np.round(cosine * down + sine * right + (height - 1) / 2, 9).ravel()
    column = np.round(cosine * right - sine * down + (width - 1) / 2, 9).ravel()
    inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)
    top, left = np.floor(row), np.floor(column)
    places, weights = [], []
    for low in (0, 1):
        for far in (0, 1):
            y, x = np.clip(top + low, 0, height - 1), np.clip(left + far, 0, width - 1)
            places.append((y * width + x).astype(np.int64))
            weight = (1 - np.abs(row - top - low)) * (1 - np.abs(column - left - far))
            weights.append(np.where(inside, weight, 0.0).astype(np.float32))
    return np.stack(places), np.stack(weights)


@dataclass(frozen=True, kw_only=True)
class DomainIncremental(Scenario):
    """The same classes under changing inputs.

    Attributes:
        transform: `permute` (a permutation of the features a task), `rotate` (a fixed angle a task)
            or `column` (the values of a column of the data are the domains).
        degrees: Angle of the last task; the tasks turn in equal steps from 0.
        column: Column that names the domain.
        domains: Values of the column in the order of the tasks; empty means ascending.
        keep_first: Whether the first permuted task is the original data, as in FOT's protocol.
    """

    kind: ClassVar[ScenarioKind] = "domain"

    transform: Literal["permute", "rotate", "column"] = "permute"
    degrees: float = 90.0
    column: str = "domain"
    domains: tuple[int, ...] = ()
    keep_first: bool = True

    def cut(self, dataset: Dataset, seed: int) -> Sequence[Cut]:
        """Returns one task for each permutation, angle or domain."""
        if self.transform == "column":
            return self._natural(dataset)
        if self.tasks < 1:
            raise ConfigError(f'[stream] transform = "{self.transform}" needs tasks, at least 1')
        if self.transform == "rotate" and len(dataset.shape) != 3:
            raise ConfigError(
                '[stream] transform = "rotate" needs images (channels, height, width), but inputs '
                f'of data set {dataset.name!r} have shape {dataset.shape}: use "permute"'
            )
        train, test = np.arange(len(dataset.train.labels)), np.arange(len(dataset.test.labels))
        cuts = []
        for task in range(self.tasks):
            name, change = self._change(dataset, seed, task)
            cuts.append(Cut(name, train, test, change))
        return cuts

    def _change(self, dataset: Dataset, seed: int, task: int) -> tuple[str, InputTransform | None]:
        if self.transform == "rotate":
            angle = self.degrees * task / max(1, self.tasks - 1)
            return f"{angle:g} degrees", Rotate(angle) if angle else None
        if task == 0 and self.keep_first:
            return "original", None
        order = numpy_generator(seed, "permute", task).permutation(int(np.prod(dataset.shape)))
        return f"permutation {task}", Permute(order)

    def _natural(self, dataset: Dataset) -> Sequence[Cut]:
        for split, table in (("training", dataset.train), ("test", dataset.test)):
            if self.column not in table.columns:
                raise ConfigError(
                    f"[stream] column {self.column!r} is not in the {split} split of data set "
                    f"{dataset.name!r}, which has the columns: "
                    f"{', '.join(sorted(table.columns)) or 'none'}"
                )
        train, test = dataset.train.columns[self.column], dataset.test.columns[self.column]
        found = [int(value) for value in np.unique(train)]
        domains = list(self.domains) or found
        missing = sorted(set(domains) - set(found))
        if missing:
            raise ConfigError(
                f"[stream] domains {missing} do not occur in column {self.column!r}: it has {found}"
            )
        if self.tasks not in (0, len(domains)):
            raise ConfigError(
                f"[stream] column {self.column!r} names {len(domains)} domains, but tasks = "
                f"{self.tasks}: set it to {len(domains)} or 0"
            )
        return [
            Cut(f"{self.column} {d}", np.flatnonzero(train == d), np.flatnonzero(test == d))
            for d in domains
        ]
