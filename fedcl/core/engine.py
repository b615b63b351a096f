"""Where clients run: a site answers for one client or a block of them; an engine sends blocks to sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from fedcl.core.channel import Aggregate, Channel, fold
from fedcl.core.client import Client, Program, Reply, Unchanged
from fedcl.core.errors import ClientError
from fedcl.core.local import Local, Trainer
from fedcl.core.params import not_finite
from fedcl.core.population import Memories, Population
from fedcl.core.seeds import seed_of
from fedcl.core.tree import move


@dataclass(frozen=True)
class Position:
    """Where in a run an exchange happens; the seeds of everything in it.

    Attributes:
        stage: Stage of the stream.
        round: Round of the stage; -1 is the stage's beginning, `training.rounds` its end.
        exchange: Number of the exchange in the round.
        attempt: 0, or how often this round was repeated.
    """

    stage: int
    round: int
    exchange: int
    attempt: int = 0


@dataclass(frozen=True)
class Request:
    """What the door asks of an engine.

    Attributes:
        position: Where in the run.
        program: Client half of the exchange, or local training by its parts.
        message: What goes down, the same for all.
        reveal: Whether single replies come back instead of their sum.
    """

    position: Position
    program: Program[Any] | Local
    message: Any
    reveal: bool = False

    @property
    def name(self) -> str:
        """Name of the program in records and errors."""
        return program_name(self.program)


def program_name(program: Program[Any] | Local) -> str:
    """Returns the name of a program: local training's own, a function's, or a dataclass's."""
    name = (
        getattr(program, "name", None)
        or getattr(program, "__name__", None)
        or type(program).__name__.lower()
    )
    return str(name)


@dataclass(frozen=True)
class BlockResult:
    """What one block of clients answered.

    Attributes:
        ids: Clients that answered, ascending.
        total: Sum of their replies; None when they are revealed.
        replies: The replies themselves, when they are revealed.
        memories: Memories that changed.
        uploaded: Bytes that went up, by kind of payload.
        steps: Local optimizer steps.
        examples: Examples passed through the network.
        failures: Clients that did not answer, and why.
    """

    ids: tuple[int, ...]
    total: Aggregate | None
    replies: tuple[Reply, ...] | None
    memories: Mapping[int, Any]
    uploaded: Mapping[str, int]
    steps: int = 0
    examples: int = 0
    failures: Mapping[int, str] = field(default_factory=dict)


class Engine(Protocol):
    """How the clients of an exchange run: what a file in `engines/` offers."""

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Gets ready (workers, data); `launch` holds the resolved config, for clients elsewhere."""
        ...

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the results of the fold blocks of `ids`, in their order."""
        ...

    def close(self) -> None:
        """Ends what `open` began."""
        ...


@dataclass(frozen=True)
class Site:
    """All that is needed where clients run.

    Attributes:
        population: Builds clients where their data lie.
        model: The architecture.
        trainer: How one client trains.
        channel: Transforms of replies.
        seed: Seed of the experiment.
        fold: Clients in a fold block: sums are made block by block, whatever the engine.
        equal: Whether all replies weigh the same.
        device: Where clients compute.
    """

    population: Population
    model: nn.Module
    trainer: Trainer
    channel: Channel
    seed: int
    fold: int
    equal: bool
    device: torch.device

    def blocks(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        """Returns the ids cut into fold blocks."""
        return [tuple(ids[start : start + self.fold]) for start in range(0, len(ids), self.fold)]

    def clients(
        self, request: Request, ids: Sequence[int], memories: Mapping[int, Any]
    ) -> list[Client]:
        """Builds the clients of a block for one exchange."""
        at = request.position
        # A repeated round draws anew; a first attempt has the seed of a run that was never repeated.
        again = (at.attempt,) if at.attempt else ()
        return [
            self.population.client(
                id,
                at.stage,
                self.model,
                memories.get(id),
                seed_of(self.seed, at.stage, at.round, at.exchange, *again, id),
            )
            for id in ids
        ]

    def loop(
        self, request: Request, ids: Sequence[int], memories: Mapping[int, Any]
    ) -> BlockResult:
        """Runs the clients of a block one after the other: the reference."""
        message = move(request.message, self.device)
        replies = []
        clients = []
        for id in ids:
            client = self.clients(request, (id,), memories)[0]
            replies.append(self._answer(request, client, message))
            clients.append(client)
        return self.gather(request, clients, replies)

    def batch(
        self, request: Request, ids: Sequence[int], memories: Mapping[int, Any], size: int
    ) -> BlockResult:
        """Trains the clients of a block as batched computations of `size`; other programs run in a loop."""
        if not isinstance(request.program, Local):
            return self.loop(request, ids, memories)
        message = move(request.message, self.device)
        clients: list[Client] = []
        replies: list[Reply] = []
        for start in range(0, len(ids), size):
            chunk = self.clients(request, ids[start : start + size], memories)
            try:
                replies.extend(self.trainer.block(request.program, chunk, message))
            except Exception as error:
                at = request.position
                raise ClientError(
                    chunk[0].id, at.stage, at.round, request.name, f"{error} (in its block)"
                ) from error
            clients.extend(chunk)
        return self.gather(request, clients, replies)

    def _answer(self, request: Request, client: Client, message: Any) -> Reply:
        program = (
            self.trainer(request.program) if isinstance(request.program, Local) else request.program
        )
        try:
            return program(client, message)
        except Exception as error:
            at = request.position
            raise ClientError(
                client.id, at.stage, at.round, request.name, str(error) or repr(error)
            ) from error

    def gather(
        self, request: Request, clients: Sequence[Client], replies: Sequence[Reply]
    ) -> BlockResult:
        """Sends replies through the channel's `upload` steps and folds them."""
        cpu = torch.device("cpu")
        sent: list[Reply] = []
        uploaded: Counter[str] = Counter()
        memories: dict[int, Any] = {}
        kind = "model" if isinstance(request.program, Local) else request.name
        for client, reply in zip(clients, replies, strict=True):
            if reply.state is not client.state and not isinstance(reply.state, Unchanged):
                memories[client.id] = move(reply.state, cpu)
            for step in self.channel:
                reply = step.upload(reply, client.seed)
            sent.append(reply)
            for name, value in reply.tensors.items():
                uploaded[name.split("/")[0] if "/" in name else kind] += (
                    value.numel() * value.element_size()
                )
            uploaded["metrics"] += 8 * (1 + len(reply.metrics))
        self._check(request, clients, sent)
        return BlockResult(
            ids=tuple(client.id for client in clients),
            total=None if request.reveal else fold(sent, self.equal),
            replies=tuple(sent) if request.reveal else None,
            memories=memories,
            uploaded=dict(uploaded),
            steps=sum(reply.steps for reply in replies),
            examples=sum(reply.examples for reply in replies),
        )

    def _check(self, request: Request, clients: Sequence[Client], replies: Sequence[Reply]) -> None:
        at = request.position
        first = (
            {name: (value.shape, value.dtype) for name, value in replies[0].tensors.items()}
            if replies
            else {}
        )
        for client, reply in zip(clients, replies, strict=True):
            if {name: (value.shape, value.dtype) for name, value in reply.tensors.items()} != first:
                reason = (
                    f"its reply differs in names, shapes or types from client {clients[0].id}'s"
                )
                raise ClientError(client.id, at.stage, at.round, request.name, reason)
            bad = not_finite(reply.tensors)
            if bad is not None:
                reason = f"its reply {bad!r} holds NaN or infinity; training diverged: lower training.local.lr"
                raise ClientError(client.id, at.stage, at.round, request.name, reason)
