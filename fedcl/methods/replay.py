"""Experience replay: each client keeps some of its own examples and trains on them again.

Memories have a budget of bytes. Chaudhry et al., On tiny episodic memories in continual learning,
2019 (arXiv 1902.10486), run on every client.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from fedcl.core.client import Client
from fedcl.core.federation import Federation
from fedcl.core.memory import (
    Rehearsal,
    RowwiseCrossEntropy,
    present_rows,
    share_budget,
    with_present,
)
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add
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
        budget: Bytes of examples that one client may keep; 0 makes it FedAvg.
    """

    budget: int = 200_000

    family: ClassVar[str] = "replay"
    paper: ClassVar[str] = "Chaudhry et al., 2019"
    client_half: ClassVar[tuple[str, ...]] = ("mixed", "remember")

    def __post_init__(self) -> None:
        if self.budget < 0:
            raise ValueError(f"budget must be at least 0 bytes, not {self.budget}")

    def needs(self, sizes: Sizes) -> Needs:
        """Returns the memory of a client that keeps all that it meets, or its budget."""
        return Needs(memory=min(self.budget, sizes.stages * sizes.share * sizes.example))

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        local = fed.local(RowwiseCrossEntropy(), data=self.mixed, keep=self.remember)
        message = Rehearsal(state.params, fed.task.scenario == "task")
        return replace(state, params=add(state.params, fed.aggregate(local, message).mean))

    def mixed(self, client: Client, message: Rehearsal) -> Examples:
        """Trains on the client's own examples and those of earlier stages."""
        return with_present(client, client.state, message.separate)

    def remember(self, client: Client, message: Rehearsal, params: Params) -> Any:
        """Keeps an equal number of examples of every stage so far, chosen at random."""
        rows = present_rows(client)
        if client.state is not None:
            old = client.state.take(
                torch.nonzero(client.state.extra["stage"] != client.task.index).flatten()
            )
            rows = join([old, rows])
        order = torch.randperm(len(rows), generator=torch_generator(client.seed, "remember")).to(
            rows.y.device
        )
        kept = share_budget(rows, self.budget, order)
        return kept if len(kept) else None
