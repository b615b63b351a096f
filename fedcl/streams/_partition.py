"""Who holds what: each rule divides the rows of one task among the clients and leaves nobody empty.

`PARTITIONS` names them for configs: `partition = { name = "dirichlet", alpha = 0.5 }`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

import numpy as np

from fedcl.core.dataset import IntArray
from fedcl.core.seeds import numpy_generator

__all__ = ["PARTITIONS", "Dirichlet", "Iid", "Natural", "Quantity", "Shards"]

Division = tuple[IntArray, IntArray]


def _enough(rows: int, clients: int, each: int = 1, option: str = "") -> None:
    needed = max(1, clients * each)
    if rows < needed:
        raise ValueError(
            f"{clients} clients need at least {needed} examples, but a task has {rows}: lower "
            f"stream.clients or tasks{option and f', or stream.partition.{option}'}"
        )


def _join(shares: Sequence[IntArray]) -> Division:
    offsets = np.concatenate([[0], np.cumsum([len(share) for share in shares])]).astype(np.int64)
    return np.concatenate(shares).astype(np.int64), offsets


def _by_sizes(rows: IntArray, sizes: IntArray) -> Division:
    return rows, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _gifts(sizes: IntArray, minimum: int) -> Iterator[tuple[int, int]]:
    """Yields (giver, taker) for each row that must move until everyone has `minimum` rows.

    The largest share gives (ties: the first); there must be enough rows for all.
    """
    # Takers never have more than the minimum, so that they never come to the top themselves.
    heap = [(-int(size), client) for client, size in enumerate(sizes)]
    heapify(heap)
    for taker in np.flatnonzero(sizes < minimum):
        for _ in range(minimum - int(sizes[taker])):
            size, giver = heap[0]
            heapreplace(heap, (size + 1, giver))
            yield giver, int(taker)


def _rounded(shares: np.ndarray, total: int) -> IntArray:
    """Returns integers that sum to `total` and follow the shares, by largest remainders."""
    exact = shares / shares.sum() * total
    sizes: IntArray = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - sizes), kind="stable")[: total - int(sizes.sum())]
    sizes[rest] += 1
    return sizes


@dataclass(frozen=True)
class Iid:
    """Equal numbers of rows drawn at random."""

    def divide(
        self, labels: IntArray, columns: Mapping[str, IntArray], clients: int, seed: int
    ) -> Division:
        """Returns `(order, offsets)`; sizes differ by one at most."""
        _enough(len(labels), clients)
        order = numpy_generator(seed, "iid").permutation(len(labels))
        return order, np.linspace(0, len(labels), clients + 1).astype(np.int64)


@dataclass(frozen=True)
class Dirichlet:
    """Each class is divided by its own draw from a Dirichlet distribution (Hsu et al., 2019).

    Attributes:
        alpha: Concentration: large is even, 0.1 gives most clients a few classes.
        minimum: Rows that every client gets at least, taken from the largest shares.
    """

    alpha: float = 0.5
    minimum: int = 1

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, not {self.alpha}")
        if self.minimum < 0:
            raise ValueError(f"minimum must be at least 0, not {self.minimum}")

    def divide(
        self, labels: IntArray, columns: Mapping[str, IntArray], clients: int, seed: int
    ) -> Division:
        """Returns `(order, offsets)`."""
        _enough(len(labels), clients, self.minimum, "minimum")
        generator = numpy_generator(seed, "dirichlet")
        parts: list[list[IntArray]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            rows = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.gamma(self.alpha, size=clients)
            # A tiny alpha can make every draw 0: then one client, drawn at random, gets the class.
            if shares.sum() <= 0:
                shares[generator.integers(clients)] = 1.0
            cuts = np.cumsum(_rounded(shares, len(rows)))[:-1]
            for own, part in zip(parts, np.split(rows, cuts), strict=True):
                own.append(part)
        held = [generator.permutation(np.concatenate(own)) for own in parts]
        for giver, taker in _gifts(np.array([len(own) for own in held]), self.minimum):
            held[taker] = np.append(held[taker], held[giver][-1])
            held[giver] = held[giver][:-1]
        return _join(held)


@dataclass(frozen=True)
class Shards:
    """Rows sorted by label are cut into equal shards, and each client draws some.

    McMahan et al., AISTATS 2017.

    Attributes:
        per_client: Shards of each client; 2 is McMahan's and FOT's non-IID split.
    """

    per_client: int = 2

    def __post_init__(self) -> None:
        if self.per_client < 1:
            raise ValueError(f"per_client must be at least 1, not {self.per_client}")

    def divide(
        self, labels: IntArray, columns: Mapping[str, IntArray], clients: int, seed: int
    ) -> Division:
        """Returns `(order, offsets)`; shards differ in size by one at most."""
        shards = clients * self.per_client
        _enough(len(labels), clients, self.per_client, "per_client")
        generator = numpy_generator(seed, "shards")
        # Shuffled first, so that the rows of one label stand in random order.
        shuffled = generator.permutation(len(labels))
        pieces = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], shards)
        drawn = generator.permutation(shards).reshape(clients, self.per_client)
        return _join([np.concatenate([pieces[s] for s in own]) for own in drawn])


@dataclass(frozen=True)
class Quantity:
    """Sizes fall as a power of the client's rank, in random order; labels are even.

    Attributes:
        exponent: Size of rank r is proportional to r ** -exponent; 0 is iid.
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        if self.exponent < 0:
            raise ValueError(f"exponent must be at least 0, not {self.exponent}")

    def divide(
        self, labels: IntArray, columns: Mapping[str, IntArray], clients: int, seed: int
    ) -> Division:
        """Returns `(order, offsets)`."""
        _enough(len(labels), clients)
        generator = numpy_generator(seed, "quantity")
        ranks = generator.permutation(clients) + 1
        sizes = _rounded(ranks.astype(np.float64) ** -self.exponent, len(labels))
        for giver, taker in list(_gifts(sizes, 1)):
            sizes[giver] -= 1
            sizes[taker] += 1
        return _by_sizes(generator.permutation(len(labels)), sizes)


@dataclass(frozen=True)
class Natural:
    """A column of the data names the client: a person, a writer, a device.

    Rows keep their order, which may be time.

    Attributes:
        column: Name of the column; its values in ascending order are clients 0, 1, ...
    """

    column: str = "subject"

    def divide(
        self, labels: IntArray, columns: Mapping[str, IntArray], clients: int, seed: int
    ) -> Division:
        """Returns `(order, offsets)`; the column holds client numbers 0 to clients - 1 here."""
        owner = columns[self.column]
        return _by_sizes(np.argsort(owner, kind="stable"), np.bincount(owner, minlength=clients))


PARTITIONS = {
    "iid": Iid,
    "dirichlet": Dirichlet,
    "shards": Shards,
    "quantity": Quantity,
    "natural": Natural,
}
