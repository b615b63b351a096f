"""What a private trainer promises to each single example of a client, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedcl.core.errors import ExposureError
from fedcl.core.local import Local, change


@dataclass(frozen=True)
class ExampleMechanism:
    """How a trainer bounds and hides what one example changes in what its client sends.

    Neighbouring runs differ in one example of one client, which contributes to every sum, or counts
    in it as zeros; how many examples a client has is public.

    Attributes:
        noise_multiplier: Standard deviation of the Gaussian noise over the largest norm of one
            example's part, in a step of training as in a statistic.
        clip: The largest norm of one example's gradient in a step.
        clips: The largest norm of one example's part in a statistic, by the program's name.
        delta: The delta for which epsilon is told.
        budget: The largest epsilon that may be spent; 0 for no limit.
        seeded: Whether anybody can repeat the noise: nothing is claimed then.
    """

    noise_multiplier: float
    clip: float
    clips: Mapping[str, float] = field(default_factory=dict, hash=False)
    delta: float = 1e-5
    budget: float = 0.0
    seeded: bool = False

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "budget"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0, not {value}")
        for name, bound in {
            "clip": self.clip,
            **{f"clips.{k}": v for k, v in self.clips.items()},
        }.items():
            if not (math.isfinite(bound) and bound > 0):
                raise ValueError(f"{name} must be above 0, not {bound}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie in (0, 1), not {self.delta}")


def check_local(local: Local) -> None:
    """Raises ExposureError when training with these parts cannot protect single examples.

    Args:
        local: The parts of local training.
    """
    if getattr(local.loss, "mixes", False):
        raise ExposureError(
            f"program {local.name!r}: its loss mixes examples, so that none can be bounded by "
            "itself: private training of single examples needs a loss without `mixes`"
        )
    _check_report(local)


def _check_report(local: Local) -> None:
    if local.report is not change:
        raise ExposureError(
            f"program {local.name!r} reports other things than the change of its parameters, which "
            "alone is protected: private training of single examples needs the plain report"
        )
