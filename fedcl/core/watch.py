"""An audit at work: what it sees of a run, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from fedcl.core.accounting.ledger import Draw, Mechanism
from fedcl.core.client import Reply
from fedcl.core.exchange import Exchange
from fedcl.core.memories import Memories
from fedcl.core.params import Params
from fedcl.core.request import Position, Request


@dataclass(frozen=True)
class Release:
    """One sum of clipped replies, before and after its noise.

    Attributes:
        position: Where in the run.
        program: Name of the program: the channel that it makes.
        clean: The sum as it was; nobody but an audit in the simulator sees it.
        released: What was released instead.
        scale: Standard deviation of the noise that was promised.
        mechanism: What bounds the replies.
        draw: How the clients came to be asked.
    """

    position: Position
    program: str
    clean: Params
    released: Params
    scale: float
    mechanism: Mechanism
    draw: Draw


@dataclass(frozen=True)
class Finding:
    """What an audit found.

    Attributes:
        numbers: Results by name, as they stand in summary.json below the audit's name. One called
            `epsilon_lower` is a bound from below that holds with the confidence that the audit
            states; the largest of all audits becomes the run's.
        tables: Rows by the name of the file that they are written to, without `.csv`; all rows of a
            table have the same columns.
        pictures: Arrays by the name of the file, without `.npz`.
        note: What a reader must know, in a sentence; always what is not covered.
        failed: Whether it contradicts what the run promises.
    """

    numbers: Mapping[str, float | int | str | Sequence[float] | None] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    pictures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    note: str = ""
    failed: bool = False


class Predict(Protocol):
    """The method's own prediction, with its state and parameters of now."""

    def __call__(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Returns the (n, classes) logits of (n, ...) inputs, on the CPU.

        Args:
            x: Inputs, of any device and real type.
            allowed: (classes,) bool, what it may choose from: `stream.head(task, stage)`.
        """
        ...


class Watch:
    """An audit at work: it looks at one run, and then says what it found. Does nothing by itself.

    Nothing that it does may change the run, except `join`, which adds clients.
    """

    def wants(self, request: Request) -> bool:
        """Returns whether it looks at single replies of an exchange, as they left the clients."""
        return False

    def asked(self, request: Request, ids: Sequence[int], memories: Memories) -> None:
        """Looks at an exchange before it begins."""

    def sent(self, request: Request, replies: Mapping[int, Reply]) -> None:
        """Looks at replies of some clients of an exchange that it wants, by client."""

    def join(self, request: Request, form: Mapping[str, Tensor]) -> Sequence[Reply]:
        """Returns further replies that go into the sum, as they leave their clients.

        Args:
            request: What was asked.
            form: Tensors in the form of the sum of the replies; empty where nobody answered.
        """
        return ()

    def released(self, release: Release) -> None:
        """Looks at a release under differential privacy."""

    def observe(self, exchange: Exchange) -> None:
        """Looks at one finished exchange, as the server sees it."""

    def stage_ended(self, stage: int, predict: Predict) -> None:
        """Looks at the global model at the end of a stage, after what the method does there.

        A resumed run shows the stages that it still had to finish.
        """

    def finish(self, params: Params) -> Finding:
        """Returns what it found, once the run is over.

        Args:
            params: The final global model.
        """
        raise NotImplementedError
