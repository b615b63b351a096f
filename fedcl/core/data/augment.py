"""Views of examples: random shifts and flips of images, functions of the client and the visit."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedcl.core.seeds import seed_of, uniforms

Augmentation = Literal["none", "crop", "crop_flip"]
DRAWS = 3  # random numbers of a view: shift down, shift right, flip


def view_draws(visits: int, seed: int) -> Tensor:
    """Returns (visits, 3) float64 numbers in [0, 1), one row for each visit of a client.

    Args:
        visits: Examples that the client passes in this exchange.
        seed: Its seed in this exchange.
    """
    return torch.from_numpy(uniforms(seed_of(seed, "views"), np.arange(visits), DRAWS))


def viewed(x: Tensor, draws: Tensor, kind: Augmentation, padding: int) -> Tensor:
    """Returns images as they look in a view: padded, cropped at random, perhaps mirrored.

    Args:
        x: (n, channels, height, width) images.
        draws: (n, 3) numbers in [0, 1).
        kind: `crop` pads with 0 (in the units of x: the mean colour of normalised images) and cuts
            the old size out anywhere; `crop_flip` mirrors half of them left to right too; `none`
            returns x.
        padding: Pixels on each side.
    """
    if kind == "none":
        return x
    height, width = x.shape[-2:]
    padded = torch.nn.functional.pad(x, (padding,) * 4)
    shifts = (draws[:, :2] * (2 * padding + 1)).long()
    down = shifts[:, :1] + torch.arange(height, device=x.device)
    right = torch.arange(width, device=x.device).expand(len(x), width)
    if kind == "crop_flip":
        right = torch.where(draws[:, 2:] < 0.5, right.flip(1), right)
    right = right + shifts[:, 1:2]
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    # Advanced indices around the channels put these last.
    return padded[rows, :, down[:, :, None], right[:, None, :]].movedim(-1, 1).contiguous()


def check_images(kind: Augmentation, shape: tuple[int, ...]) -> None:
    """Raises ValueError when inputs of this shape (without the batch) cannot be shifted."""
    if kind != "none" and len(shape) != 3:
        raise ValueError(
            f'augment = "{kind}" shifts images of shape (channels, height, width), but inputs have '
            f'the shape {shape}: set augment = "none"'
        )
