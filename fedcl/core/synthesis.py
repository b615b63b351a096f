"""Images for replay, drawn in rounds from a generator that chases a student.

The loop of TARGET (Zhang et al., ICCV 2023) and of data-free distillation before it: in each round
the generator takes some steps against teacher and student, images are drawn from it, and the
student learns the teacher's answers to all drawn so far: later images teach what earlier do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from fedcl.core.client import Model
from fedcl.core.datafree import (
    INPUT,
    ChannelMoments,
    Training,
    channel_moments,
    disagreement,
    label_loss,
    means,
    mixed,
    moments_distance,
    moments_of,
    spread_of,
)
from fedcl.core.distillation import Taught, answers, distilled, known_heads
from fedcl.core.errors import ConfigError
from fedcl.core.generator import Generator
from fedcl.core.model import Net
from fedcl.core.params import Params, not_finite
from fedcl.core.pictures import Pictures
from fedcl.core.seeds import seed_of
from fedcl.core.sgd import Settings
from fedcl.core.statistic import Statistic
from fedcl.core.task import Examples, join

if TYPE_CHECKING:
    from fedcl.core.federation import Federation


@dataclass(frozen=True)
class Known:
    """What a model knows at a stage's end: what images can be made of.

    Attributes:
        heads: (heads, classes) bool, disjoint: what it compares; see `known_heads`.
        classes: What it has seen.
        moments: Statistics of real data in its layers, as `datafree.means` gives them.
        examples: How many real examples these are of.
    """

    heads: Tensor
    classes: tuple[int, ...]
    moments: Params
    examples: float

    def generator(self, classes: int, width: int) -> Generator:
        """Returns a generator of such images as the moments are of, with so many labels."""
        channels, height, across = self.moments[INPUT].shape[1:]
        return Generator((channels, height, across), classes, width=width)


def known_now(
    fed: Federation, params: Params, before: Known | None, images: Pictures | None
) -> Known:
    """Asks all members for statistics of their data, and returns what the model knows now.

    Of earlier stages' data there is no more than their images: these stand in for them, with the
    weight of as many examples as the real ones were. Pixels depend on no model: theirs are exact.

    Args:
        fed: The federation, at a stage's end.
        params: The model.
        before: What it returned at the last stage's end, or None.
        images: Images of what was known then, or None.

    Raises:
        ConfigError: The inputs are no images.
    """
    statistic = Statistic(ChannelMoments(), "moments", exact=("count",))
    sums = fed.aggregate(statistic, Model(params), clients=fed.members).sum
    count, found, heads = float(sums["count/examples"]), means(sums), None
    if found[INPUT].dim() != 4:
        raise ConfigError(
            "generative replay draws images (channels, height, width), but this stream's inputs "
            f"have shape {tuple(found[INPUT].shape[1:])}: choose a data set of images, or another "
            "method"
        )
    if before is not None and images is not None:
        heads = before.heads
        old = {**moments_of(fed.net(params), images.images), INPUT: before.moments[INPUT]}
        found = mixed([(count, found), (before.examples, old)])
        count += before.examples
    return Known(known_heads(heads, fed.task, params), fed.task.seen, found, count)


@dataclass(frozen=True)
class Recipe:
    """How images are made.

    Attributes:
        images: How many in all.
        rounds: Rounds, the first ones included, of which nothing is kept.
        first: Rounds before images are kept and the student starts.
        steps: Steps of the generator in each.
        batch: Images of a step, of the generator's or the student's.
        lr: Learning rate of the generator (Adam).
        labels: Weight of the cross-entropy with the labels.
        moments: Weight of the distance from real data's statistics.
        adversarial: Weight of the student's disagreement; 0 needs no student.
        student_steps: Steps of the student in each round.
        student_lr: Their learning rate (SGD).
        temperature: T of the student's distillation.
    """

    images: int = 512
    rounds: int = 5
    first: int = 1
    steps: int = 40
    batch: int = 64
    lr: float = 3e-3
    labels: float = 0.5
    moments: float = 10.0
    adversarial: float = 1.0
    student_steps: int = 40
    student_lr: float = 0.01
    temperature: float = 20.0

    def __post_init__(self) -> None:
        whole = (self.steps, self.first, self.images, self.student_steps)
        if min(whole) < 0 or self.batch < 1 or self.rounds <= self.first:
            raise ValueError(
                "steps, student_steps, first and images must be at least 0, batch at least 1, and "
                "rounds more than first"
            )
        if 0 < self.images < self.rounds - self.first:
            raise ValueError("images must be 0, or at least one for each round that keeps some")
        if not min(self.labels, self.moments, self.adversarial) >= 0:
            raise ValueError("labels, moments and adversarial must be at least 0")
        if not min(self.lr, self.student_lr, self.temperature) > 0:
            raise ValueError("lr, student_lr and temperature must be above 0")


def synthesise(
    teacher: Net, student: Params, known: Known, generator: Generator, recipe: Recipe, seed: int
) -> tuple[Examples, Params]:
    """Returns images with labels, and the generator's parameters.

    Args:
        teacher: The network that knows the classes.
        student: Parameters of the same architecture, to start the student from.
        known: What the teacher knows; its classes are drawn equally often.
        generator: Its architecture.
        recipe: How.
        seed: Seed of all draws.

    Raises:
        ConfigError: The student diverged.
    """
    kind = next(iter(student.values()))
    wanted = {name: value.to(kind) for name, value in known.moments.items()}
    start = generator.init(seed, wanted[INPUT][0], spread_of(known.moments[INPUT]))
    training = Training(generator, start, known.classes, recipe.batch, recipe.lr, seed)
    follower, kept = student, list[Examples]()
    for number in range(recipe.rounds):
        pupil = teacher.at(follower) if recipe.adversarial and kept else None

        def objective(images: Tensor, labels: Tensor, pupil: Net | None = pupil) -> Tensor:
            logits, sums = channel_moments(teacher, images)
            found = {name: value / len(images) for name, value in sums.items()}
            allowed = allowed_of(known.heads, labels)
            total = recipe.labels * label_loss(logits, labels, allowed)
            total = total + recipe.moments * moments_distance(found, wanted)
            if pupil is None:
                return total
            return total - recipe.adversarial * disagreement(logits, pupil(images), allowed)

        training.descend(recipe.steps, objective)
        if number < recipe.first:
            continue
        turn, turns = number - recipe.first, recipe.rounds - recipe.first
        share = (turn + 1) * recipe.images // turns - turn * recipe.images // turns
        kept.append(training.sample(share, number))
        if not_finite({"images": kept[-1].x}):
            raise ConfigError("images hold NaN or infinity: lower the student's learning rate")
        if recipe.adversarial and recipe.student_steps and turn + 1 < turns:
            rows, at, steps = join(kept), seed_of(seed, "student", number), recipe.student_steps
            settings = Settings(steps, recipe.batch, recipe.student_lr, steps=steps)
            logits = [answers(teacher, rows.x)]
            message, heat = Taught(follower, known.heads), recipe.temperature
            follower = distilled(teacher.model, message, rows, logits, heat, settings, at)
    return join(kept), training.params


def allowed_of(heads: Tensor, labels: Tensor) -> Tensor:
    """Returns (n, classes) bool: the head of each label, of disjoint (heads, classes)."""
    return heads[heads[:, labels].int().argmax(0)]
