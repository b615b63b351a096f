"""Who holds what: each rule divides the rows of one task among the clients and leaves nobody empty.

Only under `overlapping` may several clients hold the same row.

`PARTITIONS` names them for configs: `partition = { name = "dirichlet", alpha = 0.5 }`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedcl.core.data.scenario import Shares
from fedcl.core.data.table import IntArray
from fedcl.core.seeds import numpy_generator
from fedcl.streams._division import Division, by_owner, by_sizes, stretches
from fedcl.streams._overlapping import Overlapping

__all__ = ["PARTITIONS", "Dirichlet", "Iid", "Natural", "Overlapping", "Quantity", "Shards"]


def _enough(rows: int, clients: int, each: int = 1, option: str = "") -> None:
    needed = max(1, clients * each)
    if rows < needed:
        raise ValueError(
            f"{clients} clients need at least {needed} examples, but a task has {rows}: lower "
            f"stream.clients or tasks{option and f', or stream.partition.{option}'}"
        )


def _gifts(sizes: IntArray, minimum: int) -> tuple[IntArray, IntArray, IntArray]:
    """Returns the rows that must move until everyone has `minimum` rows, one entry for each.

    Always the largest share gives its last row (ties: the first client); there must be enough rows
    for all.

    Returns:
        The giver of each row, its place in the giver's share, and its taker.
    """
    short = np.maximum(minimum - sizes, 0)
    needed = int(short.sum())
    # The lowest level down to which nobody has to give more than is needed in all.
    low, high = minimum, int(sizes.max())
    while low < high:
        level = (low + high + 1) // 2
        enough = int(np.maximum(sizes - level, 0).sum()) >= needed
        low, high = (level, high) if enough else (low, level - 1)
    spare = np.maximum(sizes - low, 0)
    givers = np.repeat(np.arange(len(sizes)), spare)
    places = stretches(np.full(len(sizes), low), spare)
    first = np.lexsort((givers, -places))[:needed]
    return givers[first], places[first], np.repeat(np.arange(len(sizes)), short)


def _rounded(shares: np.ndarray, total: int) -> IntArray:
    """Returns integers that sum to `total` and follow the shares, by largest remainders."""
    exact = shares / shares.sum() * total
    sizes: IntArray = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - sizes), kind="stable")[: total - int(sizes.sum())]
    sizes[rest] += 1
    return sizes


def _borders(rows: int, parts: int) -> IntArray:
    """Returns the borders of consecutive parts whose sizes differ by one; the first are larger."""
    return np.arange(parts + 1) * (rows // parts) + np.minimum(np.arange(parts + 1), rows % parts)


@dataclass(frozen=True)
class Iid:
    """Equal numbers of rows drawn at random."""

    def divide(
        self, labels: IntArray, columns: Mapping[str, IntArray], clients: int, seed: int
    ) -> Shares:
        """Returns shares whose sizes differ by one at most."""
        _enough(len(labels), clients)
        order = numpy_generator(seed, "iid").permutation(len(labels))
        return Division(order, np.linspace(0, len(labels), clients + 1).astype(np.int64))


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
    ) -> Shares:
        """Returns shares of at least the minimum, each in random order."""
        _enough(len(labels), clients, self.minimum, "minimum")
        generator = numpy_generator(seed, "dirichlet")
        owner = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            rows = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.gamma(self.alpha, size=clients)
            # A tiny alpha can make every draw 0: then one client, drawn at random, gets the class.
            if shares.sum() <= 0:
                shares[generator.integers(clients)] = 1.0
            owner[rows] = np.repeat(np.arange(clients), _rounded(shares, len(rows)))
        shuffled = generator.permutation(len(labels))
        held = by_owner(owner, clients, shuffled)
        givers, places, takers = _gifts(held.sizes(np.arange(clients)), self.minimum)
        owner[held.order[held.offsets[givers] + places]] = takers
        return by_owner(owner, clients, shuffled)


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
    ) -> Shares:
        """Returns shares of shards, which differ in size by one at most."""
        shards = clients * self.per_client
        _enough(len(labels), clients, self.per_client, "per_client")
        generator = numpy_generator(seed, "shards")
        # Shuffled first, so that the rows of one label stand in random order.
        shuffled = generator.permutation(len(labels))
        by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
        borders = _borders(len(labels), shards)
        drawn = generator.permutation(shards).reshape(clients, self.per_client)
        starts, sizes = borders[drawn], np.diff(borders)[drawn]
        return by_sizes(by_label[stretches(starts.ravel(), sizes.ravel())], sizes.sum(axis=1))


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
    ) -> Shares:
        """Returns shares in random order of their rank."""
        _enough(len(labels), clients)
        generator = numpy_generator(seed, "quantity")
        ranks = generator.permutation(clients) + 1
        sizes = _rounded(ranks.astype(np.float64) ** -self.exponent, len(labels))
        givers, _, takers = _gifts(sizes, 1)
        sizes += np.bincount(takers, minlength=clients) - np.bincount(givers, minlength=clients)
        return by_sizes(generator.permutation(len(labels)), sizes)


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
    ) -> Shares:
        """Returns everybody's own rows; the column holds client numbers 0 to clients - 1 here."""
        return by_owner(columns[self.column], clients, np.arange(len(labels)))


PARTITIONS = {
    "iid": Iid,
    "dirichlet": Dirichlet,
    "shards": Shards,
    "quantity": Quantity,
    "natural": Natural,
    "overlapping": Overlapping,
}
