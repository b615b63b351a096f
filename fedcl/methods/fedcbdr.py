"""FedCBDR: the server draws from all clients' examples by leverage, and temperatures balance tasks.

Qi et al., Class-wise balancing data replay for federated class-incremental learning, NeurIPS 2025
(arXiv 2507.07712). At a stage's end each client sends X' = P X Q: its features X by the global
model, P its own secret rotation, Q one that clients share. The server sends singular vectors of the
stack back; clients undo P and send leverage scores; the server draws by them, and clients keep what
it drew. From the second stage on logits of old and new classes have temperatures of their own, and
replayed and new examples weights.

What this reveals: X'^T X' = Q^T (X^T X) Q, so all singular values of X, and X^T X itself to whoever
knows Q, as every client does; how many rows each client has; and each row's score. Secure
aggregation cannot hide single replies. Q comes from the option `secret`, which only the client half
uses: a simulated secret.

Where we differ: of more rows than features only the R of X = Z R is mixed, which gives the same
scores without a (rows, rows) matrix; the draw is systematic, so that no row comes twice (theirs is
independent; its weights 1 / sqrt(n p) are in no loss). Theirs is called class-aware, yet no label
enters: classes come in as directions in feature space, here too. Old classes are those not of the
present task: none in the domain-incremental scenario.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from fedcl.core.client import Client
from fedcl.core.coverage import Coverage, refused
from fedcl.core.features.analytic import head_of
from fedcl.core.federation import Federation
from fedcl.core.losses.tempered import TemperedCrossEntropy, weighed
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add
from fedcl.core.replay.globalsample import (
    Asked,
    CountRows,
    KeepChosen,
    MaskFeatures,
    SendScores,
    by_client,
    drawn,
    shared_out,
)
from fedcl.core.replay.memory import Rehearsal, with_present
from fedcl.core.seeds import torch_generator
from fedcl.core.task import Examples

__all__ = ["FedCBDR"]


@dataclass(frozen=True)
class State:
    """Server state: the global model."""

    params: Params


@dataclass(frozen=True)
class FedCBDR(Method[State]):
    """Trains on the present examples and on those that the server drew at earlier stages' ends.

    Attributes:
        samples: Examples of a stage that all clients together keep, for good; 0 keeps none.
        temperature_old: Divides logits of old classes.
        temperature_new: Divides logits of the present task's classes.
        weight_old: Weight of replayed examples.
        weight_new: Weight of present examples.
        means: `separate` adds the mean over replayed examples and that over present ones, as the
            paper's formula has it, client by client; `joint` takes one mean over all.
        most: Bound on how much more than in one mean an example may weigh in two (ours).
        secret: Seed of the rotation that the clients share.
    """

    samples: int = 250
    temperature_old: float = 0.9
    temperature_new: float = 1.1
    weight_old: float = 1.1
    weight_new: float = 0.9
    means: Literal["joint", "separate"] = "separate"
    most: float = 10.0
    secret: int = 0

    family: ClassVar[str] = "replay"
    exposure: ClassVar[Literal["mean", "replies"]] = "replies"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = "each stage: masked features, counts, scores up; singular vectors down"
    paper: ClassVar[str] = "Qi et al., NeurIPS 2025"
    coverage: ClassVar[Coverage] = refused(
        "clients send features and scores of single examples, which decide what is "
        "kept; take replay"
    )
    client_half: ClassVar[tuple[str, ...]] = ("mixed",)

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"samples must be at least 0, not {self.samples}")
        for name in ("temperature_old", "temperature_new", "weight_old", "weight_new", "most"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what features, singular vectors and the kept rows take."""
        if not self.samples:
            return Needs()
        # Features are the inputs of the last layer; the stack is as high as all shares if even.
        d = list(sizes.layers.values())[-1][0] if sizes.layers else 0
        height, rows = min(d, sizes.share), -(-sizes.examples // sizes.stages)
        own = 8 * sizes.share * height
        return Needs(
            server=4 * 8 * rows * d,
            client=3 * own + 3 * 8 * (height * height + d * d),
            reply=sizes.item * max(height * d, sizes.share),
            memory=min(self.samples, sizes.share) * sizes.stages * sizes.example + own,
            everyone=True,
        )

    # Server half.

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        loss = TemperedCrossEntropy(self.temperature_old, self.temperature_new)
        message = Rehearsal(state.params, fed.task.scenario == "task")
        change = fed.aggregate(fed.local(loss, data=self.mixed), message).mean
        return replace(state, params=add(state.params, change))

    def end_task(self, state: State, fed: Federation) -> State:
        """Draws the stage's examples that stay, over all members."""
        if not self.samples:
            return state
        counts = by_client(fed.collect(CountRows(), None, fed.members), "count/rows")
        width = int(max(counts.values()))
        asked = Asked(state.params, min(width, head_of(fed.model).in_features), fed.task.index)
        features = fed.collect(MaskFeatures(self.secret), asked, tuple(counts))
        stack = by_client(features, "features/rows")
        replies = fed.collect(SendScores(), shared_out(stack, width), tuple(stack))
        scores = by_client(replies, "scores/rows")
        generator = torch_generator(fed.seed("sample"))
        start = float(torch.rand((), generator=generator, dtype=torch.float64))
        fed.aggregate(KeepChosen(), drawn(scores, self.samples, start), tuple(scores))
        return state

    # Client half.

    def mixed(self, client: Client, message: Rehearsal) -> Examples:
        """Trains on its own examples and those drawn from earlier stages, with weights."""
        kept = client.state.rows if client.state is not None else None
        rows = with_present(client, kept, message.separate)
        weights = self.weight_old, self.weight_new
        return weighed(rows, client.task, *weights, self.means == "separate", self.most)
