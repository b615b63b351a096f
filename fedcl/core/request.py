"""What the door asks of clients, and what they answer, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedcl.core.channel import Aggregate
from fedcl.core.client import Program, Reply, Spent, Unchanged
from fedcl.core.errors import ClientError
from fedcl.core.local import Local


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

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """Stage, round, exchange and attempt, as what is drawn here is seeded."""
        return self.stage, self.round, self.exchange, self.attempt


@dataclass(frozen=True)
class Request:
    """What the door asks of an engine.

    Attributes:
        position: Where in the run.
        program: Client half of the exchange, or local training by its parts.
        message: What goes down, the same for all, or `Each` with one for each client.
        reveal: Whether single replies come back instead of their sum.
        committed: Stage and round where a resumed run would start now: what clients keep for it.
        told: What each step of the channel tells the clients; empty for nothing.
        secret: 32 bytes below which the simulated clients' secret keys of this exchange lie, or
            None. A device has a root of its own.
        least: Fewest replies whose total a sealed engine hands out (`fedcl.core.sealed`).
        blank: Whether nothing but the form of a total is wanted: a sealed engine answers with
            zeros, and no memory changes.
        enough: Answers after which an engine of live clients need not wait for more; 0 for all.
    """

    position: Position
    program: Program[Any] | Local
    message: Any
    reveal: bool = False
    committed: tuple[int, int] = (0, 0)
    told: tuple[Any, ...] = ()
    secret: bytes | None = field(default=None, repr=False)
    least: int = 0
    blank: bool = False
    enough: int = 0

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
class Answer:
    """What one client answers.

    Attributes:
        id: The client.
        reply: What goes up: after the channel's `upload` steps, and without the memory.
        memory: What stays: its next memory, or `Unchanged`.
    """

    id: int
    reply: Reply
    memory: Any = field(default_factory=Unchanged)


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
        padded: Rows computed and thrown away, because clients of one computation were uneven.
        failures: Clients that did not answer, and why.
        rejected: Clients whose replies do not fit and were left out, and why.
        spent: What protects single records in a client's reply, by client; nothing where nothing
            does. No step of one who was certainly not asked.
    """

    ids: tuple[int, ...]
    total: Aggregate | None
    replies: tuple[Reply, ...] | None
    memories: Mapping[int, Any]
    uploaded: Mapping[str, int]
    steps: int = 0
    examples: int = 0
    padded: int = 0
    failures: Mapping[int, str] = field(default_factory=dict)
    rejected: Mapping[int, str] = field(default_factory=dict)
    spent: Mapping[int, Spent] = field(default_factory=dict)


def failure(request: Request, client: int, reason: str) -> ClientError:
    """Returns the error of a client whose program failed in an exchange."""
    at = request.position
    return ClientError(client, at.stage, at.round, request.name, reason)


def diverged(name: str) -> str:
    """Returns the reason of a reply with NaN or infinity in the tensor of that name."""
    return f"its reply {name!r} holds NaN or infinity; training diverged: lower training.local.lr"
