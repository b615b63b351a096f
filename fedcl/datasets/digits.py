"""scikit-learn's 1797 handwritten digits of 8 by 8 pixels: the default, since it needs no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (its test part, as shipped with scikit-learn).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.table import ArrayTable, IntArray
from fedcl.core.errors import ConfigError

__all__ = ["Digits"]


@dataclass(frozen=True)
class Digits:
    """The embedded digits, divided by class into a train and a test split.

    Attributes:
        test_fraction: Share of each class that goes to the test split, between 0 and 1.
        seed: Decides which rows are held out.
    """

    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the options."""
        if not 0.0 < self.test_fraction < 1.0:
            raise ValueError(f"test_fraction must lie between 0 and 1, not {self.test_fraction}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")

    def load(self) -> Dataset:
        """Returns ten classes of inputs of shape (1, 8, 8) in [0, 1].

        Raises:
            ConfigError: scikit-learn is not installed.
        """
        table = _table()
        values = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8)  # 0 to 16
        labels = table[:, -1].astype(np.int64)
        held = self._held_out(labels)
        train, test = (
            ArrayTable(values[rows], labels[rows], scale=1 / 16) for rows in (~held, held)
        )
        return Dataset("digits", train, test, 10, (1, 8, 8), tuple("0123456789"))

    def _held_out(self, labels: IntArray) -> npt.NDArray[np.bool_]:
        """Returns a (N,) mask of the test rows; each class gives its share, but never all rows."""
        generator = np.random.default_rng(self.seed)
        held = np.zeros(len(labels), dtype=np.bool_)
        for label in range(10):
            rows = generator.permutation(np.flatnonzero(labels == label))
            held[rows[: min(max(round(len(rows) * self.test_fraction), 1), len(rows) - 1)]] = True
        return held


def _table() -> npt.NDArray[np.float64]:
    """Returns (1797, 65) pixels and labels: scikit-learn's file, without loading scikit-learn.

    That would take longer than all else that a device does for a message.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the digits need scikit-learn, which is not installed, in dataset.name; install fedcl "
            'with its extra "sim", or choose another dataset'
        )
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table: npt.NDArray[np.float64] = np.loadtxt(path, delimiter=",")
    except OSError as error:
        raise ConfigError(
            f"scikit-learn's digits cannot be read, in dataset.name: {error}; install scikit-learn "
            "anew, or choose another dataset"
        ) from error
    return table
