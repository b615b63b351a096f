"""The tables of a config that belong to no plug-in, from training to replies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedcl.core.local import Trainer
from fedcl.core.training.schedule import Schedule


@dataclass(frozen=True)
class Training:
    """The table `[training]`.

    Attributes:
        rounds: Rounds of each stage.
        cohort: Clients sampled for a round; 0, or more than a stage has, means all its members.
        local: How one client trains.
        schedule: Course of its learning rate over rounds and stages: `constant`, `cosine` (warmed
            up again at each stage) or `infinite`.
        sampling: How a cohort is drawn: `fixed` size, `poisson` or `round_robin`.
        fold: Clients in a fold block: sums are made block by block, whatever the engine.
        dtype: Type of parameters and inputs.
        device: `auto` takes a GPU when there is one.
        precision: Matrix products of local training on a GPU: `full`, `tf32` (products of rounded
            float32) or `bf16` (PyTorch's autocast). On a CPU it changes nothing.
        oversample: Share of the cohort that is asked besides, so that a round need not wait for the
            slowest: of those who answer, the first `cohort` count.
        minimum: Replies that an exchange needs.
        shortfall: What happens to a round with fewer: `skip` or `repeat`.
        availability: Chance that a client that is asked answers.
    """

    local: Trainer
    schedule: Schedule
    rounds: int = 10
    cohort: int = 0
    sampling: Literal["fixed", "poisson", "round_robin"] = "fixed"
    fold: int = 16
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["full", "tf32", "bf16"] = "full"
    oversample: float = 0.0
    minimum: int = 1
    shortfall: Literal["skip", "repeat"] = "skip"
    availability: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("cohort", 0), ("fold", 1), ("minimum", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 < self.availability <= 1:
            raise ValueError(f"availability must lie in (0, 1], not {self.availability}")
        if not (math.isfinite(self.oversample) and self.oversample >= 0):
            raise ValueError(f"oversample must be at least 0, not {self.oversample}")
        if self.oversample and not self.cohort:
            raise ValueError(
                f"oversample = {self.oversample} asks more clients than cohort, but cohort = 0 "
                "asks all of them: set cohort, or leave oversample out"
            )
        if self.cohort and self.minimum > self.cohort:
            raise ValueError(
                f"minimum = {self.minimum} replies cannot come from cohort = {self.cohort}: lower "
                "the one or raise the other"
            )

    @property
    def asked(self) -> int:
        """How many clients are asked in a round; 0 for all members."""
        return math.ceil(round(self.cohort * (1 + self.oversample), 9))

    @property
    def enough(self) -> int:
        """After how many answers no more are needed; 0 for all of those who are asked."""
        return self.cohort if self.oversample else 0


@dataclass(frozen=True)
class Evaluation:
    """The table `[evaluation]`.

    Attributes:
        every: Rounds between evaluations inside a stage; 0 means at stage ends only.
        splits: Held-out data to evaluate on; `validation` alone leaves the test set untouched while
            tuning.
        clients: Clients that get rows of their own, evenly spaced among all: at stage ends, or in
            every evaluation when clients evaluate; at most so many are asked then.
        where: Who evaluates. `server`: the simulator's own view of all held-out data. `clients`:
            each on its own held-out examples of the tasks that it has met, as real devices do it;
            what they tell is booked as traffic, and nothing protects it.
        batch_size: Examples of one forward pass.
        reference: Folder of a finished `joint` run on the same stream, whose accuracies are the
            a*_j of intransigence.
        decompose: Clients of a round that are trained once more, to see what their training loses
            on old tasks and what aggregation does; 0 for none.
        decompose_every: Rounds between rounds that are decomposed.
    """

    every: int = 5
    splits: tuple[Literal["test", "validation"], ...] = ("test",)
    clients: int = 100
    where: Literal["server", "clients"] = "server"
    batch_size: int = 1024
    reference: str = ""
    decompose: int = 0
    decompose_every: int = 1

    def __post_init__(self) -> None:
        for name, least in (
            ("every", 0),
            ("clients", 0),
            ("batch_size", 1),
            ("decompose", 0),
            ("decompose_every", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(
                f"splits must name each split once and at least one, not {self.splits}"
            )
        if self.where == "clients" and not self.clients:
            raise ValueError('where = "clients" asks nobody with clients = 0: raise it')
        if self.where == "clients" and self.decompose:
            raise ValueError(
                "decompose looks at what no client tells, local models on the union of all "
                'held-out data: it needs where = "server"'
            )

    def is_planned(self, finished: int, rounds: int) -> bool:
        """Returns whether the global model is evaluated after `finished` rounds of the whole run.

        Args:
            finished: Finished rounds; 0 is the untrained model.
            rounds: Rounds of a stage.
        """
        return finished % rounds == 0 or bool(self.every and finished % self.every == 0)


@dataclass(frozen=True)
class Checkpoint:
    """The table `[checkpoint]`.

    Attributes:
        seconds: Time between commits inside a stage; 0 commits every round. Stage ends always
            commit.
    """

    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise ValueError(f"seconds must be at least 0, not {self.seconds}")


@dataclass(frozen=True)
class Memory:
    """The table `[memory]`.

    Attributes:
        cache: Bytes of clients' memories held in RAM; what has no room lies in the checkpoint, or,
            in a run without a folder, in a temporary file. It changes no result.
        limit: Bytes of memory that a run may need: one that is predicted to need more is refused; 0
            means all that the machine has.
    """

    cache: int = 500_000_000
    limit: int = 0

    def __post_init__(self) -> None:
        for name in ("cache", "limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0 bytes, not {getattr(self, name)}")


@dataclass(frozen=True)
class Replies:
    """The table `[replies]`: which replies the server accepts, and what becomes of the others.

    Judged one by one are names, shapes, types, finite numbers, weight, norm, and that a client that
    was asked answers once. Any option but the defaults costs
    `vectorized` its fastest path, since replies are then looked at one by one.

    Attributes:
        bad: A reply that does not fit ends the run (`stop`: in an honest federation training has
            diverged), or is left out and named in rejected.csv (`reject`).
        norm: Largest norm of a whole reply; 0 for no bound.
        weight: Largest weight of a reply; 0 for the number of training examples of all clients, or
            for 2^31 where nobody knows that.
    """

    bad: Literal["stop", "reject"] = "stop"
    norm: float = 0.0
    weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("norm", "weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0, not {value}")

    @property
    def judged(self) -> bool:
        """Whether replies are looked at one by one."""
        return self.bad == "reject" or self.norm > 0 or self.weight > 0
