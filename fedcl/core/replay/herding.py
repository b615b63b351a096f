"""A memory of equally many examples of each class, chosen by herding (iCaRL)."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedcl.core.client import Client
from fedcl.core.features.analytic import Regressors
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.replay.memory import earlier_rows, present_rows
from fedcl.core.replay.selection import by_class, herded, room
from fedcl.core.task import Examples, join


def herded_memory(client: Client, params: Params, budget: int) -> Examples | None:
    """Returns what a client keeps after a visit to a stage; None without room.

    Of the present stage these are the examples whose mean feature stays nearest to that of their
    class, by the features of a model; of an earlier stage the first ones in the order of then.

    Args:
        client: The client; its state is what it kept before, or None.
        params: The model.
        budget: Bytes of all columns of what is kept: those of `present_rows`, and `rank` (n,).
    """
    rows, old = present_rows(client), earlier_rows(client, client.state)
    rows = replace(rows, extra={**rows.extra, "rank": torch.zeros_like(rows.y)})
    if len(rows):
        features = Regressors(constant=False)(Net(client.model, params), rows.x)
        ranks = herded(features, rows.y, room(rows, budget))
        rows = replace(rows, extra={**rows.extra, "rank": ranks})
    if old is not None:
        rows = join([old, rows])
    kept = rows.take(by_class(rows, budget, rows.extra["rank"].argsort(stable=True)))
    return kept if len(kept) else None
