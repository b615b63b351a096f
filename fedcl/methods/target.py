"""TARGET: the server draws images of old classes from the global model, and clients rehearse them.

Zhang, Chen, Zhuang and Lyu, TARGET: federated class-continual learning via exemplar-free
distillation, ICCV 2023. Between stages the server trains a generator against the global model,
draws images of all classes seen so far and sends them to all clients, once a stage. With f_old the
global model at the last stage's end, a client then minimises

    cross-entropy on its own examples, over the present classes (`masked`)
    + strength * T^2 KL(f_old || f) on as many synthetic images, over the old classes .

`fedcl.core.generative.synthesis` makes the images. As in the paper the generator follows the
labels, real data's statistics in f_old, and the disagreement of f_old with a student that learns
along.

Where we differ: our networks have GroupNorm, so real data's statistics are measured by the clients
at a stage's end, as a secure sum (`fedcl.core.generative.datafree` says of what, and what it
reveals: the mean image for one); of earlier stages' data the server has no more than their images'
statistics in the present model, weighted by the number of real examples, but pixels' are remembered
exactly. Images are made when the next stage begins, so that none are made in vain after the last
one. They travel at a byte a number with f_old's answers, so that f_old itself need not; a client
that was not reached then trains without. A client draws its synthetic images of a round, `ratio`
for each own example, from all of them, and both kinds share batches whose mean is the sum above;
the released code pairs batches instead. The generator is small, is one for all rounds, and is
trained by Adam on fresh noise, without the released code's MAML and noise of its own. The
disagreement counts where teacher and student name different classes, as the paper says; the code
masks these. In task- incremental streams each earlier stage's head is compared by itself. Costs
count what clients do: the server's work is in the run's seconds alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fedcl.core.client import Client, Model, Reply
from fedcl.core.coverage import OWN, Coverage
from fedcl.core.federation import Federation
from fedcl.core.generative.known import Shipping
from fedcl.core.generative.objective import Weights
from fedcl.core.generative.pictures import Rehearsed, Shipment, beside
from fedcl.core.generative.shipping import measured, shipped, shipping_needs, some_of
from fedcl.core.generative.synthesis import Recipe
from fedcl.core.local import CrossEntropy
from fedcl.core.losses.distillation import Taught, check_distillation
from fedcl.core.method import Method, Needs, Sizes
from fedcl.core.params import Params, add
from fedcl.core.task import Examples

__all__ = ["Target"]


@dataclass(frozen=True)
class Target(Method[Shipping]):
    """Clients distil the last model on synthetic images of old classes while they learn new ones.

    Attributes:
        strength: Factor of the distillation; 0 makes it FedAvg, and so does `images = 0`.
        temperature: T.
        masked: Compare only the classes of the present task in the cross-entropy.
        ratio: Synthetic images for each own example in a round.
        images: Synthetic images of a stage.
        rounds: Rounds of making them, of which the first keeps none and starts no student.
        steps: Steps of the generator in each.
        batch: Images of a step.
        lr: Learning rate of the generator.
        labels: Weight of its cross-entropy with the labels.
        moments: Weight of the distance from real data's statistics.
        adversarial: Weight of the student's disagreement.
        student_lr: Learning rate of the student (0.2 in the released code: too much for an mlp).
        width: Channels of the generator before its last convolution.
    """

    strength: float = 1.0
    temperature: float = 2.0
    masked: bool = True
    ratio: float = 1.0
    images: int = 512
    rounds: int = 5
    steps: int = 40
    batch: int = 64
    lr: float = 3e-3
    labels: float = 0.5
    moments: float = 10.0
    adversarial: float = 1.0
    student_lr: float = 0.01
    width: int = 16

    family: ClassVar[str] = "generative"
    needs_borders: ClassVar[bool] = True
    travels: ClassVar[str] = (
        "each stage: means of layers' channels and of pixels up; from stage 1 on: images down"
    )
    paper: ClassVar[str] = "Zhang et al., ICCV 2023"
    coverage: ClassVar[Coverage] = OWN  # images, as many as examples, come from the server
    client_half: ClassVar[tuple[str, ...]] = ("receive", "mixed")

    def __post_init__(self) -> None:
        check_distillation(self.strength, self.temperature)
        if not 0 < self.ratio < float("inf") or self.width < 1:
            raise ValueError("ratio must be above 0 and finite, and width at least 1")
        self._recipe()

    def records(self) -> Coverage:
        """Images come beside a client's own examples: `ratio` for each of them."""
        return replace(self.coverage, drawn=self.ratio)

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what images, the student and the generator's training take."""
        if not self._replays:
            return Needs(state=sizes.params)
        return shipping_needs(sizes, self._recipe(), self.width, self.ratio, features=False)

    def init(self, params: Params) -> Shipping:
        """Remembers the first parameters, from which students start."""
        return Shipping(params, params)

    def begin_task(self, state: Shipping, fed: Federation) -> Shipping:
        """Makes images of all classes of earlier stages, and sends them to all members."""
        return shipped(state, fed, self._recipe(), self.width, self.receive)

    def round(self, state: Shipping, fed: Federation) -> Shipping:
        """Adds the mean change of the cohort, which rehearses if there are images."""
        if state.pictures is None or state.known is None:
            local, plain = fed.local(CrossEntropy(self.masked)), Model(state.params)
            return replace(state, params=add(state.params, fed.aggregate(local, plain).mean))
        local = fed.local(Rehearsed(self.masked, self.strength, self.temperature), data=self.mixed)
        change = fed.aggregate(local, Taught(state.params, state.known.heads)).mean
        return replace(state, params=add(state.params, change))

    def end_task(self, state: Shipping, fed: Federation) -> Shipping:
        """Measures real data's statistics in the model that will be the teacher."""
        return measured(state, fed) if self._replays else state

    def synthetic(self, state: Shipping, seed: int) -> Examples | None:
        """Returns some of the present stage's images."""
        return some_of(state, seed)

    @property
    def _replays(self) -> bool:
        return self.strength > 0 and self.images > 0

    def _recipe(self) -> Recipe:
        return Recipe(
            images=self.images,
            rounds=self.rounds,
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            weights=Weights(self.labels, self.moments, self.adversarial),
            student_steps=self.steps,
            student_lr=self.student_lr,
        )

    # Client half.

    def receive(self, client: Client, message: Shipment) -> Reply:
        """Keeps the images of this stage instead of the last one's; nothing goes up."""
        return Reply({}, state=message)

    def mixed(self, client: Client, message: Taught) -> Examples:
        """Trains on the client's own examples and synthetic images, drawn anew each round."""
        return beside(client, message.heads, self.ratio)
