"""Small pictures whose every pixel is known, and folders of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]


def pixels(number: int, height: int = 4, width: int = 5) -> Bytes:
    """Returns a (height, width, 3) picture that differs from those of other numbers."""
    grid = np.arange(height * width * 3).reshape(height, width, 3)
    return (grid * 7 + number * 31).astype(np.uint8)


def picture(number: int, height: int = 4, width: int = 5) -> Image.Image:
    """Returns the same as an image."""
    return Image.fromarray(pixels(number, height, width))


def save(path: Path, number: int = 0, **options: Any) -> Path:
    """Writes a picture; the ending of the name says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number, **options).save(path)
    return path


def write(root: Path, files: Mapping[str, int]) -> Path:
    """Writes pictures below a folder: their numbers by path."""
    for name, number in files.items():
        save(root / name, number)
    return root


def learnable(number: int, side: int = 8) -> Image.Image:
    """Returns a noisy picture of class `number % 4`: one bright quarter."""
    values = np.random.default_rng(number).integers(0, 100, (side, side, 3), dtype=np.uint8)
    top, left = divmod(number % 4, 2)
    half = side // 2
    values[top * half : (top + 1) * half, left * half : (left + 1) * half] += 150
    return Image.fromarray(values)
