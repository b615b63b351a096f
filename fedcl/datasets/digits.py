"""scikit-learn's 1797 handwritten digits of 8 by 8 pixels: the default, since it needs no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (its test part, as shipped with scikit-learn).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcl.core.dataset import ArrayTable, Dataset, IntArray
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
        try:
            from sklearn.datasets import load_digits  # slow to import, and only needed here
        except ImportError as error:
            raise ConfigError(
                "the digits need scikit-learn, which is not installed, in dataset.name; install "
                'fedcl with its extra "sim", or choose another dataset'
            ) from error

        bunch = load_digits()
        values = bunch.images.astype(np.uint8)[:, None]  # (1797, 1, 8, 8), 0 to 16
        labels = bunch.target.astype(np.int64)
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
