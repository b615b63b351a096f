"""Shares that each client draws by itself, so that any number of clients costs no memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedcl.core.data.scenario import Shares
from fedcl.core.data.table import IntArray
from fedcl.core.seeds import numpy_generator

__all__ = ["Overlapping"]


@dataclass(frozen=True)
class Overlapping:
    """Each client draws its rows by itself: **shares overlap**, and several may hold the same row.

    Within a client no row comes twice. Any number of clients can be registered on any data set, at
    no memory: a share is drawn when asked for, a function of the task's seed and the client. With
    few rows for so many clients the federation's data are no larger than the data set, and it is no
    protection of a row that its client was left out.

    Attributes:
        examples: Rows of each client.
        alpha: Concentration of each client's mix of classes, a draw from a Dirichlet distribution
            over the task's classes; 0 means none: every row is as likely.
    """

    examples: int = 50
    alpha: float = 0.0

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ValueError(f"examples must be at least 1, not {self.examples}")
        if self.alpha < 0:
            raise ValueError(f"alpha must be at least 0, not {self.alpha}")

    def divide(
        self, labels: IntArray, columns: Mapping[str, IntArray], clients: int, seed: int
    ) -> Shares:
        """Returns shares that are drawn when asked for."""
        if len(labels) < self.examples:
            raise ValueError(
                f"a client draws {self.examples} examples, but a task has {len(labels)}: lower "
                "stream.partition.examples or stream.tasks"
            )
        if not self.alpha:
            return _Even(len(labels), self.examples, seed)
        by_label = np.argsort(labels, kind="stable").astype(np.int32)
        counts = np.unique(labels, return_counts=True)[1]
        return _Mixed(self.examples, seed, self.alpha, by_label, counts)


@dataclass(frozen=True)
class _Even:
    total: int
    examples: int
    seed: int
    nbytes: int = field(default=0, init=False)

    def sizes(self, clients: IntArray) -> IntArray:
        """Returns the number of rows of each of these clients."""
        return np.full(len(clients), self.examples)

    def rows(self, client: int) -> IntArray:
        """Returns a client's rows, as places among the n."""
        generator = numpy_generator(self.seed, "overlapping", client)
        return generator.choice(self.total, self.examples, replace=False)


@dataclass(frozen=True)
class _Mixed:
    examples: int
    seed: int
    alpha: float
    by_label: npt.NDArray[np.int32]
    counts: IntArray

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.by_label.nbytes + self.counts.nbytes

    def sizes(self, clients: IntArray) -> IntArray:
        """Returns the number of rows of each of these clients."""
        return np.full(len(clients), self.examples)

    def rows(self, client: int) -> IntArray:
        """Returns a client's rows, as places among the n."""
        generator = numpy_generator(self.seed, "overlapping", client)
        mix = generator.dirichlet(np.full(len(self.counts), self.alpha))
        drawn = np.minimum(generator.multinomial(self.examples, mix), self.counts)
        # What a class is too small for comes from all that is left.
        drawn += generator.multivariate_hypergeometric(
            self.counts - drawn, self.examples - int(drawn.sum()), method="marginals"
        )
        begins = np.cumsum(self.counts) - self.counts
        places = [
            begin + generator.choice(count, number, replace=False)
            for begin, count, number in zip(begins, self.counts, drawn, strict=True)
            if number
        ]
        rows: IntArray = self.by_label[np.concatenate(places)].astype(np.int64)
        return generator.permutation(rows)
