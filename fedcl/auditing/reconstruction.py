"""How good reconstructions of images are, and what one has without any attack."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float64]


def psnr(found: ArrayLike, original: ArrayLike) -> float:
    """Returns the peak signal-to-noise ratio in decibels, infinite where the two are equal.

    Args:
        found: Numbers of an image, which are put into [0, 1] first; one that is NaN counts as 0.
        original: Its true numbers, in [0, 1].
    """
    error = float(_errors(_flat(np.asarray(found)[None]), _flat(np.asarray(original)[None]))[0, 0])
    return -10.0 * math.log10(error) if error > 0 else math.inf


def matched(found: ArrayLike, originals: ArrayLike) -> tuple[NDArray[np.int64], Array]:
    """Returns which original each reconstruction is best taken for, and how good it is then.

    Each original is taken once, such that the squared errors are the least together.

    Args:
        found: (m, ...) reconstructions in any order.
        originals: (n, ...) with n at least m.

    Returns:
        (m,) positions of originals, and (m,) peak signal-to-noise ratios in decibels.
    """
    costs = _errors(_flat(found), _flat(originals))
    if costs.shape[0] > costs.shape[1]:
        raise ValueError("there are more reconstructions than originals")
    columns = np.asarray(linear_sum_assignment(costs)[1], dtype=np.int64)
    errors = costs[np.arange(len(columns)), columns]
    with np.errstate(divide="ignore"):
        return columns, np.asarray(-10.0 * np.log10(errors), dtype=np.float64)


def mean_image(known: ArrayLike, originals: ArrayLike) -> float:
    """Returns how good the mean of known images is for each original, in decibels on average.

    It is what one has without any attack: reconstructions below it show nothing.

    Args:
        known: (n, ...) images such as the attacker may have, in [0, 1].
        originals: (m, ...) images that are sought.
    """
    rows = _flat(originals)
    mean = _flat(known).mean(0)
    return float(np.mean([psnr(mean, row) for row in rows]))


def each_mean_image(mean: ArrayLike, originals: ArrayLike) -> Array:
    """Returns how good one image is for each of the (m, ...) originals, in decibels."""
    errors = _errors(_flat(np.asarray(mean)[None]), _flat(originals))[0]
    with np.errstate(divide="ignore"):
        return np.asarray(-10.0 * np.log10(errors), dtype=np.float64)


def ssim(found: ArrayLike, original: ArrayLike, window: int = 7) -> float | None:
    """Returns the mean structural similarity over windows and channels; None for small images.

    Wang, Bovik, Sheikh and Simoncelli, Image quality assessment, 2004, with uniform windows, sample
    covariances and the usual constants for a range of 1.

    Args:
        found: (channels, height, width), put into [0, 1] first; NaN counts as 0.
        original: The same shape, in [0, 1].
        window: Width of a window in pixels.
    """
    x = np.clip(np.nan_to_num(np.asarray(found, dtype=np.float64), nan=0.0), 0.0, 1.0)
    y = np.asarray(original, dtype=np.float64)
    if x.ndim != 3 or min(x.shape[1:]) < window:
        return None
    inside = (slice(None), *(slice(window // 2, n - (window - 1) // 2) for n in x.shape[1:]))

    def mean(values: Array) -> Array:
        return np.asarray(uniform_filter(values, (1, window, window))[inside], dtype=np.float64)

    scale = window**2 / (window**2 - 1)
    mx, my = mean(x), mean(y)
    vx, vy = scale * (mean(x * x) - mx**2), scale * (mean(y * y) - my**2)
    both = scale * (mean(x * y) - mx * my)
    first, second = 0.01**2, 0.03**2
    top = (2 * mx * my + first) * (2 * both + second)
    return float((top / ((mx**2 + my**2 + first) * (vx + vy + second))).mean())


def _flat(images: ArrayLike) -> Array:
    given = np.asarray(images, dtype=np.float64)
    return given.reshape(len(given), -1)


def _errors(found: Array, originals: Array) -> Array:
    """Returns the (m, n) mean squared errors, by differences: a product would round them."""
    inside = np.clip(np.nan_to_num(found, nan=0.0), 0.0, 1.0)
    return np.stack([np.square(originals - row).mean(1) for row in inside])
