"""A sample of the rows of all clients, drawn by the server from masked features (FedCBDR).

Four exchanges: row counts; masked features up; rows of singular vectors down and leverage scores
up; and the numbers of the chosen rows down. Clients say who they are, since some may not answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedcl.core.client import Client, Each, Reply
from fedcl.core.features.analytic import Regressors
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.replay.leverage import directions, draw, masked, rotation
from fedcl.core.replay.memory import present_rows
from fedcl.core.task import Examples, join


@dataclass(frozen=True)
class Asked:
    """What goes down for masked features.

    Attributes:
        params: The global model, whose features are meant.
        height: Rows of a masked matrix.
        stage: Stage of the stream: which of the clients' shared rotations is meant.
    """

    params: Params
    height: int
    stage: int


@dataclass(frozen=True)
class Directions:
    """What goes down to one client for its scores.

    Attributes:
        vectors: (height, rank) its rows of the stack's left singular vectors.
        width: Scores that it sends; zeros fill up what it has no rows for.
    """

    vectors: Tensor
    width: int


@dataclass(frozen=True)
class Chosen:
    """What goes down to one client at last: which of its rows it is to keep."""

    rows: Tensor


@dataclass(frozen=True)
class Cached:
    """What a client remembers.

    Attributes:
        rows: Rows of earlier stages, with the columns of `present_rows`, or None.
        unmask: (n, height) float64 between sending features and scores: what takes the rows of
            singular vectors back to its own rows. Empty else.
    """

    rows: Examples | None
    unmask: Tensor


@dataclass(frozen=True)
class CountRows:
    """A program: sends the client's number and how many rows it has."""

    name: str = "count"

    def __call__(self, client: Client, message: None) -> Reply:
        """Returns `client/id` and `count/rows`, int64."""
        n = torch.tensor(len(client.data), device=client.data.y.device)
        return Reply({"client/id": torch.full_like(n, client.id), "count/rows": n})


@dataclass(frozen=True)
class MaskFeatures:
    """A program: sends the masked features of the client's rows, and keeps how to unmask.

    Attributes:
        secret: Seed of the rotation that the clients share and the server is not to know.
        name: Name of the program in records and errors.
    """

    secret: int
    name: str = "features"

    def __call__(self, client: Client, message: Asked) -> Reply:
        """Returns `client/id` and `features/rows` (height, d) in the model's type."""
        x = Regressors(constant=False)(Net(client.model, message.params), client.data.x)
        shared = _shared(x.shape[1], self.secret, message.stage).to(x.device)
        own = rotation(message.height, client.seed, "own rotation").to(x.device)
        hidden, back = masked(x, message.height, own, shared)
        kind = next(iter(message.params.values())).dtype
        number = torch.tensor(client.id, device=x.device)
        rows = client.state.rows if client.state is not None else None
        return Reply(
            {"client/id": number, "features/rows": hidden.to(kind)},
            state=Cached(rows, back),
            examples=len(client.data),
        )


@dataclass(frozen=True)
class SendScores:
    """A program: undoes its own mask, and sends the leverage of each of its rows."""

    name: str = "scores"

    def __call__(self, client: Client, message: Directions) -> Reply:
        """Returns `client/id` and `scores/rows` (width,) in the type of the vectors."""
        own = (client.state.unmask @ message.vectors.double()).square().sum(1)
        scores = message.vectors.new_zeros(message.width)
        scores[: len(own)] = own
        number = torch.tensor(client.id, device=scores.device)
        nothing = own.new_zeros((0, 0))
        return Reply(
            {"client/id": number, "scores/rows": scores}, state=Cached(client.state.rows, nothing)
        )


@dataclass(frozen=True)
class KeepChosen:
    """A program: adds the chosen rows to what the client remembers; nothing goes up."""

    name: str = "keep"

    def __call__(self, client: Client, message: Chosen) -> Reply:
        """Returns an empty reply."""
        rows = present_rows(client).take(message.rows)
        if client.state is not None and client.state.rows is not None:
            rows = join([client.state.rows, rows])
        nothing = torch.zeros((0, 0), dtype=torch.float64)
        return Reply({}, state=Cached(rows if len(rows) else None, nothing))


@lru_cache(maxsize=2)
def _shared(width: int, secret: int, stage: int) -> Tensor:
    return rotation(width, secret, "shared rotation", stage)


# The server's side.


def by_client(replies: Sequence[Reply], name: str) -> dict[int, Tensor]:
    """Returns one of the replies' tensors by the client that says it sent it."""
    return {int(reply.tensors["client/id"]): reply.tensors[name] for reply in replies}


def shared_out(parts: Mapping[int, Tensor], width: int) -> Each:
    """Returns each client's `Directions`, from everybody's masked features."""
    stack = torch.cat(list(parts.values()))
    left = directions(stack, torch.finfo(stack.dtype).eps).to(stack.dtype)
    heights = [len(part) for part in parts.values()]
    own = zip(parts, left.split(heights), strict=True)
    return Each({id: Directions(vectors, width) for id, vectors in own})


def drawn(scores: Mapping[int, Tensor], samples: int, start: float) -> Each:
    """Returns each client's `Chosen`, from everybody's scores; see `draw`."""
    sizes = [len(own) for own in scores.values()]
    taken = draw(torch.cat(list(scores.values())), samples, start)
    is_taken = torch.zeros(sum(sizes), dtype=torch.bool, device=taken.device)
    is_taken[taken] = True
    own = zip(scores, is_taken.split(sizes), strict=True)
    return Each({id: Chosen(rows.nonzero().flatten()) for id, rows in own})
