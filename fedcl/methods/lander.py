"""LANDER: each class has an anchor that features, real and generated, are bound to.

Tran, Le, Le, Harandi, Tran and Phung, Text-enhanced data-free approach for federated
class-incremental learning, CVPR 2024 (arXiv 2403.14101). An anchor e_y comes from a text encoder's
embedding of the class's name. With features h and B(h, y) = max(0, mean (h - e_y)^2 - radius),
clients minimise in the first stage cross-entropy + bounding * B, and later, on synthetic images
that the server ships as in TARGET, with f_old the global model at the last stage's end,

    current * (cross-entropy over the present classes (`masked`) + bounding * B)
    + previous * (T^2 KL(f_old || f) + features * mean (h_old - h)^2)  on the images;

with a = log2(C / 2 + 1) and b = sqrt(C_old / C), for C classes seen and C_old of them old, current
is multiplied by (1 + 1 / a) / b and previous by a b (`growing`). The server's generator gets the
anchors' directions as labels, and `anchored` * B is among its losses.

Where we differ: a file gives the classes' vectors (`vectors`); without one they are rows of a
random orthogonal frame, which means nothing but keeps classes apart. Anchors have no negative
numbers, since features behind a ReLU cannot have any (`fedcl.core.losses.anchors`). Statistics of
real data, which the authors' BatchNorm layers have, are measured as a secure sum at a stage's end
(`fedcl.core.generative.datafree` says what that reveals). The images come with f_old's answers and
features, so that f_old need not be sent. The generator is one for all rounds, where the authors
start its first layer anew in each. The last model is kept; the released code keeps the one of the
round with the lowest training loss. Costs count what clients do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from fedcl.core.client import Client, Model, Reply
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.federation import Federation
from fedcl.core.generative.known import Shipping
from fedcl.core.generative.objective import Weights
from fedcl.core.generative.pictures import Shipment, beside
from fedcl.core.generative.shipping import measured, shipped, shipping_needs, some_of
from fedcl.core.generative.synthesis import Recipe
from fedcl.core.losses.anchors import Anchors, Bounded
from fedcl.core.losses.distillation import Taught
from fedcl.core.losses.prototypes import ClassVectors
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add
from fedcl.core.task import Examples

__all__ = ["Lander"]


@dataclass(frozen=True)
class Lander(Method[Shipping]):
    """Clients bind features to their classes' anchors, and rehearse synthetic images of old ones.

    Attributes:
        bounding: Factor of B on clients (5 in the paper, whose layer has 512 features; B is a mean
            over features, so the narrower the layer, the harder it pulls at each).
        radius: Of B: squared distance a number that is near enough.
        vectors: `orthogonal`, or an .npz or .safetensors file with one (classes, k) array.
        vectors_seed: Seed of the orthogonal frame, or of the projection of k to the features.
        size: Root mean square of an anchor's numbers (theirs is that of the encoder's embeddings).
        current: Factor of the present task's losses from stage 1 on.
        previous: Factor of the images' losses; 0 makes none, and so does `images = 0`.
        growing: Whether both follow the number of old classes, as above.
        features: Factor of the features' distance.
        temperature: T.
        masked: Compare only the classes of the present task in the cross-entropy.
        ratio: Synthetic images for each own example in a round.
        images: Synthetic images of a stage.
        rounds: Rounds of making them, of which the first keeps none and starts no student.
        steps: Steps of the generator in each.
        anchored: Weight of B; 0 leaves the generator without anchors.
        width: Channels of the generator before its last convolution.
    """

    bounding: float = 0.5
    radius: float = 0.015
    vectors: str = "orthogonal"
    vectors_seed: int = 0
    size: float = 0.3
    current: float = 0.2
    previous: float = 0.4
    growing: bool = True
    features: float = 1.0
    temperature: float = 2.0
    masked: bool = True
    ratio: float = 1.0
    images: int = 512
    rounds: int = 5
    steps: int = 40
    anchored: float = 5.0
    width: int = 16

    family: ClassVar[str] = "generative"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = (
        "each stage: means of layers' channels and of pixels up; from stage 1 on: images down"
    )
    paper: ClassVar[str] = "Tran et al., CVPR 2024"
    coverage: ClassVar[Coverage] = OWN  # images, as many as examples, come from the server
    client_half: ClassVar[tuple[str, ...]] = ("receive", "mixed")

    def __post_init__(self) -> None:
        for name in ("bounding", "current", "previous", "features"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite")
        if not min(self.ratio, self.temperature) > 0 or self.width < 1:
            raise ValueError("ratio and temperature must be above 0, and width at least 1")
        self._recipe()

    def records(self) -> Coverage:
        """Images come beside a client's own examples: `ratio` for each of them."""
        return replace(self.coverage, drawn=self.ratio)

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what images, the student and the generator's training take."""
        if not self._replays:
            return Needs(state=sizes.params)
        return shipping_needs(sizes, self._recipe(), self.width, self.ratio, self.features > 0)

    def init(self, params: Params) -> Shipping:
        """Remembers the first parameters, from which students start."""
        return Shipping(params, params)

    def begin_task(self, state: Shipping, fed: Federation) -> Shipping:
        """Makes images of all classes of earlier stages, and sends them to all members."""
        features = self.features > 0
        return shipped(state, fed, self._recipe(), self.width, self.receive, features)

    def round(self, state: Shipping, fed: Federation) -> Shipping:
        """Adds the mean change of the cohort, which rehearses if there are images."""
        loss = Bounded(self._anchors(), self.masked, self.bounding)
        if state.pictures is None or state.known is None:
            change = fed.aggregate(fed.local(loss), Model(state.params)).mean
            return replace(state, params=add(state.params, change))
        current, previous = self._factors(len(state.known.classes), len(fed.task.seen))
        loss = replace(
            loss,
            current=current,
            previous=previous,
            features=self.features,
            temperature=self.temperature,
        )
        local, message = fed.local(loss, data=self.mixed), Taught(state.params, state.known.heads)
        return replace(state, params=add(state.params, fed.aggregate(local, message).mean))

    def end_task(self, state: Shipping, fed: Federation) -> Shipping:
        """Measures real data's statistics in the model that will be the teacher."""
        return measured(state, fed) if self._replays else state

    def synthetic(self, state: Shipping, seed: int) -> Examples | None:
        """Returns some of the present stage's images."""
        return some_of(state, seed)

    @property
    def _replays(self) -> bool:
        return self.previous > 0 and self.images > 0

    def _factors(self, old: int, seen: int) -> tuple[float, float]:
        if not self.growing:
            return self.current, self.previous
        a, b = math.log2(seen / 2 + 1), math.sqrt(old / seen)
        return self.current * (1 + 1 / a) / b, self.previous * a * b

    def _anchors(self) -> Anchors:
        return Anchors(ClassVectors(self.vectors, self.vectors_seed), self.size, self.radius)

    def _recipe(self) -> Recipe:
        return Recipe(
            images=self.images,
            rounds=self.rounds,
            steps=self.steps,
            weights=Weights(adversarial=1.0, anchors=self.anchored),
            anchors=self._anchors() if self.anchored else None,
            student_steps=self.steps,
        )

    # Client half.

    def receive(self, client: Client, message: Shipment) -> Reply:
        """Keeps the images of this stage instead of the last one's; nothing goes up."""
        return Reply({}, state=message)

    def mixed(self, client: Client, message: Taught) -> Examples:
        """Trains on the client's own examples and synthetic images, drawn anew each round."""
        width = message.params["head.weight"].shape[1] if self.features else 0
        return beside(client, message.heads, self.ratio, width)
