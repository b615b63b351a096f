"""Images that a method's generator drew: read from a run's folder, and shown by class and stage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from fedcl.reporting.results import damage
from fedcl.reporting.style import WIDTH, page, png

Floats = npt.NDArray[np.float32]

_ROWS = 20  # classes that are shown
_BLOCKS = 10  # stages that are shown
_ACROSS = 36  # images side by side
_RANGE = (1.0, 99.0)  # percentiles that are black and white
_GAP = 1  # pixels between images


@dataclass(frozen=True)
class Samples:
    """What one stage left.

    Attributes:
        images: (n, channels, height, width), in the units of the data.
        labels: (n,) classes.
    """

    images: Floats
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shown:
    """Which of a run's images its figure has, and what a caption must say of the rest.

    Attributes:
        stages: The stages, ascending.
        classes: The classes, ascending.
        each: Most images of a class and stage.
        all_stages: How many stages have images.
        all_classes: How many classes have images.
    """

    stages: tuple[int, ...]
    classes: tuple[int, ...]
    each: int
    all_stages: int
    all_classes: int


def read_samples(folder: Path) -> dict[int, Samples]:
    """Returns the images of a run by stage, ascending; what are no images is left out.

    Raises:
        ConfigError: A file is damaged.
    """
    found = {}
    for path in (folder / "samples").glob("stage_*.npz"):
        if not (number := re.fullmatch(r"stage_(\d+)", path.stem)):
            continue
        name = f"samples/{path.name}"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                images = np.asarray(arrays["images"], dtype=np.float32)
                labels = np.asarray(arrays["labels"], dtype=np.int64)
        except KeyError as error:
            raise damage(folder, name, f"lacks {error.args[0]!r}") from None
        except Exception as error:  # NumPy and zipfile raise many kinds
            raise damage(folder, name, f"cannot be read ({error})") from None
        if labels.ndim != 1 or len(images) != len(labels):
            raise damage(folder, name, "has not one label for each image")
        if images.ndim == 4 and images.size:
            found[int(number[1])] = Samples(images, labels)
    return dict(sorted(found.items()))


def choose(samples: Mapping[int, Samples]) -> Shown:
    """Returns what of it fits in one figure: evenly spaced stages and classes, first and last too.

    Raises:
        ValueError: There are no images.
    """
    stages = _spaced(tuple(samples), _BLOCKS)
    every = tuple(sorted({int(label) for one in samples.values() for label in one.labels}))
    most = max(int(np.bincount(samples[stage].labels).max()) for stage in stages)
    each = max(1, min(most, _ACROSS // len(stages)))
    return Shown(stages, _spaced(every, _ROWS), each, len(samples), len(every))


def _spaced(values: Sequence[int], most: int) -> tuple[int, ...]:
    if len(values) <= most:
        return tuple(values)
    return tuple(values[k * (len(values) - 1) // (most - 1)] for k in range(most))


@png
def grids(samples: Mapping[int, Samples], shown: Shown) -> Figure:
    """Draws a block for each stage: a row for each class, a few images in it.

    All images share one scale of brightness, so that blocks compare; colours are kept. Images of
    another number of channels than 3 are grey: the mean of their channels.
    """
    pixels = np.concatenate([_coloured(samples[stage].images).ravel() for stage in shown.stages])
    finite = pixels[np.isfinite(pixels)]
    low, high = np.percentile(finite, _RANGE) if len(finite) else (0.0, 1.0)
    span = max(float(high - low), 1e-12)
    blocks = [_block(samples[stage], shown, float(low), span) for stage in shown.stages]
    height, width = blocks[0].shape[:2]
    across = len(blocks) * (width + 2 * _GAP)
    wide = min(WIDTH, max(2.2, 0.5 * shown.each * len(blocks)) + 0.9)
    figure = page(wide, (wide - 0.9) * height / across + 0.55)
    figure.set_layout_engine("constrained", w_pad=0.05, wspace=0.01)
    style: dict[str, Any] = {"sharey": True, "squeeze": False}
    panels = figure.subplots(1, len(blocks), **style)[0]
    tall = height / len(shown.classes)
    for axes, stage, block in zip(panels, shown.stages, blocks, strict=True):
        axes.imshow(block, interpolation="nearest")
        axes.grid(visible=False)
        axes.set_title(f"stage {stage}", size=9, pad=3)
        axes.set_xticks([])
        axes.set_yticks(
            [tall * (row + 0.5) - 0.5 for row in range(len(shown.classes))],
            [str(label) for label in shown.classes],
        )
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel("class")
    return figure


def _coloured(images: Floats) -> Floats:
    """Returns (n, height, width, 3) or (n, height, width, 1)."""
    if images.shape[1] == 3:
        return np.moveaxis(images, 1, -1)
    grey: Floats = np.moveaxis(images.mean(axis=1, keepdims=True), 1, -1)
    return grey


def _block(samples: Samples, shown: Shown, low: float, span: float) -> npt.NDArray[np.float64]:
    """Returns one picture of a stage's images, (height, width, 3) in [0, 1]; white between them."""
    images = np.clip((np.nan_to_num(_coloured(samples.images)) - low) / span, 0.0, 1.0)
    height, width = images.shape[1] + _GAP, images.shape[2] + _GAP
    block = np.ones((len(shown.classes) * height, shown.each * width, 3))
    for row, label in enumerate(shown.classes):
        for column, image in enumerate(images[samples.labels == label][: shown.each]):
            top, left = row * height, column * width
            block[top : top + height - _GAP, left : left + width - _GAP] = image
    return block
