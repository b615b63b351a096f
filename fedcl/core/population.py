"""Who takes part: clients are built for one exchange where their data lie, and never kept."""

from __future__ import annotations

import random
from builtins import id as id_of
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedcl.core.attacks.poison import Poison
from fedcl.core.block import Block
from fedcl.core.client import Client
from fedcl.core.data.fetch import Rows
from fedcl.core.data.stream import Stream
from fedcl.core.data.table import IntArray
from fedcl.core.seeds import numpy_generator
from fedcl.core.task import ClientTask, Examples
from fedcl.core.tree import move, settle


class Population(Protocol):
    """Builds clients: from lazy arrays in a simulation, from its own data on a device."""

    def client(self, id: int, stage: int, model: nn.Module, state: Any, seed: int) -> Client:
        """Returns a client for one exchange."""
        ...

    def block(
        self,
        ids: Sequence[int],
        stage: int,
        model: nn.Module,
        states: Sequence[Any],
        seeds: Sequence[int],
    ) -> Block:
        """Returns several clients of one exchange, with their examples one after the other."""
        ...

    def sizes(self, ids: Sequence[int], stage: int) -> IntArray:
        """Returns about how many examples each client has at a stage; fetches none of them."""
        ...

    def on(self, device: torch.device) -> Population:
        """Returns the population whose examples go to a device."""
        ...

    def at(self, round: int) -> Population:
        """Returns the population as of a round of a stage: data may arrive in between."""
        ...

    def absent(self, ids: Sequence[int], stage: int) -> Mapping[int, str]:
        """Returns which of these members have nothing to take part with, and why."""
        ...

    def stream_of(self, id: int, stage: int) -> Stream:
        """Returns the stream as a client knows it as of a stage."""
        ...


@dataclass(frozen=True)
class Fetched:
    """Examples of a stream's clients on their way to a device.

    Attributes:
        rows: Their rows.
        dtype: Type of the inputs.
        device: Where they go.
        poison: What attackers among them do to their examples, or None.
        marks: (n,) bool, to which examples; None for none.
    """

    rows: Rows
    dtype: torch.dtype
    device: torch.device
    poison: Poison | None = None
    marks: Tensor | None = None

    def take(self, order: Tensor | None = None) -> Examples:
        """Returns the examples, or those at the places `order`, as they are laid out by NumPy."""
        data = self.rows.take(None if order is None else order.numpy())
        if self.poison is not None and self.marks is not None:
            data = self.poison.applied(data, self.marks if order is None else self.marks[order])
        return move(Examples(data.x.to(self.dtype), data.y, data.extra), self.device)


@dataclass(frozen=True)
class Simulated:
    """Clients of a stream whose arrays lie in this process.

    Attributes:
        stream: Who holds what, when.
        dtype: Type of the inputs.
        device: Where the examples go.
        poison: What attackers do to their examples, or None.
    """

    stream: Stream
    dtype: torch.dtype
    device: torch.device
    poison: Poison | None = None

    def client(self, id: int, stage: int, model: nn.Module, state: Any, seed: int) -> Client:
        """Returns a client for one exchange."""
        data = self.stream.train(id, stage)
        marks = None if self.poison is None else self.poison.marks((id,), (len(data),), stage)
        if self.poison is not None and marks is not None:
            data = self.poison.applied(data, marks)
        data = settle(type(data)(data.x.to(self.dtype), data.y, data.extra), self.device)
        task = move(self.stream.client_task(id, stage), self.device)
        state = settle(state, self.device)
        return Client(id, model, data, task, state, seed, self._public(stage))

    def block(
        self,
        ids: Sequence[int],
        stage: int,
        model: nn.Module,
        states: Sequence[Any],
        seeds: Sequence[int],
    ) -> Block:
        """Returns several clients of one exchange, fetched together."""
        rows, sizes = self.stream.gather(ids, stage)
        marks = None if self.poison is None else self.poison.marks(ids, sizes, stage)
        moved: dict[int, ClientTask] = {}
        tasks = []
        for id in ids:
            task = self.stream.client_task(id, stage)
            # Clients that share their masks go on doing so.
            if id_of(task) not in moved:
                moved[id_of(task)] = move(task, self.device)
            tasks.append(moved[id_of(task)])
        return Block(
            tuple(ids),
            model,
            Fetched(rows, self.dtype, self.device, self.poison, marks),
            sizes,
            tuple(tasks),
            tuple(settle(state, self.device) for state in states),
            tuple(seeds),
            self._public(stage),
        )

    def _public(self, stage: int) -> Examples | None:
        found = self.stream.public(stage)
        if found is None:
            return None
        return move(replace(found, x=found.x.to(self.dtype)), self.device)

    def sizes(self, ids: Sequence[int], stage: int) -> IntArray:
        """Returns how many examples of its task each client has; borders may blur that a little."""
        clients = np.asarray(ids, dtype=np.int64)
        at = np.array([path[stage] for path in self.stream.calendar.paths(ids)], dtype=np.int64)
        sizes = np.zeros(len(clients), dtype=np.int64)
        for task in np.unique(at[at >= 0]).tolist():
            sizes[at == task] = self.stream.shares(task).sizes(clients[at == task])
        return sizes

    def on(self, device: torch.device) -> Simulated:
        """Returns the population whose examples go to a device."""
        return replace(self, device=device)

    def at(self, round: int) -> Simulated:
        """Returns the same: a member's data of a stage are there from its beginning."""
        return self

    def absent(self, ids: Sequence[int], stage: int) -> Mapping[int, str]:
        """Returns nobody: members are those with data."""
        return {}

    def stream_of(self, id: int, stage: int) -> Stream:
        """Returns the one stream of all."""
        return self.stream


def sample(members: Sequence[int], size: int, how: str, seed: int, turn: int) -> tuple[int, ...]:
    """Returns the ids of a round's cohort, ascending; a pure function of its arguments.

    Args:
        members: Clients with data at this stage; never enumerated.
        size: Cohort size (the expected one under `poisson`); 0 means all members.
        how: `fixed` (without replacement), `poisson` (each by itself, so the size varies and may be
            0), or `round_robin` (the next `size` members in turn).
        seed: Seed of this stage and round.
        turn: Number of the round in the whole run.
    """
    total = len(members)
    if total == 0:
        return ()
    size = min(size or total, total)
    if how == "round_robin":
        return tuple(sorted({members[(turn * size + k) % total] for k in range(size)}))
    generator = random.Random(seed)
    if how == "poisson":
        size = _binomial(total, size / total, seed)
    return tuple(sorted(members[k] for k in generator.sample(range(total), size)))


def answering(
    ids: Sequence[int], availability: float, enough: int, at: Sequence[int]
) -> Sequence[int]:
    """Returns who answers in a simulation: some do not, and the others in a random order.

    Args:
        ids: Who is asked, ascending.
        availability: Chance that a client answers.
        enough: Answers after which no more are waited for; 0 for all.
        at: Seed of the experiment, and the numbers of the position.
    """
    if availability < 1.0:
        draws = numpy_generator(*at, "available").random(len(ids))
        ids = [id for id, draw in zip(ids, draws, strict=True) if draw < availability]
    if not enough or len(ids) <= enough:
        return ids
    order = numpy_generator(*at, "first").permutation(len(ids))[:enough]
    return [ids[place] for place in sorted(order.tolist())]


def _binomial(trials: int, chance: float, seed: int) -> int:
    """Returns the size of a Poisson sample: given it, every subset of that size is as likely."""
    return int(numpy_generator(seed, "poisson").binomial(trials, chance))
