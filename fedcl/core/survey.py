"""What clients find on their own held-out examples: a pure function of a model and a client's data.

Simulation and devices call the same function, so they find the same to the bit. Numbers go up;
examples and memories never do. Of the server's state only what prediction needs goes down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fedcl.core.channel import hides_replies, mechanism
from fedcl.core.data.stream import Stream
from fedcl.core.errors import ExposureError
from fedcl.core.evaluate import Answers, answer
from fedcl.core.memories import Memories
from fedcl.core.method import Method
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.site import Site
from fedcl.core.task import Examples
from fedcl.core.tree import settle

Kind = Literal["global", "personal"]
Known = dict[tuple[str, int], Answers]


@dataclass(frozen=True)
class Examination:
    """What the server asks clients to evaluate.

    Attributes:
        stage: Stage of the stream.
        round: Finished round of that stage; -1 for the untrained model.
        splits: Held-out data to evaluate on.
        batch: Examples of one forward pass: the same everywhere, since it may move the last bit.
        view: What prediction needs of the method's state (`Method.for_prediction`).
    """

    stage: int
    round: int
    splits: tuple[str, ...]
    batch: int
    view: Any


@dataclass(frozen=True)
class Finding:
    """How good a model is on one client's own held-out examples of one task.

    Attributes:
        model: `global`, or `personal` for the client's own.
        split: Which held-out examples.
        task: The task.
        accuracy: Share of right answers, in [0, 1].
        loss: Mean cross-entropy.
        n: Examples behind the two.
    """

    model: Kind
    split: str
    task: int
    accuracy: float
    loss: float
    n: int


class Asking(Protocol):
    """What an engine offers besides, if its clients live elsewhere and evaluate there."""

    def present(self, clients: Sequence[int]) -> Sequence[int] | None:
        """Returns those of these clients that can be reached, ascending; None for all."""
        ...

    def evaluate(
        self, examination: Examination, ids: Sequence[int], memories: Memories
    ) -> tuple[Mapping[int, Sequence[Finding]], Mapping[int, str]]:
        """Asks clients.

        Returns:
            What each found that answered, and, of answers that cannot be read, what is wrong. Who
            did not answer in time is in neither.
        """
        ...


def models_of(method: Method[Any]) -> tuple[Kind, ...]:
    """Returns which models the clients of a method can evaluate."""
    own = type(method).personal is not Method.personal
    return ("global", "personal") if own else ("global",)


def findings(
    method: Method[Any],
    site: Site,
    examination: Examination,
    client: int,
    memory: Any = None,
    known: Known | None = None,
) -> tuple[Finding, ...]:
    """Returns what a client finds on each task that it has met, if it has held-out examples of it.

    Where held-out rows have owners it looks at its own. Where nobody owns any it looks at all, and
    finds what is to be expected under its own mix of classes (`expected`).

    Args:
        method: Says how to predict.
        site: Where the client computes, with its data.
        examination: What is asked.
        client: Its id.
        memory: What it remembers, or None.
        known: Takes the global model's answers to rows that nobody owns, so that a simulation
            computes them once for all clients; None keeps none.

    Raises:
        ExposureError: What the client sends is protected, which these numbers would not be.
    """
    if site.promise is not None or hides_replies(site.channel) or mechanism(site.channel):
        raise ExposureError(
            f"client {client} tells nobody how good a model is on its own data: what it sends is "
            'protected, and these numbers would not be; set evaluation.where = "server"'
        )
    view, found = settle(examination.view, site.device), []
    stream = site.population.at(examination.round).stream_of(client, examination.stage)
    tasks = dict.fromkeys(stream.history(client, examination.stage))
    for model in models_of(method):
        own = model == "personal"
        params = method.personal(view, memory) if own else view.params
        look = _Look(method, site, stream, examination, view, params, None if own else known)
        for split, task in product(examination.splits, tasks):
            accuracy, loss, n = look.at(client, split, task)
            if n:
                found.append(Finding(model, split, task, accuracy, loss, n))
    return tuple(found)


@dataclass(frozen=True)
class _Look:
    """A client's look at one model."""

    method: Method[Any]
    site: Site
    stream: Stream
    examination: Examination
    view: Any
    params: Params
    known: Known | None

    def at(self, client: int, split: str, task: int) -> tuple[float, float, int]:
        """Returns accuracy, loss, and the number of examples behind them; 0 where there is none."""
        owner = self.stream.owners(task, split)
        if owner is not None:
            rows = torch.from_numpy(np.flatnonzero(owner == client))
            if not len(rows):
                return 0.0, 0.0, 0
            own = self._answers(split, task, rows)
            return own.accuracy, own.loss, len(rows)
        answers = None if self.known is None else self.known.get((split, task))
        if answers is None:
            answers = self._answers(split, task, None)
            if self.known is not None:
                self.known[split, task] = answers
        accuracy, n = expected(self.stream, client, task, answers.labels, answers.right)
        loss, _ = expected(self.stream, client, task, answers.labels, answers.losses)
        return accuracy, loss, n

    def _answers(self, split: str, task: int, rows: Tensor | None) -> Answers:
        at = split, task, self.examination.stage, self.examination.batch
        return answered(self.method, self.site, self.stream, self.view, self.params, *at, rows)


def answered(
    method: Method[Any],
    site: Site,
    stream: Stream,
    state: Any,
    params: Params,
    split: str,
    task: int,
    stage: int,
    batch: int,
    rows: Tensor | None = None,
) -> Answers:
    """Returns the answers of a model with these parameters to a task's held-out examples.

    Args:
        method: Says how to predict.
        site: Where the model computes.
        stream: Holds the examples.
        state: The method's state, or what prediction needs of it.
        params: The parameters to evaluate.
        split: Which held-out examples.
        task: The task.
        stage: Decides which classes a prediction may choose from.
        batch: Examples of one forward pass.
        rows: (k,) places of some of the examples; None for all.
    """
    data = stream.held_out(task, split)
    data = data if rows is None else data.take(rows)
    dtype = next(iter(params.values())).dtype
    data = settle(Examples(data.x.to(dtype), data.y), site.device)
    net = Net(site.model, settle(dict(params), site.device))
    return answer(method, state, net, data, stream.head(task, stage).to(site.device), batch)


def expected(
    stream: Stream, client: int, task: int, labels: Tensor, values: Tensor
) -> tuple[float, int]:
    """Returns what a client is to expect where nobody owns held-out rows, and the rows behind it.

    It is the mean over classes of their mean value, weighted by the client's training examples of
    each class; classes without a held-out row are left out.

    Args:
        stream: Who holds what.
        client: The client.
        task: The task.
        labels: (n,) classes of its held-out rows.
        values: (n,) a number for each of them.
    """
    classes = labels.numpy()
    tested = np.bincount(classes, minlength=stream.classes)
    share = stream.label_counts(client, task) * (tested > 0)
    if not share.sum():
        return 0.0, 0
    sums = np.bincount(classes, weights=values.numpy(), minlength=stream.classes)
    value = (share * (sums / np.maximum(tested, 1))).sum() / share.sum()
    return float(value), int(tested[share > 0].sum())


def stream_at(site: Site) -> Stream:
    """Returns the stream of a site's population."""
    stream: Stream = site.population.stream  # type: ignore[attr-defined]
    return stream
