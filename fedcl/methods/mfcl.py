"""MFCL: clients get a generator that the server trained without data, and rehearse what it draws.

Babakniya, Fabian, He, Soltanolkotabi and Avestimehr, A data-free approach to mitigate catastrophic
forgetting in federated class incremental learning for vision tasks, NeurIPS 2023. When a stage
begins, the server trains a generator against the global model f_old and sends both to all clients,
once. A client draws images from it by itself and minimises, with h the features of its model and
W_old the last layer of f_old,

    cross-entropy on its own examples, over the present classes (`masked`), which trains all layers
    + balance * cross-entropy on own and drawn ones, over all classes, which trains the last one
    + strength * mean over old classes of (W_old h - W_old h_old)^2 on own and drawn ones .

The generator follows labels, real data's statistics in f_old, an even spread of f_old's answers
over the classes, and smoothness of images.

Where we differ: our networks have GroupNorm, so real data's statistics are measured by the clients
at a stage's end, as a secure sum (`fedcl.core.generative.datafree` says of what, and what it
reveals: the mean image for one); of earlier stages' data the server has no more than what the last
generator draws, weighted by the number of real examples, but pixels' are remembered exactly. The
released code divides logits by 1000 in the labels' term and takes the label that f_old names; ours
are asked for, as in the paper. The generator is small and conditional. Four drawn images for each
own one, as theirs, would make rounds five times as long: `ratio` is 1. They are drawn anew in each
round, not in each step. W_old goes down in each round. In task-incremental streams every stage has
logits of its own. The passes that are booked are the networks', own and drawn examples by f_old
among them; the generator's on the client are not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fedcl.core.client import Client, Model, Reply
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.federation import Federation
from fedcl.core.generative.carried import BalancedFeatures, Carried, Held, beside_drawn, rows_drawn
from fedcl.core.generative.known import Known, known_now
from fedcl.core.generative.objective import Weights
from fedcl.core.generative.samples import EACH, MOST
from fedcl.core.generative.synthesis import trained
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add
from fedcl.core.task import Examples

__all__ = ["MFCL"]

_STAND_INS = 512  # drawn images that stand in for old data when statistics are taken


@dataclass(frozen=True)
class State:
    """Server state: the model, what that of the last stage's end knows, and what was sent."""

    params: Params
    known: Known | None = None
    carried: Carried | None = None


@dataclass(frozen=True)
class MFCL(Method[State]):
    """Clients learn new classes beside images of old ones that they draw by themselves.

    Attributes:
        strength: Factor of the distillation of features.
        balance: Factor of the last layer's cross-entropy. With both 0 it is FedAvg.
        masked: Compare only the classes of the present task in the cross-entropy of own examples.
        ratio: Drawn images for each own example in a round.
        steps: Steps of the generator at a stage's beginning.
        batch: Images of a step.
        lr: Learning rate of the generator (Adam).
        labels: Weight of its cross-entropy with the labels.
        moments: Weight of the distance from real data's statistics.
        variety: Weight of the spread over classes (w_ie).
        roughness: Weight of the smoothness (w_noise).
        width: Channels of the generator before its last convolution.
    """

    strength: float = 0.1
    balance: float = 1.0
    masked: bool = True
    ratio: float = 1.0
    steps: int = 200
    batch: int = 64
    lr: float = 3e-3
    labels: float = 1.0
    moments: float = 10.0
    variety: float = 1.0
    roughness: float = 1e-3
    width: int = 16

    family: ClassVar[str] = "generative"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = (
        "each stage: means of layers' channels and of pixels up; from stage 1 on: generator down"
    )
    paper: ClassVar[str] = "Babakniya et al., NeurIPS 2023"
    coverage: ClassVar[Coverage] = OWN  # images, as many as examples, are drawn from what is sent
    client_half: ClassVar[tuple[str, ...]] = ("receive", "mixed", "looked_at")

    def __post_init__(self) -> None:
        if not (min(self.strength, self.balance) >= 0 and self.steps >= 0):
            raise ValueError("strength, balance and steps must be at least 0")
        if not 0 < self.ratio < float("inf") or min(self.width, self.batch) < 1 or not self.lr > 0:
            raise ValueError(
                "ratio must be above 0 and finite, width and batch at least 1, lr above 0"
            )
        self._weights()

    def records(self) -> Coverage:
        """Images come beside a client's own examples: `ratio` for each of them."""
        return replace(self.coverage, drawn=self.ratio)

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what the generator, the old model and the generator's training take."""
        if not self._replays:
            return Needs(state=sizes.params)
        _, classes = sizes.layers.get("head.weight", (0, 0))
        pixels = sizes.example // sizes.item
        # Its first layer has 4 * width maps' numbers of a quarter of an image, from 128 inputs.
        drawing = sizes.item * (130 * self.width * pixels // 6 + 54 * self.width**2 + 64 * classes)
        channels = 8 * 2 * (pixels + sum(d for d, _ in sizes.layers.values()))
        kept = 2 * 6 * self.width * pixels + 2 * sum(
            sizes.rows[name] * d for name, (d, _) in sizes.layers.items()
        )
        rows, heads = int((1 + 2 * self.ratio) * sizes.share), sizes.stages * classes
        return Needs(
            state=2 * sizes.params + drawing + channels + heads,
            server=sizes.item * self.batch * kept + 4 * drawing + _STAND_INS * sizes.example,
            client=rows * (sizes.example + 2 * sizes.item * classes),
            reply=channels,
            memory=drawing + sizes.params + heads,
            everyone=True,
        )

    def init(self, params: Params) -> State:
        """Starts without a generator."""
        return State(params)

    def begin_task(self, state: State, fed: Federation) -> State:
        """Trains a generator of all classes of earlier stages, and sends it to all members."""
        known = state.known
        if known is None:
            return state
        generator = known.generator(len(state.params["head.weight"]), self.width)
        plan = self._weights(), self.steps, self.batch, self.lr, fed.seed("generator")
        drawing = trained(fed.net(state.params), known, generator, *plan)
        carried = Carried(generator, drawing, state.params, known.heads, known.classes)
        fed.aggregate(self.receive, carried, clients=fed.members)
        return replace(state, carried=carried)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort, which rehearses if there is a generator."""
        if state.carried is None:
            local, plain = fed.local(CrossEntropy(self.masked)), Model(state.params)
            return replace(state, params=add(state.params, fed.aggregate(local, plain).mean))
        loss = BalancedFeatures(self.masked, self.balance, self.strength)
        local = fed.local(loss, data=self.mixed, passes=self.looked_at)
        head = {k: v for k, v in state.carried.teacher.items() if k.startswith("head.")}
        message = Held(state.params, state.carried.heads, head)
        return replace(state, params=add(state.params, fed.aggregate(local, message).mean))

    def end_task(self, state: State, fed: Federation) -> State:
        """Measures real data's statistics in the model that will be the old one."""
        if not self._replays:
            return state
        images = None
        if state.carried is not None:
            images = state.carried.draw(_STAND_INS, fed.seed("stand-ins")).x
        return replace(state, known=known_now(fed, state.params, state.known, images))

    def synthetic(self, state: State, seed: int) -> Examples | None:
        """Returns a few images of each class, drawn by the present generator."""
        if state.carried is None:
            return None
        count = len(state.carried.classes)
        return state.carried.draw(min(EACH * count, max(MOST, count)), seed)

    @property
    def _replays(self) -> bool:
        return max(self.strength, self.balance) > 0

    def _weights(self) -> Weights:
        return Weights(self.labels, self.moments, 0.0, self.variety, self.roughness)

    # Client half.

    def receive(self, client: Client, message: Carried) -> Reply:
        """Keeps this stage's generator instead of the last one's; nothing goes up."""
        return Reply({}, state=message)

    def mixed(self, client: Client, message: Held) -> Examples:
        """Trains on the client's own examples and on drawn ones."""
        return beside_drawn(client, message.heads, self.ratio)

    def looked_at(self, client: Client, message: Held) -> int:
        """Counts the examples that the old model answers."""
        count = rows_drawn(client, message.heads, self.ratio)
        return len(client.data) + count if count else 0
