"""What the audits `inversion` and `classes` found: read from their files, summed up, and drawn."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from fedcl.reporting.results import damage
from fedcl.reporting.style import WIDTH, page, png

FOLDERS = ("audit", "audited/audit")
Floats = npt.NDArray[np.float64]
T = TypeVar("T")
_GROUPS = 8  # payloads and attacks that are drawn
_GAP = 1  # pixels between images
_EXACT = 200.0  # decibels from which on a reconstruction is called exact


@dataclass(frozen=True)
class Strip:
    """The best reconstructions of one payload by one attack.

    Attributes:
        name: Payload and attack.
        found: (n, channels, height, width) in [0, 1].
        original: The same of the true images.
        psnr: (n,) in decibels.
        baseline: (n,) of the mean image.
    """

    name: str
    found: Floats
    original: Floats
    psnr: Floats
    baseline: Floats


@dataclass(frozen=True)
class Told:
    """What all attacked replies, or sums, of one payload told; None where it is not asked or known.

    Attributes:
        payload: Kind of payload.
        view: `reply` or `sum`: what the server received.
        attack: The attack by which most came back.
        best: Largest PSNR.
        baseline: Largest PSNR of the mean image.
        recovered: Share of all examples behind attacked replies that came back above 25 dB.
        span: Mean area under the curve of membership by the span.
        classes: Mean F1 of the set of classes.
        coin: The same by coins.
    """

    payload: str
    view: str
    attack: str = "none fits"
    best: float | None = None
    baseline: float | None = None
    recovered: float | None = None
    span: float | None = None
    classes: float | None = None
    coin: float | None = None


@dataclass(frozen=True)
class Shown:
    """All of it, for a page.

    Attributes:
        strips: To be drawn; empty without images.
        told: A row for each payload and view.
    """

    strips: tuple[Strip, ...]
    told: tuple[Told, ...]

    @property
    def baseline(self) -> tuple[float, float]:
        """Least and largest PSNR of the mean image for the originals that are drawn."""
        values = np.concatenate([strip.baseline for strip in self.strips])
        return float(values.min()), float(values.max())


def read_reconstructions(run: Path) -> Shown | None:
    """Returns what the two audits found in a run or in its audited repeat; None if none ran.

    Raises:
        ConfigError: A file is damaged.
    """
    images = _read(run, "inversion.csv", _rows) or []
    classes = _read(run, "classes.csv", _rows) or []
    strips = _read(run, "inversion_pictures.npz", _strips) or ()
    if not images and not classes:
        return None
    try:
        return Shown(tuple(strips), tuple(_told(images, classes)))
    except (KeyError, ValueError, TypeError) as error:
        raise damage(run, "audit/inversion.csv", f"cannot be read ({error})") from error


def _read(run: Path, file: str, read: Callable[[Path], T]) -> T | None:
    name = next((f"{f}/{file}" for f in FOLDERS if (run / f / file).is_file()), None)
    if name is None:
        return None
    try:
        return read(run / name)
    except Exception as error:  # NumPy and zipfile raise many kinds
        raise damage(run, name, f"cannot be read ({error})") from error


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _strips(path: Path) -> list[Strip]:
    with np.load(path, allow_pickle=False) as arrays:
        table = {name: np.asarray(arrays[name]) for name in arrays.files}
    names = [f"{p}: {a}" for p, a in zip(table["payload"], table["attack"], strict=True)]
    columns = ("found", "original", "psnr", "baseline")
    found = []
    for name in dict.fromkeys(names):
        rows = np.array([name == own for own in names])
        found.append(Strip(name, *(table[key][rows].astype(np.float64) for key in columns)))
    return found


def _told(images: Sequence[Mapping[str, str]], classes: Sequence[Mapping[str, str]]) -> list[Told]:
    keys = [(r["payload"], "sum" if r["view"] == "sum" else "reply") for r in images]
    others = [(r["payload"], r["view"]) for r in classes]
    found = []
    for key in dict.fromkeys([*keys, *others]):
        own = [row for row, k in zip(images, keys, strict=True) if k == key]
        sets = [row for row, k in zip(classes, others, strict=True) if k == key]
        payload, view = key
        found.append(Told(payload, view, **(_best(own) | _sets(sets))))
    return found


def _best(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Returns the fields of the attack by which most examples came back, of all behind replies."""
    areas = [float(row["membership_auc"]) for row in rows if row["membership_auc"]]
    span = {"span": float(np.mean(areas)) if areas else None}
    tried: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if row["psnr_best"]:
            tried.setdefault(row["attack"], []).append(row)
    if not tried:
        return span
    choices = []
    # Some attacks are tried on small replies alone; one at least on all.
    total = max(sum(float(row["examples"]) for row in own) for own in tried.values())
    for own in tried.values():
        back = sum(float(row["examples"]) * float(row["recovered_25"]) for row in own)
        best, base = (max(float(row[k]) for row in own) for k in ("psnr_best", "baseline_best"))
        names = {"attack": own[0]["attack"], "recovered": back / total}
        choices.append({**names, "best": best, "baseline": base})
    return span | max(choices, key=lambda choice: (choice["recovered"], choice["best"]))


def _sets(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    if not rows:
        return {}
    weights = [int(row["replies"]) for row in rows]
    return {
        field: float(np.average([float(row[key]) for row in rows], weights=weights))
        for field, key in (("classes", "f1"), ("coin", "f1_coin"))
    }


def decibels(value: float | None) -> str:
    """Returns a PSNR as text: `exact` where nothing but rounding is wrong."""
    if value is None:
        return "n/a"
    return "exact" if math.isinf(value) or value >= _EXACT else f"{value:.1f}"


@png
def reconstructions(strips: Sequence[Strip]) -> Figure:
    """Draws for each payload and attack the originals above what was made of the payload.

    Below each pair stands its PSNR. Images of another number of channels than 3 are grey.

    Args:
        strips: One at least; the best few are drawn.
    """
    chosen = sorted(strips, key=lambda strip: -float(strip.psnr.max()))[:_GROUPS]
    most = max(len(strip.psnr) for strip in chosen)
    blocks = [_block(strip, most) for strip in chosen]
    columns = 1 if len(chosen) == 1 else 2
    rows = -(-len(chosen) // columns)
    tall = max(block.shape[0] / block.shape[1] for block in blocks) * (WIDTH / columns - 0.85)
    figure = page(WIDTH, rows * (tall + 0.55))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, strip, block in zip(panels, chosen, blocks, strict=False):
        height, width = (side + _GAP for side in strip.found.shape[2:])
        axes.imshow(block, interpolation="nearest")
        axes.grid(visible=False)
        axes.set_title(strip.name, size=9, pad=3)
        marks = [width * (k + 0.5) - 0.5 for k in range(len(strip.psnr))]
        axes.set_xticks(marks, [_short(value) for value in strip.psnr], size=7.5)
        places = [height * (k + 0.5) - 0.5 for k in range(2)]
        axes.set_yticks(places, ["original", "made of it"], size=7.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    return figure


def _short(value: float) -> str:
    return "exact" if value >= _EXACT else f"{value:.0f} dB"


def _block(strip: Strip, most: int) -> Floats:
    """Returns originals above reconstructions as one picture, white between and beside them."""
    parts = [_coloured(images) for images in (strip.original, strip.found)]
    height, width = parts[0].shape[1:3]
    block = np.ones((2 * (height + _GAP), most * (width + _GAP), 3))
    for row, images in enumerate(parts):
        for column, image in enumerate(images):
            top, left = row * (height + _GAP), column * (width + _GAP)
            block[top : top + height, left : left + width] = image
    return block


def _coloured(images: Floats) -> Floats:
    inside = np.clip(np.nan_to_num(images), 0.0, 1.0)
    if inside.shape[1] != 3:
        inside = inside.mean(axis=1, keepdims=True)
    return np.moveaxis(inside, 1, -1)
