"""Tiny runs that are decomposed, what they leave, and methods that train in odd ways."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import torch

from fedcl.core.client import Client, Model
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.params import Params, add
from fedcl.core.task import Examples
from fedcl.record import Record
from tests.plugins import Averaging, State
from tests.tiny import rows

# Three tasks: one is old in stage 1, two in stage 2.
ON: dict[str, Any] = {"stream.tasks": 3, "training.rounds": 3, "evaluation.decompose": 2}
PERSONAL = "tests.plugins:Personal"
KEYS = (
    "local_update_loss",
    "aggregation_loss",
    "local_update_loss_by_task",
    "aggregation_loss_by_task",
)


def local_rows(record: Record) -> list[dict[str, Any]]:
    """Returns the evaluations of local models."""
    return [dict(row) for row in record.evaluations if row["model"] == "local"]


def right(value: float, n: int) -> Fraction:
    """Returns an accuracy as the number of right answers over n, which it must be."""
    assert round(value * n) / n == value
    return Fraction(round(value * n), n)


def union(record: Record) -> dict[tuple[int, int], Fraction]:
    """Returns the global model's accuracies on test sets, by task and round."""
    found = rows(record, split="test", model="global")
    return {(row["task"], row["round"]): right(row["value"], row["n"]) for row in found}


@dataclass(frozen=True)
class HeadOnly(Averaging):
    """Sends and trains the head alone, over random features."""

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort's heads."""
        head = {name: value for name, value in state.params.items() if "head" in name}
        change = fed.aggregate(fed.local(CrossEntropy()), Model(head)).mean
        return replace(state, params={**state.params, **add(head, change)})


@dataclass(frozen=True)
class Learner(Averaging):
    """A client trains on one example in its first round, and on one more in each further one."""

    client_half: ClassVar[tuple[str, ...]] = ("some", "count")

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        local = fed.local(CrossEntropy(), data=self.some, keep=self.count)
        change = fed.aggregate(local, Model(state.params)).mean
        return replace(state, params=add(state.params, change))

    def some(self, client: Client, message: Model) -> Examples:
        """Takes as many of the client's examples as its rounds."""
        return client.data.take(torch.arange(min(1 + (client.state or 0), len(client.data))))

    def count(self, client: Client, message: Model, params: Params) -> int:
        """Remembers the number of rounds."""
        return 1 + (client.state or 0)
