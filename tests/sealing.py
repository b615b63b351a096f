"""Looks at everything that the server's code can reach, beside what each client really sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import pytest
from torch import Tensor, nn

import fedcl
from fedcl.assembly import sealed
from fedcl.config import Experiment
from fedcl.core.audit import Subject
from fedcl.core.client import Reply
from fedcl.core.engine import Engine
from fedcl.core.federation import Federation
from fedcl.core.memories import Memories
from fedcl.core.params import Params
from fedcl.core.request import BlockResult, Position, Request
from fedcl.core.site import Site
from fedcl.core.watch import Finding, Watch
from fedcl.methods.fedavg import FedAvg

SENT: dict[tuple[Position, int], Reply] = {}  # by exchange and client, since somebody emptied it


@dataclass(frozen=True)
class Spy:
    """An audit that keeps every reply as it left its client: the simulator's own view."""

    def open(self, subject: Subject) -> Watch:
        """Begins to watch."""
        return _Spying()


class _Spying(Watch):
    def wants(self, request: Request) -> bool:
        return True

    def sent(self, request: Request, replies: Mapping[int, Reply]) -> None:
        SENT.update({(request.position, id): reply for id, reply in replies.items()})

    def finish(self, params: Params) -> Finding:
        return Finding()


@dataclass
class Recording:
    """An engine that keeps what it hands up to the door."""

    inner: Engine
    results: list[tuple[Request, BlockResult]] = field(default_factory=list)

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Opens the inner engine."""
        self.inner.open(site, launch)

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Lets the inner engine run, and keeps its results."""
        for result in self.inner.run(request, ids, memories):
            self.results.append((request, result))
            yield result

    def close(self) -> None:
        """Closes the inner engine."""
        self.inner.close()


@dataclass
class Looks:
    """What the server's code got hold of in a run.

    Attributes:
        results: What came to the door of each exchange.
        method: What the method was given, and what it made of it.
        received: What the channel's server half was given.
        record: The run's record.
    """

    results: list[tuple[Request, BlockResult]]
    method: list[Any]
    received: list[Any]
    record: fedcl.Record

    @property
    def everything(self) -> list[Any]:
        """All of it, but for what says who answered: the simulator's own view."""
        return [self.method, self.received, [result for _, result in self.results]]


def spied(experiment: Experiment) -> dict[tuple[Position, int], Reply]:
    """Runs an experiment and returns what each client sent in each exchange."""
    SENT.clear()
    fedcl.run(replace(experiment, audit=(Spy(),), resolved=_named(experiment)))
    return dict(SENT)


def _named(experiment: Experiment) -> dict[str, Any]:
    return {**experiment.resolved, "audit": [{"name": "tests.sealing:Spy"}]}


def looked(experiment: Experiment, patch: pytest.MonkeyPatch, *, broken: bool = False) -> Looks:
    """Runs FedAvg and returns all that its server got.

    Args:
        experiment: With one step in its channel.
        patch: Lets the looks be taken.
        broken: Whether the seal is left out.
    """
    doors: list[Recording] = []
    method: list[Any] = []
    received: list[Any] = []
    step = type(experiment.channel[0])
    ask, receive, turn = Federation.aggregate, step.receive, FedAvg.round

    def door(own: Experiment, inner: Engine) -> Engine:
        doors.append(Recording(inner if broken else sealed(own, inner)))
        return doors[-1]

    def aggregate(self: Federation, *words: Any, **more: Any) -> Any:
        method.append(ask(self, *words, **more))
        return method[-1]

    def round(self: FedAvg, state: Any, fed: Federation) -> Any:
        after = turn(self, state, fed)
        public = [f.name for f in fields(fed) if not f.name.startswith("_")]
        method.append([state, after, {name: getattr(fed, name) for name in public}])
        return after

    def take(self: Any, total: Any, state: Any, seed: int) -> Any:
        received.append([total, state])
        return receive(self, total, state, seed)

    with patch.context() as within:
        within.setattr("fedcl.loop.sealed", door)
        within.setattr(Federation, "aggregate", aggregate)
        within.setattr(FedAvg, "round", round)
        within.setattr(step, "receive", take)
        record = fedcl.run(experiment)
    return Looks(doors[0].results, method, received, record)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yields every tensor that can be reached from a value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.state_dict().values()
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            yield from tensors(getattr(value, part.name))
    elif isinstance(value, Sequence | set) and not isinstance(value, str | bytes):
        for part in value:
            yield from tensors(part)


def betrayed(value: Any, replies: Mapping[Any, Reply]) -> list[tuple[Any, str]]:
    """Returns whose tensors can be reached from a value, as they were sent or times their weight.

    Engines that batch clients round otherwise, so that a tensor counts as a client's where it is
    one but for a thousandth of its length.
    """
    found = [tensor.double().flatten() for tensor in tensors(value)]
    betrayed = []
    for key, reply in replies.items():
        for name, sent in reply.tensors.items():
            flat = sent.double().flatten()
            for tensor in found:
                if len(tensor) == len(flat) and any(
                    float((tensor - weight * flat).norm()) <= 1e-3 * float((weight * flat).norm())
                    for weight in (1.0, reply.weight)
                ):
                    betrayed.append((key, name))
    return betrayed
