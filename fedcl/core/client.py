"""A client as a program sees it, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import nn

from fedcl.core.params import Params
from fedcl.core.task import ClientTask, Examples

M_contra = TypeVar("M_contra", contravariant=True)


@dataclass(frozen=True)
class Client:
    """One participant for the length of one exchange, built where its data lie.

    Attributes:
        id: Its number among the registered clients.
        model: The architecture; its own parameters mean nothing, the message brings them.
        data: The examples of the present stage.
        task: Masks of the present stage.
        state: What it keeps for itself between exchanges, or None at first.
        seed: Seed of this client in this exchange.
        public: Data of this stage and earlier ones that everyone may use, or None: every client has
            them already, so they are not sent.
        key: 32 bytes from which it draws what must stay its secret, such as noise: its own, and new
            in every exchange. None where nothing needs one.
    """

    id: int
    model: nn.Module
    data: Examples
    task: ClientTask
    state: Any
    seed: int
    public: Examples | None = None
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Unchanged:
    """Says that a client keeps its memory as it is; None would mean that it forgets."""


@dataclass(frozen=True)
class Kept:
    """Stands on the server for a memory that lies with its client.

    Attributes:
        moment: Stage, round, attempt and number of the exchange that wrote it: ordered as time is.
    """

    moment: tuple[int, int, int, int]


@dataclass(frozen=True)
class Spent:
    """What a client did to its records in one exchange, as their privacy accounting sees it.

    Attributes:
        noise_multiplier: Standard deviation of the Gaussian noise of each step over the largest
            norm that one record adds to the step's sum.
        rate: Chance of a record to be in a step, by itself; 1 where all are in each.
        steps: How many steps.
        earlier: Whether records of earlier stages, which it remembers, were among them.
    """

    noise_multiplier: float
    rate: float
    steps: int
    earlier: bool = False


@dataclass(frozen=True)
class Reply:
    """What goes up, and what stays.

    Attributes:
        tensors: What goes up. A name `kind/name` is booked under that kind of payload.
        weight: Weight in the cohort's mean.
        metrics: Numbers for the record; dropped where replies are hidden.
        state: The client's next memory, which never leaves it; None forgets, the default keeps it
            as it is.
        steps: Local optimizer steps, for the costs.
        examples: Examples passed through the network, for the costs.
        spent: What protects single records in it; None where nothing does.
    """

    tensors: Params
    weight: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: Any = Unchanged()
    steps: int = 0
    examples: int = 0
    spent: Spent | None = None


class Program(Protocol[M_contra]):
    """Client half of an exchange: a function of core or of a method, or a frozen dataclass."""

    def __call__(self, client: Client, message: M_contra, /) -> Reply:
        """Returns what the client answers."""
        ...


@dataclass(frozen=True)
class Each:
    """A message of its own for each client; nobody gets another one's.

    Attributes:
        messages: Message by the client's id.
    """

    messages: Mapping[int, Any]


@dataclass(frozen=True)
class Model:
    """The simplest message: the parameters to start from.

    Attributes:
        params: Model parameters.
    """

    params: Params
