"""Labels as numbers: names in their order, and how many classes there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fedcl.core.data.table import IntArray
from fedcl.core.errors import ConfigError

__all__ = ["class_count", "listed", "numbered"]


def numbered(parts: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[IntArray]]:
    """Returns the names of all parts, ascending, and each part as indices into them."""
    names = tuple(sorted({name for part in parts for name in part}))
    index = {name: number for number, name in enumerate(names)}
    return names, [np.array([index[name] for name in part], dtype=np.int64) for part in parts]


def class_count(
    train: IntArray,
    test: IntArray,
    names: Sequence[str],
    error: Callable[[str, str], ConfigError],
) -> int:
    """Returns the size of the label space: the names, or the classes of train if there are none.

    Args:
        train: (n,) labels, not empty.
        test: (m,) labels, not empty.
        names: Names of the classes, perhaps of more than occur; empty when unknown.
        error: Makes an error of a fact and a remedy.

    Raises:
        ConfigError: A label has no name, train lacks a class of test, or the labels have gaps.
    """
    present = np.unique(train)
    least, largest = min(present[0], test.min()), max(present[-1], test.max())
    if least < 0:
        fact = f"there is the negative label {least}"
        raise error(fact, "number the classes from 0 and remove rows without a class")
    if names and largest >= len(names):
        fact = f"the label {largest} lies beyond the {len(names)} names of the classes"
        raise error(fact, "number the classes from 0, and save a name for each")
    unseen = np.setdiff1d(test, present)
    if unseen.size:
        lacking = listed(names[label] if names else label for label in unseen)
        fact = f"the test labels have classes that train lacks: {lacking}"
        raise error(fact, "remove those rows, or divide the data differently")
    gaps = np.flatnonzero(present != np.arange(present.size))
    if gaps.size and not names:
        fact = f"the train labels go up to {largest} but none is {gaps[0]}"
        raise error(fact, "number the classes from 0 without gaps, or save class_names")
    return len(names) or int(largest) + 1


def listed(names: Iterable[Any]) -> str:
    """Returns names ascending as a text, the first twenty of them."""
    words = [str(name) for name in sorted(names)]
    more = f" and {len(words) - 20} more" if len(words) > 20 else ""
    return (", ".join(words[:20]) or "(none)") + more
