"""Where a federation forgets: each round's loss on an old task, split exactly into its two halves.

For client k, round r and task j, with G the global model and L_k the client's model after training:

    G[r-1, j] - G[r, j]  =  (G[r-1, j] - L_k[r, j])  +  (L_k[r, j] - G[r, j])
       total                     local update                aggregation

A pure function of a run's long table. Accuracies are numbers of right answers over numbers of
examples, so they are kept as fractions: sums over rounds telescope to the last digit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from fedcl import metrics
from fedcl.evaluations import cell

PAYLOAD = "decomposition"  # what training the sampled clients once more is booked under


class Loss(NamedTuple):
    """What was lost on one old task: in a round, or in several that were added up.

    Attributes:
        local_update: Accuracy lost in local training.
        aggregation: Accuracy lost after it; below 0 where aggregation gave back.
    """

    local_update: Fraction
    aggregation: Fraction

    @property
    def total(self) -> Fraction:
        """Accuracy that the global model lost."""
        return self.local_update + self.aggregation


Losses = dict[int, dict[int, Loss]]  # by task and round


def client_losses(
    rows: Iterable[Mapping[str, Any]], *, split: str = "test"
) -> dict[tuple[int, int, int], Loss]:
    """Returns the losses by task, round and client, of all clients whose local model has rows.

    Args:
        rows: Rows with the columns of evaluations.csv, as text or as numbers; only accuracies of
            local models, and of the global one on the union test set, count.
        split: `test`, `validation` or `train`.

    Raises:
        ValueError: A column is missing, a value is no number of right answers over n, one
            evaluation stands there twice, or the global model lacks a row before or after a round.
    """
    shared: dict[tuple[int, ...], Mapping[str, Any]] = {}  # by task and round
    local: dict[tuple[int, ...], Mapping[str, Any]] = {}  # by task, round and client
    for row in rows:
        if cell(row, "metric") != "accuracy" or cell(row, "split") != split:
            continue
        if cell(row, "value") in (None, ""):
            continue  # null: not evaluated
        model, owner = cell(row, "model"), cell(row, "client")
        place = int(cell(row, "task")), int(cell(row, "round"))
        if model == "global" and owner in (None, ""):
            _put(shared, place, row)
        elif model == "local":
            _put(local, (*place, int(owner)), row)
    found = {}
    for (task, number, client), row in sorted(local.items(), key=itemgetter(0)):
        try:
            around = [_accuracy(shared[task, at]) for at in (number - 1, number)]
        except KeyError as missing:
            raise ValueError(
                f"client {client}'s local model was evaluated on task {task} in round {number}, "
                f"the global one not in round {missing.args[0][1]}"
            ) from None
        halves = np.array(around), np.array([_accuracy(row)])
        found[task, number, client] = Loss(
            metrics.local_update_loss(*halves)[0], metrics.aggregation_loss(*halves)[0]
        )
    return found


def loss_decomposition(rows: Iterable[Mapping[str, Any]], *, split: str = "test") -> Losses:
    """Returns the losses by task and round: means over the clients that were sampled in the round.

    Arguments and errors are those of `client_losses`.
    """
    cohorts: dict[tuple[int, int], list[Loss]] = defaultdict(list)
    for (task, number, _), loss in client_losses(rows, split=split).items():
        cohorts[task, number].append(loss)
    found: Losses = defaultdict(dict)
    for (task, number), losses in cohorts.items():
        found[task][number] = mean(losses)
    return dict(found)


def by_task(losses: Losses) -> dict[int, Loss]:
    """Returns each task's losses added up over its rounds.

    With every round decomposed, its total is what the global model lost since the task's stage.
    """
    return {task: total(rounds.values()) for task, rounds in losses.items()}


def total(losses: Iterable[Loss]) -> Loss:
    """Returns the sum of losses."""
    parts = list(losses)
    return Loss(
        sum((loss.local_update for loss in parts), Fraction(0)),
        sum((loss.aggregation for loss in parts), Fraction(0)),
    )


def mean(losses: Iterable[Loss]) -> Loss:
    """Returns the mean of losses, of at least one."""
    parts = list(losses)
    return Loss(*(part / len(parts) for part in total(parts)))


def _put(rows: dict[tuple[int, ...], Any], place: tuple[int, ...], row: Mapping[str, Any]) -> None:
    if place in rows:
        raise ValueError(f"two accuracies of one model on task {place[0]} in round {place[1]}")
    rows[place] = row


def _accuracy(row: Mapping[str, Any]) -> Fraction:
    value, n = float(cell(row, "value")), int(cell(row, "n"))
    right = round(value * n)
    if n < 1 or right / n != value:
        raise ValueError(f"{value!r} is no number of right answers among {n} examples")
    return Fraction(right, n)
