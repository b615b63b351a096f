"""Images that payloads give away, by closed formulas: candidates in the order of how likely.

All of them are what an attacker has who knows how many examples stand behind a payload, and nothing
of these: none is chosen by looking at the originals.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fedcl.auditing.inversion import linear_input, neuron_inputs
from fedcl.auditing.sketches import unmixed

Array = NDArray[np.float64]
ALIKE = 1e-3  # mean squared difference below which two candidates are one


def plausible(rows: ArrayLike, most: int) -> Array:
    """Returns the rows that lie inside [0, 1] best, at most so many, none of them twice.

    A mixture of images with coefficients of both signs leaves the range; an image does not.

    Args:
        rows: (m, d) candidates; those that are not finite or all 0 say nothing and are left out.
        most: How many to return at most.
    """
    given = np.asarray(rows, dtype=np.float64)
    given = given[np.isfinite(given).all(1) & (given != 0).any(1)]
    outside = np.square(given - given.clip(0.0, 1.0)).mean(1)
    chosen: list[Array] = []
    for place in np.argsort(outside, kind="stable"):
        if len(chosen) == most:
            break
        row = given[place].clip(0.0, 1.0)
        if all(np.square(row - other).mean() > ALIKE for other in chosen):
            chosen.append(row)
    return np.array(chosen).reshape(len(chosen), given.shape[1])


def layer_images(weight: Tensor, bias: Tensor, power: int = 1) -> Array:
    """Returns what a linear layer says its inputs were: of all outputs together, then of each.

    Args:
        weight: (outputs, inputs) change or gradient of the weights, summed over examples.
        bias: (outputs,) the same of the bias.
        power: 2 where the two are sums of squared gradients, such as a diagonal Fisher matrix,
            whose ratio is the mean of squared inputs.

    Returns:
        (1 + outputs, inputs), which may lie anywhere.
    """
    rows = torch.cat([linear_input(weight, bias)[None], neuron_inputs(weight, bias)])
    if power != 1:
        rows = rows.clamp(min=0.0) ** (1.0 / power)
    return np.asarray(rows.cpu().numpy(), dtype=np.float64)


def direction_images(weight: Tensor, top: float) -> Array:
    """Returns what each output's gradient says its inputs were, up to their size, without a bias.

    Args:
        weight: (outputs, inputs) gradient of the weights.
        top: Largest number of an input: so large is each row's largest, its sign such that its
            numbers add up to more than 0.
    """
    rows = weight.detach().double().cpu().numpy()
    rows = rows * np.where(rows.sum(1, keepdims=True) < 0, -1.0, 1.0)
    largest = rows.max(1, initial=0.0, keepdims=True)
    return np.asarray(rows * (top / np.where(largest > 0, largest, 1.0)), dtype=np.float64)


def gram_images(gram: ArrayLike, number: int, most: int, seed: int) -> tuple[str, Array]:
    """Returns how a Gram matrix X^T X of examples was attacked, and the (m, d) images found.

    Of one example it is the matrix's one direction, exactly. Of a few, independent component
    analysis takes the matrix for a sketch of the examples by themselves. Of many, the first
    eigenvector of the mean is about the root mean square of the examples.

    Args:
        gram: (d, d) symmetric; noise may have made it indefinite.
        number: Examples behind it.
        most: Examples at most that are sought one by one.
        seed: Of the search.
    """
    matrix = np.asarray(gram, dtype=np.float64)
    values, vectors = np.linalg.eigh(matrix)
    first = vectors[:, -1] * math.sqrt(max(0.0, float(values[-1])) / max(1, number))
    first = first * (-1.0 if first.sum() < 0 else 1.0)
    if number == 1:
        return "one direction", first[None]
    found = "first eigenvector", first[None]
    if number <= min(most, int((values > values[-1] * 1e-6).sum())):
        found = "ICA", np.concatenate([unmixed(matrix, number, seed, starts=1), first[None]])
    return found


def sketch_images(sketch: ArrayLike, number: int, seed: int, top: float) -> Array:
    """Returns the (number, d) images of a sketch A U, by independent component analysis.

    Args:
        sketch: (d, k).
        number: Examples behind it; of one, all that a sketch leaves open is its size.
        seed: Of the search.
        top: Largest number of an input.
    """
    matrix = np.asarray(sketch, dtype=np.float64)
    if number == 1:
        left = np.linalg.svd(matrix, full_matrices=False)[0][:, 0]
        left = left * (-1.0 if left.sum() < 0 else 1.0)
        return np.asarray(left[None] * (top / max(float(left.max()), 1e-12)), dtype=np.float64)
    return unmixed(matrix, number, seed)
