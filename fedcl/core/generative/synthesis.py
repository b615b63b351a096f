"""Images for replay, drawn in rounds from a generator that chases a student.

The loop of TARGET (Zhang et al., ICCV 2023) and of data-free distillation before it: in each round
the generator takes some steps against teacher and student, images are drawn from it, and the
student learns the teacher's answers to all drawn so far: later images teach what earlier do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from fedcl.core.errors import ConfigError
from fedcl.core.generative.datafree import INPUT, Training, spread_of
from fedcl.core.generative.generator import EMBEDDING, Generator
from fedcl.core.generative.known import Known
from fedcl.core.generative.objective import Objective, Weights
from fedcl.core.losses.anchors import Anchors
from fedcl.core.losses.distillation import Taught, answers, distilled
from fedcl.core.model import Net
from fedcl.core.params import Params, not_finite
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
        weights: Of the generator's losses; without `adversarial` there is no student.
        anchors: Where features of a class shall be, or None.
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
    weights: Weights = field(default_factory=lambda: Weights(adversarial=1.0))
    anchors: Anchors | None = None
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
    wanted, start = _begun(kind, known, generator, seed)
    anchors, frozen, aim = None, tuple[str, ...](), recipe.anchors
    if aim is not None:
        anchors = aim(*student["head.weight"].shape).to(kind)
        # A unit vector's numbers have the size of drawn ones' then.
        named = aim.vectors(generator.classes, generator.noise) * generator.noise**0.5
        start, frozen = {**start, EMBEDDING: named.to(kind)}, (EMBEDDING,)
    radius = aim.radius if aim is not None else 0.0
    objective = Objective(teacher, known.heads, wanted, recipe.weights, anchors, radius)
    batch, lr, rival = recipe.batch, recipe.lr, recipe.weights.adversarial
    training = Training(generator, start, known.classes, batch, lr, seed, frozen)
    follower, kept = student, list[Examples]()
    for number in range(recipe.rounds):
        pupil = teacher.at(follower) if rival and kept else None
        training.descend(recipe.steps, partial(objective, pupil=pupil))
        if number < recipe.first:
            continue
        turn, turns = number - recipe.first, recipe.rounds - recipe.first
        share = (turn + 1) * recipe.images // turns - turn * recipe.images // turns
        kept.append(training.sample(share, number))
        if not_finite({"images": kept[-1].x}):
            raise ConfigError("images hold NaN or infinity: lower the student's learning rate")
        if rival and recipe.student_steps and turn + 1 < turns:
            rows, at, steps = join(kept), seed_of(seed, "student", number), recipe.student_steps
            settings = Settings(steps, recipe.batch, recipe.student_lr, steps=steps)
            logits = [answers(teacher, rows.x)]
            message, heat = Taught(follower, known.heads), recipe.temperature
            follower = distilled(teacher.model, message, rows, logits, heat, settings, at)
    return join(kept), training.params


def trained(
    teacher: Net,
    known: Known,
    generator: Generator,
    weights: Weights,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
) -> Params:
    """Returns a generator's parameters after training against a teacher, without a student.

    Args:
        teacher: The network that knows the classes.
        known: What it knows.
        generator: Its architecture.
        weights: Of its losses.
        steps: Steps of Adam.
        batch: Images of a step.
        lr: Adam's learning rate.
        seed: Seed of all draws.

    Raises:
        ConfigError: The generator diverged.
    """
    wanted, start = _begun(next(iter((teacher.params or {}).values())), known, generator, seed)
    training = Training(generator, start, known.classes, batch, lr, seed)
    training.descend(steps, Objective(teacher, known.heads, wanted, weights))
    if not_finite(training.params):
        raise ConfigError("the generator holds NaN or infinity: lower its learning rate")
    return training.params


def _begun(
    like: Tensor, known: Known, generator: Generator, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the statistics and first parameters of a generator in the type of a tensor."""
    wanted = {name: value.to(like) for name, value in known.moments.items()}
    return wanted, generator.init(seed, wanted[INPUT][0], spread_of(known.moments[INPUT]))
