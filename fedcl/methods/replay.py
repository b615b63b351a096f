"""Experience replay: each client keeps some of its own examples and trains on them again.

Memories have a budget of bytes. Chaudhry et al., On tiny episodic memories in continual learning,
2019 (arXiv 1902.10486), run on every client. What a client keeps is one of

- `random`: equally many of each stage, drawn again from the present stage in every round (ours);
- `reservoir`: a uniform sample of all that it has met, each stage drawn once, at the client's first
  visit to it (Vitter, Random sampling with a reservoir, ACM TOMS 1985). A stage that brings a task
  back counts as a further one, its examples with it;
- `herding`: equally many of each class, those whose mean feature stays nearest to the class mean
  (Rebuffi et al., iCaRL, CVPR 2017), by the features of the client's own model after training, and
  chosen again in every round of the stage. Of an earlier stage the first ones of its order stay.
  Features have length 1 as published; their mean is not scaled again;
- `balanced`: equally many of each class at random, as GDumb's sampler (Prabhu et al., ECCV 2020)
  keeps them. GDumb trains on nothing else; here the present examples are trained on too.

By class, the places of a class that comes at several stages are shared equally by these (ours: both
papers meet each class once). Small groups leave their places to the larger ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from fedcl.core.client import Client
from fedcl.core.coverage import KEPT, Coverage, refused
from fedcl.core.features.analytic import Regressors
from fedcl.core.federation import Federation
from fedcl.core.local import no_passes
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.model import Net
from fedcl.core.params import Params, add
from fedcl.core.replay.memory import (
    Rehearsal,
    Reservoir,
    RowwiseCrossEntropy,
    draw,
    earlier_rows,
    present_rows,
    share_budget,
    with_present,
)
from fedcl.core.replay.selection import by_class, herded, room
from fedcl.core.seeds import torch_generator
from fedcl.core.task import Examples, join

__all__ = ["Replay"]


@dataclass(frozen=True)
class State:
    """Server state: the global model."""

    params: Params


@dataclass(frozen=True)
class Replay(Method[State]):
    """Trains on the present examples and on those remembered from earlier stages.

    Attributes:
        budget: Bytes of examples, with all that is kept of each, that one client may keep; 0 makes
            it FedAvg.
        selection: Which examples it keeps.
    """

    budget: int = 200_000
    selection: Literal["random", "reservoir", "herding", "balanced"] = "random"

    family: ClassVar[str] = "replay"
    paper: ClassVar[str] = "Chaudhry et al., 2019"
    client_half: ClassVar[tuple[str, ...]] = ("mixed", "remember", "sample", "looked_at")

    def __post_init__(self) -> None:
        if self.budget < 0:
            raise ValueError(f"budget must be at least 0 bytes, not {self.budget}")

    def records(self) -> Coverage:
        """Seeds and numbers decide what `random` and `reservoir` keep; the others look."""
        if self.selection in ("random", "reservoir"):
            return KEPT
        return refused(
            f'selection = "{self.selection}" chooses by what other examples hold; take "random" or '
            '"reservoir"'
        )

    def needs(self, sizes: Sizes) -> Needs:
        """Returns the memory of a client that keeps all that it meets, or as many as fit."""
        # A key or a rank is a number of eight bytes.
        example = sizes.example + 8 * (self.selection in ("reservoir", "herding"))
        kept = min(self.budget // example, sizes.stages * sizes.share)
        width = max((d for d, _ in sizes.layers.values()), default=0)
        features = 3 * 8 * sizes.share * width  # as they are, scaled, and of one class
        return Needs(client=features * (self.selection == "herding"), memory=kept * example)

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        local = fed.local(
            RowwiseCrossEntropy(),
            data=self.mixed,
            keep=self.sample if self.selection == "reservoir" else self.remember,
            passes=self.looked_at if self.selection == "herding" else no_passes,
        )
        message = Rehearsal(state.params, fed.task.scenario == "task")
        return replace(state, params=add(state.params, fed.aggregate(local, message).mean))

    def mixed(self, client: Client, message: Rehearsal) -> Examples:
        """Trains on the client's own examples and those of earlier stages."""
        kept = client.state.rows if isinstance(client.state, Reservoir) else client.state
        return with_present(client, kept, message.separate)

    def sample(self, client: Client, message: Rehearsal, params: Params) -> Any:
        """Keeps a uniform sample of all examples met so far."""
        return draw(client, client.state, present_rows(client), self.budget)

    def looked_at(self, client: Client, message: Rehearsal) -> int:
        """Passes the present examples once more, for their features."""
        return len(client.data)

    def remember(self, client: Client, message: Rehearsal, params: Params) -> Any:
        """Keeps an equal number of examples of every stage or class so far."""
        rows, old = present_rows(client), earlier_rows(client, client.state)
        if self.selection == "herding":
            rows = _ranked(rows, Net(client.model, params), self.budget)
        if old is not None:
            rows = join([old, rows])
        if self.selection == "herding":
            order = rows.extra["rank"].argsort(stable=True)
        else:
            generator = torch_generator(client.seed, "remember")
            order = torch.randperm(len(rows), generator=generator).to(rows.y.device)
        if self.selection == "random":
            kept = share_budget(rows, self.budget, order)
        else:
            kept = rows.take(by_class(rows, self.budget, order))
        return kept if len(kept) else None


def _ranked(rows: Examples, net: Net, budget: int) -> Examples:
    """Returns rows with the column `rank`, their places in the herding order of their class."""
    ranked = Examples(rows.x, rows.y, {**rows.extra, "rank": torch.zeros_like(rows.y)})
    if not len(rows):
        return ranked
    features = Regressors(constant=False)(net, rows.x)
    ranks = herded(features, rows.y, room(ranked, budget))
    return Examples(rows.x, rows.y, {**rows.extra, "rank": ranks})
