"""Which labels payloads give away, and what one says of labels without having seen any."""

from __future__ import annotations

import math
from collections.abc import Set

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def head_change(weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Returns the (classes,) change that says which classes were trained on; None without a head.

    It is that of the bias. Without one, or where none was trained, it is that of the weights added
    up over features: where these are at least 0, as after a ReLU, its sign is the bias's.

    Args:
        weight: (classes, features) change of the last layer's weight, or None.
        bias: (classes,) change of its bias, or None.
    """
    if bias is not None and (weight is None or bool(bias.any())):
        return bias
    return None if weight is None else weight.sum(1)


def shares_of(change: Tensor, candidates: Set[int]) -> Array:
    """Returns the (classes,) shares of the labels, from how training changed the last bias.

    The first steps change class c's bias by a positive factor times its share less the network's
    own mean answer for c. That answer is taken from the classes that are absent, where it is all
    that there is.

    Args:
        change: (classes,) change of the bias.
        candidates: Classes that may be there.

    Returns:
        Numbers that add up to 1, or all 0 where no class's bias grew.
    """
    given = change.detach().double().cpu().numpy()
    chosen = np.zeros(len(given), dtype=np.bool_)
    chosen[sorted(candidates)] = True
    present, absent = chosen & (given > 0), chosen & (given <= 0)
    offset = -float(given[absent].mean()) if absent.any() else 0.0
    found = np.where(present, given + offset, 0.0)
    total = found.sum()
    return np.asarray(found / total if total > 0 else found, dtype=np.float64)


def whole_counts(shares: Array, number: int) -> NDArray[np.int64]:
    """Returns shares of a number as whole numbers of that sum, by the largest remainders."""
    exact = shares * number
    counts = np.floor(exact).astype(np.int64)
    left = round(float(exact.sum())) - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    return counts


def apart(found: Array, right: Array) -> float:
    """Returns the total variation distance of two distributions: labels that are named wrongly."""
    return 0.5 * float(np.abs(found - right).sum())


def guessed_labels(candidates: Set[int], right: Array) -> float:
    """Returns the share of labels that a guess names rightly: as many of each candidate.

    Args:
        candidates: Classes that may be there.
        right: (classes,) the true shares.
    """
    guess = np.zeros(len(right))
    guess[sorted(candidates)] = 1.0 / len(candidates)
    return 1.0 - apart(guess, right)


def guessed_f1(present: int, candidates: int) -> float:
    """Returns the mean F1 of a set that holds each candidate with probability 1/2.

    It is what signs of a payload that says nothing give.

    Args:
        present: How many of the candidates are right.
        candidates: How many there are.
    """
    others, total = candidates - present, 0.0
    for right in range(present + 1):
        for wrong in range(others + 1):
            ways = math.comb(present, right) * math.comb(others, wrong)
            size = right + wrong + present
            total += ways * (2.0 * right / size if size else 1.0)
    return total / 2.0**candidates


def label_counts(labels: Tensor, classes: int) -> Array:
    """Returns the (classes,) shares of labels; all 0 without any."""
    counts = torch.bincount(labels.cpu(), minlength=classes).double().numpy()
    return np.asarray(counts / max(1.0, float(counts.sum())), dtype=np.float64)
