"""Re-Fed: each client keeps the examples with the longest gradients along a personalised model.

Li, Li, Wang, Li, Zhong and Zhang, Towards efficient replay in federated incremental learning, CVPR
2024 (arXiv 2403.05890), without released code. A client's informative model v starts at the global
model w and takes steps `v <- v - eta (gradient + q (v - w))` with q = (1 - lambda) / (2 lambda) on
what it remembers and its present share; an example's importance is the sum over passes p of 1 / p
times the norm of its own gradient. The most important ones stay, and training is FedAvg's on them
and the new examples.

Where we differ: v is trained at a stage's end by all members, which is the moment before the next
task and the last one at which the stage's examples are at hand; it starts at w each time, and a
step takes the mean gradient of a mini-batch where the paper writes a sum over examples. Passes,
batch size and eta are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fedcl.core.client import Client
from fedcl.core.coverage import Coverage, refused
from fedcl.core.federation import Federation
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add
from fedcl.core.replay.informative import BYTES, CacheImportant, Informative
from fedcl.core.replay.memory import Rehearsal, RowwiseCrossEntropy, with_present
from fedcl.core.task import Examples

__all__ = ["ReFed"]


@dataclass(frozen=True)
class State:
    """Server state: the global model."""

    params: Params


@dataclass(frozen=True)
class ReFed(Method[State]):
    """Trains on the present examples and on the important ones of earlier stages.

    Attributes:
        budget: Bytes of examples that one client may keep; 0 makes it FedAvg.
        locality: lambda in (0, 1]: near 0 the informative model stays at the global one, at 1 it
            follows the client's own examples alone.
        passes: Passes of the informative model over the client's examples.
        batch_size: Examples of one of its steps.
        lr: Its step size, at most 1 / q.
        by_stage: Keep equally many examples of each stage, the most important ones of each (ours),
            instead of the most important ones of all (the paper's).
    """

    budget: int = 200_000
    locality: float = 0.5
    passes: int = 2
    batch_size: int = 32
    lr: float = 0.01
    by_stage: bool = False

    family: ClassVar[str] = "replay"
    needs_borders: ClassVar[bool] = True
    paper: ClassVar[str] = "Li et al., CVPR 2024"
    coverage: ClassVar[Coverage] = refused(
        "the lengths of examples' gradients decide which are kept; take replay, or budget = 0 of it"
    )
    client_half: ClassVar[tuple[str, ...]] = ("mixed",)

    def __post_init__(self) -> None:
        if self.budget < 0:
            raise ValueError(f"budget must be at least 0 bytes, not {self.budget}")
        self._informative()

    def _informative(self) -> Informative:
        return Informative(self.locality, self.passes, self.batch_size, self.lr)

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what the informative model and the cache take."""
        if not self.budget:
            return Needs()
        together = min(self.batch_size, max(1, BYTES // sizes.params))
        return Needs(
            # The model, its next value and its gradient; gradients of single examples.
            client=(3 + together) * sizes.params,
            memory=min(self.budget, sizes.stages * sizes.share * sizes.example),
            everyone=True,
        )

    # Server half.

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        local = fed.local(RowwiseCrossEntropy(), data=self.mixed)
        change = fed.aggregate(local, _message(state, fed)).mean
        return replace(state, params=add(state.params, change))

    def end_task(self, state: State, fed: Federation) -> State:
        """Lets every member choose what it keeps; nothing but the model travels."""
        if self.budget:
            program = CacheImportant(self._informative(), self.budget, self.by_stage)
            fed.aggregate(program, _message(state, fed), clients=fed.members)
        return state

    # Client half.

    def mixed(self, client: Client, message: Rehearsal) -> Examples:
        """Trains on the client's own examples and those of earlier stages."""
        return with_present(client, client.state, message.separate)


def _message(state: State, fed: Federation) -> Rehearsal:
    return Rehearsal(state.params, fed.task.scenario == "task")
