"""Images for replay, drawn in rounds from a generator that chases a student.

The loop of TARGET (Zhang et al., ICCV 2023, section 4.2), which is that of data-free distillation:
in each round the generator takes some steps against teacher and student, images are drawn from it,
and the student learns the teacher's answers to all that were drawn so far. So later images are of
what earlier ones do not teach.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedcl.core.datafree import (
    INPUT,
    Training,
    channel_moments,
    disagreement,
    label_loss,
    moments_distance,
    spread_of,
)
from fedcl.core.distillation import Taught, answers, distilled
from fedcl.core.generator import Generator
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.seeds import seed_of
from fedcl.core.sgd import Settings
from fedcl.core.task import Examples, join


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
    student_lr: float = 0.2
    temperature: float = 20.0

    def __post_init__(self) -> None:
        whole = (self.steps, self.first, self.images, self.student_steps)
        if min(whole) < 0 or self.batch < 1 or self.rounds <= self.first:
            raise ValueError(
                "steps, student_steps, first and images must be at least 0, batch at least 1, and "
                "rounds more than first"
            )
        if not min(self.labels, self.moments, self.adversarial) >= 0:
            raise ValueError("labels, moments and adversarial must be at least 0")
        if not min(self.lr, self.student_lr, self.temperature) > 0:
            raise ValueError("lr, student_lr and temperature must be above 0")


def synthesise(
    teacher: Net,
    student: Params,
    heads: Tensor,
    classes: tuple[int, ...],
    moments: Params,
    generator: Generator,
    recipe: Recipe,
    seed: int,
) -> tuple[Examples, Params]:
    """Returns images with labels, and the generator's parameters.

    Args:
        teacher: The network that knows the classes.
        student: Parameters of the same architecture, to start the student from.
        heads: (heads, classes) bool, disjoint: what the teacher compares.
        classes: What to draw, equally often.
        moments: Statistics of real data in the teacher's layers, as `datafree.means` gives them.
        generator: Its architecture.
        recipe: How.
        seed: Seed of all draws.
    """
    kind = next(iter(teacher.params.values())) if teacher.params else moments[INPUT]
    wanted = {name: value.to(kind) for name, value in moments.items()}
    start = generator.init(seed, wanted[INPUT][0], spread_of(moments[INPUT]))
    training = Training(generator, start, classes, recipe.batch, recipe.lr, seed)
    follower, kept = student, list[Examples]()
    for number in range(recipe.rounds):
        pupil = teacher.at(follower) if recipe.adversarial and kept else None

        def objective(images: Tensor, labels: Tensor, pupil: Net | None = pupil) -> Tensor:
            logits, sums = channel_moments(teacher, images)
            found = {name: value / len(images) for name, value in sums.items()}
            allowed = allowed_of(heads, labels)
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
        if recipe.adversarial and recipe.student_steps and turn + 1 < turns:
            rows, at = join(kept), seed_of(seed, "student", number)
            steps = recipe.student_steps
            settings = Settings(steps, recipe.batch, recipe.student_lr, steps=steps)
            logits = [answers(teacher, rows.x)]
            message = Taught(follower, heads)
            follower = distilled(
                teacher.model, message, rows, logits, recipe.temperature, settings, at
            )
    return join(kept), training.params


def allowed_of(heads: Tensor, labels: Tensor) -> Tensor:
    """Returns (n, classes) bool: the head of each label; heads (heads, classes) are disjoint."""
    return heads[heads[:, labels].int().argmax(0)]
