"""Shares that are written down: who holds which of a task's rows, each row held by one client."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcl.core.data.table import IntArray

__all__ = ["Division", "by_owner", "by_sizes", "stretches"]


@dataclass(frozen=True)
class Division:
    """Client i holds `order[offsets[i]:offsets[i + 1]]`.

    Attributes:
        order: (n,) all rows, share by share; kept in four bytes each.
        offsets: (clients + 1,) where each share begins; the same.
    """

    order: npt.NDArray[np.integer]
    offsets: npt.NDArray[np.integer]

    def __post_init__(self) -> None:
        # Four bytes are enough for two thousand million rows, which no array here ever has.
        for name in ("order", "offsets"):
            object.__setattr__(self, name, getattr(self, name).astype(np.int32))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.order.nbytes + self.offsets.nbytes

    def sizes(self, clients: IntArray) -> IntArray:
        """Returns the number of rows of each of these clients."""
        return (self.offsets[clients + 1] - self.offsets[clients]).astype(np.int64)

    def rows(self, client: int) -> IntArray:
        """Returns a client's rows, as places among the n."""
        return self.order[self.offsets[client] : self.offsets[client + 1]].astype(np.int64)


def by_sizes(order: IntArray, sizes: IntArray) -> Division:
    """Returns shares of these sizes, cut from the rows in their order."""
    return Division(order, np.concatenate([[0], np.cumsum(sizes)]))


def by_owner(owner: IntArray, clients: int, order: IntArray) -> Division:
    """Returns the shares of rows whose owner is known; a share's rows stand as in `order`."""
    rows = order[np.argsort(owner[order], kind="stable")]
    return by_sizes(rows, np.bincount(owner, minlength=clients))


def stretches(starts: IntArray, sizes: IntArray) -> IntArray:
    """Returns the numbers of several stretches: start, start + 1, ..., one after the other."""
    begins: IntArray = np.cumsum(sizes) - sizes
    return np.arange(int(sizes.sum())) + np.repeat(starts - begins, sizes)
