"""Who watches a run: what audits see of it, and what they find."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedcl.core.accounting.ledger import Draw, Mechanism
from fedcl.core.attacks.poison import Poison
from fedcl.core.client import Reply
from fedcl.core.data.table import IntArray
from fedcl.core.engine import Position, Request
from fedcl.core.exchange import Exchange
from fedcl.core.memories import Memories
from fedcl.core.params import Params

if TYPE_CHECKING:
    from fedcl.core.data.stream import Stream
    from fedcl.core.method import Method
    from fedcl.core.site import Site


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
class Records:
    """Records of a task that a repeated run is asked about.

    Attributes:
        task: The task, which says how their inputs are transformed.
        train: Rows of the training split.
        test: Rows of the test split, which no run learns.
    """

    task: int
    train: IntArray
    test: IntArray


class Repeat(Protocol):
    """Runs the same experiment once more; it can be sent to another process."""

    def __call__(
        self, seed: int, kept: NDArray[np.bool_], records: Sequence[Records]
    ) -> Sequence[Mapping[int, Tensor]]:
        """Returns what the method says of the records after each stage, for each task met by then.

        The stream is the same, row by row, but for what is left out; all else that is drawn (model,
        cohorts, batches, noise) is drawn anew, secret noise from a root of its own.

        Args:
            seed: Of what is drawn anew.
            kept: (N,) which rows of the training split clients hold.
            records: The records, of each task at most once.

        Returns:
            Of each stage the (train + test, classes) logits by task, on the CPU, -inf where the
            scenario rules a class out.
        """
        ...

    def together(
        self, seeds: Sequence[int], kept: Sequence[NDArray[np.bool_]], records: Sequence[Records]
    ) -> list[Sequence[Mapping[int, Tensor]]]:
        """Returns the same of several runs, which train side by side where they can.

        Args:
            seeds: One of each run.
            kept: Rows of each.
            records: The records, the same for all.
        """
        ...


@dataclass(frozen=True)
class Subject:
    """What an audit knows of the run that it watches.

    Attributes:
        site: Model, population and channel.
        stream: Who holds what, when.
        method: The method.
        seed: Seed of the experiment.
        rounds: Rounds of a stage.
        sampling: How cohorts are drawn.
        cohort: Clients of a cohort; 0 for all members.
        mechanism: What protects clients, or None.
        spent: Returns epsilon of all releases so far; infinite where something was sent bare.
        whole: Whether the run is watched from its beginning; not after a resume.
        repeat: Runs the same experiment once more; None where it cannot be.
        poison: What attackers do to their examples, or None.
    """

    site: Site
    stream: Stream
    method: Method[Any]
    seed: int
    rounds: int
    sampling: str
    cohort: int
    mechanism: Mechanism | None
    spent: Callable[[], float]
    whole: bool = True
    repeat: Repeat | None = None
    poison: Poison | None = None


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


class Audit(Protocol):
    """What a file in `audits/` offers: options, and a watch for a run."""

    def open(self, subject: Subject) -> Watch:
        """Begins to watch a run.

        Raises:
            ConfigError: There is nothing in this run that it could look at.
        """
        ...
