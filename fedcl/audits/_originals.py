"""What payloads are compared with: the examples behind them, and what is known without any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedcl.core.audit import Subject
from fedcl.core.client import Each
from fedcl.core.local import Local, own_data
from fedcl.core.memories import Memories
from fedcl.core.request import Request
from fedcl.core.task import Examples, join

Array = NDArray[np.float64]


def drawn(ids: Sequence[int], count: int, random: np.random.Generator) -> tuple[int, ...]:
    """Returns so many of the ids, ascending; all for 0 or where there are no more."""
    if not count or count >= len(ids):
        return tuple(sorted(ids))
    return tuple(sorted(random.choice(np.array(ids), count, replace=False).tolist()))


def chosen_round(subject: Subject, request: Request, rounds: int) -> bool:
    """Whether an exchange is one of a stage's first rounds, or of its beginning or end."""
    return request.position.round < rounds or request.position.round >= subject.rounds


def trained_on(subject: Subject, request: Request, id: int, memories: Memories) -> Examples:
    """Returns the true examples behind a client's reply: its own, and those that it remembers.

    Images that a generator made are left out: they are nobody's.
    """
    memory = memories.look(id)
    held = {} if memory is None else {id: memory}
    client = subject.site.clients(request, (id,), held)[0]
    own = Examples(client.data.x.cpu(), client.data.y.cpu())
    program, message = request.program, request.message
    if not isinstance(program, Local) or program.data is own_data:
        return own
    if isinstance(message, Each):
        message = message.messages[id]
    with torch.no_grad():
        found = program.data(client, message)
    used = Examples(found.x.detach().cpu(), found.y.cpu())
    stage = request.position.stage
    earlier = [
        subject.stream.train(id, before).x.to(own.x.dtype)
        for before in range(stage)
        if subject.stream.task_at(id, before) is not None
    ]
    real = {row.numpy().tobytes() for part in (own.x, *earlier) for row in part}
    rows = [k for k, row in enumerate(used.x) if row.contiguous().numpy().tobytes() in real]
    return used.take(torch.tensor(rows, dtype=torch.int64))


def together(parts: Mapping[int, Examples], ids: Sequence[int]) -> Examples | None:
    """Returns the examples of some clients, one after the other; None without any."""
    found = [parts[id] for id in ids if id in parts]
    return join(found) if found else None


@dataclass(frozen=True)
class Known:
    """What an attacker knows without any payload: test records of the stage's tasks.

    Attributes:
        x: (n, ...) test inputs, which nobody trains on, in the units of the data.
        low: Smallest number of them: what is taken for 0.
        high: Largest one: what is taken for 1.
    """

    x: Array
    low: float
    high: float

    def unit(self, rows: Array) -> Array:
        """Returns (n, ...) inputs as (n, d) rows whose range is [0, 1]."""
        flat = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
        return np.asarray((flat - self.low) / max(self.high - self.low, 1e-12), dtype=np.float64)

    @property
    def mean(self) -> Array:
        """The (d,) mean input, in the units of the data."""
        return np.asarray(self.x.reshape(len(self.x), -1).mean(0), dtype=np.float64)


def known_at(subject: Subject, stage: int) -> Known:
    """Returns what an attacker knows of the inputs of a stage."""
    stream = subject.stream
    parts = [stream.held_out(task, "test").x for task in stream.present(stage)]
    x = np.asarray(torch.cat(parts).double().numpy(), dtype=np.float64)
    return Known(x, float(x.min()), float(x.max()))


def candidates_at(subject: Subject, stage: int) -> frozenset[int]:
    """Returns the classes that training at a stage compares: those that may be behind a payload."""
    if subject.stream.scenario == "domain":
        return frozenset(range(subject.stream.classes))
    return frozenset(subject.stream.seen_classes(stage))
