"""Who watches a run: what a file in `audits/` offers, and what it is told of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedcl.core.accounting.ledger import Mechanism
from fedcl.core.attacks.poison import Poison
from fedcl.core.data.stream import Stream
from fedcl.core.data.table import IntArray
from fedcl.core.method import Method
from fedcl.core.site import Site
from fedcl.core.watch import Watch


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


class Audit(Protocol):
    """What a file in `audits/` offers: options, and a watch for a run."""

    def open(self, subject: Subject) -> Watch:
        """Begins to watch a run.

        Raises:
            ConfigError: There is nothing in this run that it could look at.
        """
        ...
