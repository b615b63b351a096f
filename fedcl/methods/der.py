"""Dark experience replay: what a client remembers comes with the logits that its model once gave.

Buzzega et al., Dark Experience for General Continual Learning, NeurIPS 2020, run on every client.
Examples are kept by a reservoir. On present ones the loss is cross-entropy; on remembered ones
`alpha` times the mean squared difference to the stored logits of all classes, plus `beta` times
cross-entropy (DER++; DER has beta = 0) over the logits that `replay` compares. We differ in that

- the paper draws further batches from the memory for each step. Here n present and m remembered
  examples are visited in one permutation: against the present ones, alpha and beta weigh m / n of
  what they do there, and an epoch has (n + m) / n times the steps;
- the paper draws examples anew in every epoch, and stores the logits of that moment. Here a client
  draws each stage once, at its first visit. The logits that it gave then, after local training,
  stay (`first`), or those of each further visit to the stage replace them (`last`);
- examples of the present stage are compared with stored logits from the next stage on.

Logits of classes not met when an example was stored are compared too, as in the paper: nothing had
trained them, and to stay where they were keeps new classes from claiming old examples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.client import Client
from fedcl.core.coverage import KEPT, Coverage
from fedcl.core.features.analytic import ROWS
from fedcl.core.federation import Federation
from fedcl.core.local import masked_logits
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.model import Net
from fedcl.core.params import Params, add
from fedcl.core.replay.memory import (
    Rehearsal,
    Reservoir,
    draw,
    earlier_rows,
    present_rows,
    with_present,
)
from fedcl.core.task import ClientTask, Examples

__all__ = ["Der"]


@dataclass(frozen=True)
class State:
    """Server state: the global model."""

    params: Params


@dataclass(frozen=True)
class DarkExperience:
    """Cross-entropy on present examples, `alpha` MSE + `beta` cross-entropy on remembered ones."""

    rowwise: ClassVar[bool] = True

    alpha: float
    beta: float

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: object) -> Tensor:
        """Returns (n,) losses."""
        logits, old = net(batch.x), batch.extra["stage"] != task.index
        allowed = masked_logits(logits, batch.extra["head"])
        entropy = F.cross_entropy(allowed, batch.y, reduction="none")
        # Masked before it is squared: present examples have no stored logits to be far from.
        error = (logits - batch.extra["logits"]).masked_fill(~old[:, None], 0.0).square().mean(1)
        return torch.where(old, self.alpha * error + self.beta * entropy, entropy)


@dataclass(frozen=True)
class Der(Method[State]):
    """Trains on present examples, and keeps to what was once said of those remembered.

    Attributes:
        budget: Bytes of examples, with all that is kept of each, that one client may keep; 0 makes
            it FedAvg.
        alpha: Weight of the squared difference to the stored logits; where training diverges, it is
            too high for the learning rate.
        beta: Weight of cross-entropy on remembered examples.
        logits: Whether an example keeps the logits of the first or of the last visit to its stage.
    """

    budget: int = 200_000
    alpha: float = 1.0
    beta: float = 0.0
    logits: Literal["first", "last"] = "last"

    family: ClassVar[str] = "replay"
    paper: ClassVar[str] = "Buzzega et al., NeurIPS 2020"
    coverage: ClassVar[Coverage] = KEPT  # keys decide; logits are what a released model says
    client_half: ClassVar[tuple[str, ...]] = ("mixed", "remember", "looked_at")

    def __post_init__(self) -> None:
        for name in ("budget", "alpha", "beta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    def needs(self, sizes: Sizes) -> Needs:
        """Returns the memory of a client that keeps all that it meets, or as many as fit."""
        heads = [out for k, (_, out) in sizes.layers.items() if f".{k}".endswith(".head.weight")]
        example = sizes.example + 8 + sizes.item * sum(heads)
        return Needs(memory=min(self.budget // example, sizes.stages * sizes.share) * example)

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        loss = DarkExperience(self.alpha, self.beta)
        local = fed.local(loss, data=self.mixed, keep=self.remember, passes=self.looked_at)
        message = Rehearsal(state.params, fed.task.scenario == "task")
        return replace(state, params=add(state.params, fed.aggregate(local, message).mean))

    def mixed(self, client: Client, message: Rehearsal) -> Examples:
        """Trains on the client's own examples and those of earlier stages."""
        kept = None if client.state is None else client.state.rows
        rows, old = with_present(client, kept, message.separate), earlier_rows(client, kept)
        logits = _no_logits(client, message)
        if old is not None:
            logits = torch.cat([logits, old.extra["logits"]])
        return Examples(rows.x, rows.y, {**rows.extra, "logits": logits})

    def remember(self, client: Client, message: Rehearsal, params: Params) -> Any:
        """Keeps a uniform sample of all examples met so far, with the logits of the model now."""
        reservoir, new = self._drawn(client, message)
        if reservoir is None or not len(new):
            return reservoir
        rows, net = reservoir.rows, Net(client.model, params)
        with torch.no_grad():
            found = torch.cat([net(x) for x in rows.x.index_select(0, new).split(ROWS)])
        logits = rows.extra["logits"].index_copy(0, new, found)
        return replace(reservoir, rows=replace(rows, extra={**rows.extra, "logits": logits}))

    def looked_at(self, client: Client, message: Rehearsal) -> int:
        """Passes those examples whose logits are stored."""
        return len(self._drawn(client, message)[1])

    def _drawn(self, client: Client, message: Rehearsal) -> tuple[Reservoir | None, Tensor]:
        """Returns the sample with the present stage in it, and the places that need logits."""
        own = present_rows(client)
        own = replace(own, extra={**own.extra, "logits": _no_logits(client, message)})
        reservoir = draw(client, client.state, own, self.budget)
        if reservoir is None or (reservoir is client.state and self.logits == "first"):
            return reservoir, client.data.y[:0]
        new = reservoir.rows.extra["stage"] == client.task.index
        return reservoir, torch.nonzero(new).flatten()


def _no_logits(client: Client, message: Rehearsal) -> Tensor:
    like = next(iter(message.params.values()))
    return like.new_zeros((len(client.data), len(client.task.head)))
