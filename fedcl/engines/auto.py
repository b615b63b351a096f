"""Chooses an engine from the cohort, the model and the machine, and says why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from fedcl.core.cost import SPEED
from fedcl.core.engine import Engine
from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site
from fedcl.core.training.blockmodel import block_model
from fedcl.engines.serial import Serial
from fedcl.engines.vectorized import Vectorized

__all__ = ["Auto"]

Inner = Literal["serial", "vectorized"]

_RAY_START = 6.0  # seconds that Ray takes to start, about


@dataclass
class Auto:
    """Takes `vectorized` where batching clients pays, else `serial`, on Ray for long runs.

    Whether clients are batched decides the bits of a result, so it depends on the config alone:
    cohort and model. Whether Ray spreads the blocks changes no bits, so it may depend on the
    machine.

    Attributes:
        reason: Why, after `open`.
    """

    reason: str = field(default="", init=False)
    _chosen: Engine | None = field(default=None, init=False, repr=False)

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Chooses, and opens the choice."""
        inner, workers, self.reason = self.choose(site, launch)
        if workers:
            from fedcl.engines.ray import Ray

            self._chosen = Ray(workers=workers, inner=inner)
        else:
            self._chosen = Vectorized() if inner == "vectorized" else Serial()
        self._chosen.open(site, launch)

    def choose(self, site: Site, launch: Mapping[str, Any]) -> tuple[Inner, int, str]:
        """Returns how a block runs, the number of Ray's workers (0 for none), and why."""
        training = launch["training"]
        cohort = min(training["cohort"] or launch["clients"], launch["clients"])
        inner, why = self._inner(site.model, min(cohort, site.fold))
        workers = min(os.cpu_count() or 1, -(-cohort // site.fold))
        seconds = launch["flops"] / SPEED
        # Another processor's help must be worth more than its start.
        if workers > 1 and seconds > 10 * _RAY_START and site.device.type == "cpu":
            reason = (
                f"ray with {workers} workers over {inner}: some {seconds:.0f} s of training in one "
                f"process; {why}"
            )
            return inner, workers, reason
        return inner, 0, f"{inner} in this process: {why}"

    @staticmethod
    def _inner(model: nn.Module, together: int) -> tuple[Inner, str]:
        if together < 4:
            return "serial", f"{together} clients at a time are too few to batch"
        if block_model(model, dict(model.named_parameters())) is None:
            return "serial", "this model's layers have no batched form that is faster"
        return "vectorized", f"{together} clients at a time, layers that take all of them at once"

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Lets the chosen engine run."""
        assert self._chosen is not None
        return self._chosen.run(request, ids, memories)

    def close(self) -> None:
        """Closes the chosen engine."""
        if self._chosen is not None:
            self._chosen.close()
