"""Who takes part: clients are built for one exchange where their data lie, and never kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from fedcl.core.client import Client
from fedcl.core.seeds import numpy_generator
from fedcl.core.stream import Stream
from fedcl.core.tree import move, settle


class Population(Protocol):
    """Builds clients: from lazy arrays in a simulation, from its own data on a device."""

    def client(self, id: int, stage: int, model: nn.Module, state: Any, seed: int) -> Client:
        """Returns a client for one exchange."""
        ...


@dataclass(frozen=True)
class Simulated:
    """Clients of a stream whose arrays lie in this process.

    Attributes:
        stream: Who holds what, when.
        dtype: Type of the inputs.
        device: Where the examples go.
    """

    stream: Stream
    dtype: torch.dtype
    device: torch.device

    def client(self, id: int, stage: int, model: nn.Module, state: Any, seed: int) -> Client:
        """Returns a client for one exchange."""
        data = self.stream.train(id, stage)
        data = settle(type(data)(data.x.to(self.dtype), data.y, data.extra), self.device)
        task = move(self.stream.client_task(id, stage), self.device)
        return Client(id, model, data, task, settle(state, self.device), seed)


@dataclass
class Memories:
    """The clients' memories in a simulation: what was committed, and what this round has changed.

    Attributes:
        committed: Memory of each client that remembers something, as of the last finished round.
        pending: Memories that the present round has changed.
        recall: Fetches a memory that an engine leaves with its client, for the simulator's own view
            (`fedcl.core.client.Kept` stands here for it); None where memories lie here.
    """

    committed: dict[int, Any] = field(default_factory=dict)
    pending: dict[int, Any] = field(default_factory=dict)
    recall: Callable[[int, Any], Any] | None = None

    def load(self, ids: Iterable[int]) -> dict[int, Any]:
        """Returns the memories of those of `ids` that remember something."""
        found = {}
        for id in ids:
            value = self.pending[id] if id in self.pending else self.committed.get(id)
            if value is not None:
                found[id] = value
        return found

    def look(self, id: int) -> Any:
        """Returns the memory of one client, wherever it lies; None when it has none."""
        value = self.load((id,)).get(id)
        return value if self.recall is None or value is None else self.recall(id, value)

    def save(self, memories: Mapping[int, Any]) -> None:
        """Keeps changed memories until the round is committed or dropped."""
        self.pending.update(memories)

    def drop(self) -> None:
        """Forgets what the present round has changed."""
        self.pending.clear()

    def commit(self) -> dict[int, Any]:
        """Makes this round's changes permanent and returns them (None: forgotten)."""
        changed = dict(self.pending)
        for id, value in changed.items():
            if value is None:
                self.committed.pop(id, None)
            else:
                self.committed[id] = value
        self.pending.clear()
        return changed


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


def _binomial(trials: int, chance: float, seed: int) -> int:
    """Returns the size of a Poisson sample: given it, every subset of that size is as likely."""
    return int(numpy_generator(seed, "poisson").binomial(trials, chance))
