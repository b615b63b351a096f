"""Several clients of one computation, and which of their rows are visited in which step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fedcl.core.client import Client
from fedcl.core.task import ClientTask, Examples, join
from fedcl.core.tree import settle

Path = Literal["auto", "loop", "fused", "grouped", "vmap", "compiled"]


@dataclass(frozen=True)
class Batching:
    """How a fold block is batched; it decides bits, so it is a part of the config.

    Attributes:
        path: How one computation trains several clients; `loop`, `fused` (block layers, one
            convolution after the other), `grouped` (the same with one grouped convolution), `vmap`,
            `compiled` (the same through torch.compile), or `auto`: `fused` where model and loss
            allow it, else `vmap`.
        block: Clients of one computation; a fold block is cut into them. 0 means 16, or 8 where
            the model has convolutions, whose outputs fill a processor's cache sooner.
    """

    path: Path = "auto"
    block: int = 0

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ValueError(f"block must be at least 0, not {self.block}")

    def size(self, model: nn.Module) -> int:
        """Returns the clients of one computation that trains this model."""
        convolves = any(isinstance(layer, nn.Conv2d) for layer in model.modules())
        return self.block or (8 if convolves else 16)


class Source(Protocol):
    """Where the examples of a block come from."""

    def take(self, order: Tensor | None = None, /) -> Examples:
        """Returns the examples, or those at the places `order` (a tensor on the CPU)."""
        ...


@dataclass(frozen=True)
class Here:
    """Examples that lie here already."""

    examples: Examples

    def take(self, order: Tensor | None = None) -> Examples:
        """Returns the examples, or those at the places `order`."""
        if order is None:
            return self.examples
        return self.examples.take(order.to(self.examples.y.device))


@dataclass(frozen=True)
class Block:
    """Clients of one batched computation; their examples stand one after the other.

    Attributes:
        ids: Their ids, ascending.
        model: The architecture.
        source: Gives the examples of all of them.
        sizes: Examples of each.
        tasks: Masks of each; one object where they are the same.
        states: What each remembers, or None.
        seeds: Seed of each in this exchange.
        public: Data that everyone may use, or None.
        keys: Secret key of each in this exchange; empty where nothing needs one.
    """

    ids: tuple[int, ...]
    model: nn.Module
    source: Source
    sizes: tuple[int, ...]
    tasks: tuple[ClientTask, ...]
    states: tuple[Any, ...]
    seeds: tuple[int, ...]
    public: Examples | None = None
    keys: tuple[bytes, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def data(self) -> Examples:
        """The examples of all clients."""
        return self.source.take()

    @cached_property
    def first(self) -> Examples:
        """The first example, or none where there is none: what shape and type they all have."""
        return self.source.take(torch.zeros(min(1, self.examples), dtype=torch.int64))

    @property
    def examples(self) -> int:
        """Number of examples of all clients."""
        return self.starts[-1]

    def visited(self, rows: Tensor) -> Examples:
        """Returns the examples at some rows: fetched for this once, unless they lie here."""
        if "data" in self.__dict__:
            return self.data.take(rows)
        return settle(self.source.take(rows.cpu()), rows.device)

    @cached_property
    def starts(self) -> list[int]:
        """Row of `data` at which each client's examples begin."""
        starts = [0]
        for size in self.sizes:
            starts.append(starts[-1] + size)
        return starts

    def client(self, k: int) -> Client:
        """Returns the k-th client by itself."""
        data = self.data.part(self.starts[k], self.starts[k + 1])
        return Client(
            self.ids[k],
            self.model,
            data,
            self.tasks[k],
            self.states[k],
            self.seeds[k],
            self.public,
            self.keys[k] if self.keys else None,
        )

    @cached_property
    def task(self) -> ClientTask | None:
        """The one task of all clients, or None when they differ."""
        first = self.tasks[0]
        return first if all(same_task(task, first) for task in self.tasks) else None


def same_task(a: ClientTask, b: ClientTask) -> bool:
    """Whether two tasks have the same masks; a common object says so at once."""
    return a is b or all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


def block_of(clients: Sequence[Client]) -> Block:
    """Returns clients that were built one by one as a block.

    Raises:
        ValueError: Their examples have different extra columns.
    """
    if any(c.data.extra.keys() != clients[0].data.extra.keys() for c in clients):
        raise ValueError("the examples of one block have different extra columns")
    return Block(
        tuple(c.id for c in clients),
        clients[0].model,
        Here(join([c.data for c in clients])),
        tuple(len(c.data) for c in clients),
        tuple(c.task for c in clients),
        tuple(c.state for c in clients),
        tuple(c.seed for c in clients),
        clients[0].public,
        tuple(c.key for c in clients if c.key is not None),
    )


@dataclass(frozen=True)
class Plan:
    """The rows that each client visits in each step, padded to the widest batch.

    Clients stand in order of falling numbers of steps, so that those still at work in a step are
    the first ones: who has finished costs nothing.

    Attributes:
        order: Places in the block of the clients as they stand here.
        rows: (clients, steps, batch) int64 rows of the block's examples; padding repeats a row
            that the client has visited by then, so that it brings in no NaN of its own.
        weights: (clients, steps, batch) 1 / batch size of the step, 0 for padding.
        draws: (clients, steps, batch, 3) of each visit's view, or None where views change nothing.
        working: Number of clients at work in each step.
        steps: Steps of each client, in the block's order.
        visits: Examples passed by each client, in the block's order.
    """

    order: tuple[int, ...]
    rows: Tensor
    weights: Tensor
    working: tuple[int, ...]
    steps: tuple[int, ...]
    visits: tuple[int, ...]
    draws: Tensor | None = None

    @property
    def even(self) -> bool:
        """Whether all clients do the same number of full steps."""
        return not self.padded and len(set(self.steps)) == 1

    @property
    def padded(self) -> int:
        """Rows that are computed and thrown away."""
        return sum(self.working) * self.rows.shape[2] - sum(self.visits)


def make_plan(
    visits: Sequence[Tensor],
    sizes: Sequence[int],
    starts: Sequence[int],
    batch_size: int,
    dtype: torch.dtype,
    draws: Sequence[Tensor] | None = None,
) -> Plan:
    """Returns the plan of a block.

    Args:
        visits: For each client the rows that it visits, pass after pass, counted from its own first
            example.
        sizes: Visits of a pass of each client, which is cut into batches: the last takes what is
            left.
        starts: Row of the block at which each client's examples begin.
        batch_size: Rows of a step.
        dtype: Type of the weights.
        draws: For each client the (visits, 3) draws of its views, if these change anything.
    """
    passed = tuple(own.shape[0] for own in visits)
    cuts = [_cut(n, size, batch_size) for n, size in zip(passed, sizes, strict=True)]
    steps = tuple(len(own) for own in cuts)
    order = tuple(sorted(range(len(visits)), key=lambda k: -steps[k]))
    longest, widest = max(steps, default=0), max((max(own, default=0) for own in cuts), default=0)
    shape = (len(visits), longest, widest)
    if all(own == cuts[0] for own in cuts) and passed[0] == longest * widest:
        rows = torch.stack(list(visits)) + torch.tensor(starts[: len(visits)])[:, None]
        weights = torch.full(shape, 1.0 / max(1, widest), dtype=dtype)
        shown = None if draws is None else torch.stack(list(draws)).view(*shape, -1)
        working = (len(visits),) * longest
        return Plan(order, rows.view(shape), weights, working, steps, passed, shown)
    index = torch.zeros(shape, dtype=torch.int64)
    weights = torch.zeros(shape, dtype=dtype)
    shown = None if draws is None else torch.zeros(*shape, draws[0].shape[1], dtype=torch.float64)
    for place, k in enumerate(order):
        if not steps[k]:
            continue
        index[place] = starts[k]
        for step, own in enumerate(visits[k].split(cuts[k])):
            index[place, step, : cuts[k][step]] += own
            weights[place, step, : cuts[k][step]] = 1.0 / cuts[k][step]
        if draws is not None and shown is not None:
            for step, drawn in enumerate(draws[k].split(cuts[k])):
                shown[place, step, : cuts[k][step]] = drawn
    working = tuple(sum(1 for n in steps if n > step) for step in range(longest))
    return Plan(order, index, weights, working, steps, passed, shown)


def _cut(visits: int, size: int, batch_size: int) -> list[int]:
    """Returns the number of rows of each step: passes of `size` rows, cut into batches."""
    cuts: list[int] = []
    while visits > 0:
        left = min(size, visits)
        visits -= left
        while left > 0:
            cuts.append(min(batch_size, left))
            left -= cuts[-1]
    return cuts
