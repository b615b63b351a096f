"""Schedules of the local learning rate over the rounds of a run: factors of the trainer's `lr`.

`SCHEDULES` names them for configs: `training.schedule = { name = "cosine", warmup = 0.1 }`. They
scale what `fed.local` trains with and are pure functions of the position in the run, so that a
resumed run and every engine agree; methods know nothing of them. Lengths of phases are shares of
one stage's rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

__all__ = ["SCHEDULES", "Constant", "Cosine", "Infinite", "Pace", "Schedule"]


class Schedule(Protocol):
    """A factor of the learning rate for each round."""

    def factor(self, stage: int, round: int, stages: int, rounds: int) -> float:
        """Returns a factor in (0, 1].

        Args:
            stage: Stage of the stream, from 0.
            round: Round of the stage, from 0.
            stages: Stages of the stream.
            rounds: Rounds of a stage.
        """
        ...


@dataclass(frozen=True)
class Constant:
    """The same learning rate always."""

    def factor(self, stage: int, round: int, stages: int, rounds: int) -> float:
        """Returns 1."""
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """Re-warmed cosine: every stage warms up again and decays as half a cosine.

    Loshchilov and Hutter, SGDR, ICLR 2017; Gupta et al., Continual pre-training of large language
    models: how to (re)warm your model?, 2023 (arXiv 2308.04014). Round n of R, with W rounds of
    warm-up, has the factor (n + 1) / W for n < W, else
    floor + (1 - floor) / 2 * (1 + cos(pi (n - W) / (R - W))).

    Attributes:
        warmup: Rounds of linear warm-up, as a share of a stage's.
        floor: Factor that the decay tends to.
    """

    warmup: float = 0.1
    floor: float = 0.1

    def __post_init__(self) -> None:
        _check_shares(self, "warmup")
        _check_factor("floor", self.floor)

    def factor(self, stage: int, round: int, stages: int, rounds: int) -> float:
        """Returns the factor of a round, the same in every stage."""
        warm = self.warmup * rounds
        if round < warm:
            return min(1.0, (round + 1) / warm)
        return _fall((round - warm) / (rounds - warm), self.floor)


@dataclass(frozen=True)
class Infinite:
    """Infinite learning rate: warm-up and cool-down once, then a constant across all borders.

    Ibrahim et al., Simple and scalable strategies to continually pre-train large language models,
    TMLR 2024 (arXiv 2403.08763), cosine form. The first stage warms up linearly and cools down as
    half a cosine to `constant`; the rate stays there however many tasks follow, so that no border
    brings a second warm-up, which forgets. The last rounds fall exponentially to `floor`:
    constant * (floor / constant)^((n + 1) / N) in round n of N.

    The paper anneals a copy before it is used and goes on from the model before; here there is one
    model, and `annealed = "stages"` goes on from the annealed one.

    Attributes:
        warmup: Rounds of linear warm-up, as a share of a stage's.
        cooldown: Rounds of the fall to `constant` after it, likewise.
        constant: Factor of the constant phase.
        anneal: Rounds of the last fall, likewise; 0 for none.
        floor: Factor at its end.
        annealed: Whether the end of the `run` is annealed, or of all `stages`.
    """

    warmup: float = 0.1
    cooldown: float = 0.4
    constant: float = 0.5
    anneal: float = 0.2
    floor: float = 0.05
    annealed: Literal["run", "stages"] = "run"

    def __post_init__(self) -> None:
        _check_shares(self, "warmup", "cooldown", "anneal")
        _check_factor("constant", self.constant)
        _check_factor("floor", self.floor)
        if self.floor > self.constant:
            raise ValueError(f"floor ({self.floor}) must not lie above constant ({self.constant})")

    def factor(self, stage: int, round: int, stages: int, rounds: int) -> float:
        """Returns the factor of a round."""
        last = self.anneal * rounds
        left = rounds - round
        if left <= last and (stage == stages - 1 or self.annealed == "stages"):
            fallen = (last - left + 1) / last
            return self.constant * math.exp(fallen * math.log(self.floor / self.constant))
        warm, cool = self.warmup * rounds, self.cooldown * rounds
        if stage > 0 or round >= warm + cool:
            return self.constant
        if round < warm:
            return min(1.0, (round + 1) / warm)
        return _fall((round - warm) / cool, self.constant)


SCHEDULES: dict[str, type] = {"constant": Constant, "cosine": Cosine, "infinite": Infinite}


@dataclass(frozen=True)
class Pace:
    """A schedule laid over one run.

    Attributes:
        schedule: The schedule.
        stages: Stages of the stream.
        rounds: Rounds of a stage.
    """

    schedule: Schedule = field(default_factory=Constant)
    stages: int = 1
    rounds: int = 1

    def factor(self, stage: int, round: int) -> float:
        """Returns a round's factor; a stage's beginning and end have those of the rounds there.

        Raises:
            ValueError: The schedule gave none that lies in (0, 1].
        """
        within = min(max(round, 0), self.rounds - 1)
        found = self.schedule.factor(stage, within, self.stages, self.rounds)
        if not 0 < found <= 1:
            raise ValueError(f"the schedule gives the factor {found} in stage {stage}: not (0, 1]")
        return found


def _fall(progress: float, end: float) -> float:
    """Returns half a cosine from 1 at progress 0 to `end` at 1."""
    return end + (1 - end) / 2 * (1 + math.cos(math.pi * min(1.0, progress)))


def _check_factor(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} must lie in (0, 1], not {value}")


def _check_shares(schedule: object, *names: str) -> None:
    shares = [getattr(schedule, name) for name in names]
    if min(shares) < 0 or sum(shares) >= 1:
        raise ValueError(
            f"{', '.join(names)} are shares of a stage's rounds: at least 0 and below 1 together, "
            f"not {', '.join(map(str, shares))}"
        )
