"""Times rounds until there are enough of them; the same rule for every engine."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

WARM = 2  # first rounds that do not count: caches fill, workers load their modules
LEAST = 3  # rounds that do


class Enough(Exception):
    """Ends a run that has been timed for long enough."""


@dataclass
class Clock:
    """Notes when rounds end, from its making on.

    Attributes:
        seconds: Time that the counted rounds take together at least.
        wall: When a round ended, in seconds of `time.perf_counter`; the first entry is the start.
        cpu: Processor time of this process then, in seconds.
    """

    seconds: float
    wall: list[float] = field(default_factory=lambda: [time.perf_counter()])
    cpu: list[float] = field(default_factory=lambda: [time.process_time()])

    def tick(self) -> bool:
        """Notes the end of a round and returns whether there are enough."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        counted = len(self.wall) - 1 - WARM
        return counted >= LEAST and self.wall[-1] - self.wall[WARM] >= self.seconds

    def result(self, cohort: int) -> dict[str, Any]:
        """Returns what a measurement reports; needs at least one counted round.

        Args:
            cohort: Client updates of a round.
        """
        rounds = len(self.wall) - 1 - WARM
        updates = cohort * rounds
        each = [later - before for before, later in itertools.pairwise(self.wall[WARM:])]
        return {
            "cohort": cohort,
            "rounds": rounds,
            "updates_per_second": updates / (self.wall[-1] - self.wall[WARM]),
            "first_round_seconds": self.wall[1] - self.wall[0],
            "round_seconds": (self.wall[-1] - self.wall[WARM]) / rounds,
            "median_round_seconds": statistics.median(each),
            "driver_ms_per_update": 1000 * (self.cpu[-1] - self.cpu[WARM]) / updates,
        }
