"""How often a record comes in a stream: the same row may be among a client's examples again.

Tasks that are made of the same rows (permuted or rotated inputs) and tasks that come back bring a
client rows that it has met before. It is the row, the person behind it, that is protected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache

import numpy as np

from fedcl.core.accounting.recordledger import Pattern, most_of
from fedcl.core.data.stream import Stream


def appearances(stream: Stream) -> Callable[[int], Collection[Pattern]]:
    """Returns a function of a client: how often single rows of it come, by stage.

    Only patterns that no other row of the client exceeds are told. A row that several clients hold
    is a record of each.
    """
    once = comes_once(stream)

    @cache
    def of(client: int) -> Collection[Pattern]:
        stages = stream.stages
        has = [stream.task_at(client, stage) is not None for stage in range(stages)]
        if once:
            return [tuple(int(s == own) for s in range(stages)) for own in range(stages)]
        rows = [
            stream.rows_at(client, s) if has[s] else np.zeros(0, np.int64) for s in range(stages)
        ]
        found, places = np.unique(np.concatenate(rows), return_inverse=True)
        table = np.zeros((len(found), stages), dtype=np.int64)
        stage = np.repeat(np.arange(stages), [len(own) for own in rows])
        np.add.at(table, (places.ravel(), stage), 1)
        return most_of(tuple(int(m) for m in row) for row in np.unique(table, axis=0))

    return of


def comes_once(stream: Stream) -> bool:
    """Returns whether no client can meet a row again: tasks share none, and none comes back."""
    rows = np.concatenate([task.train for task in stream.tasks])
    return len(np.unique(rows)) == len(rows) and bool(stream.order.shared)
