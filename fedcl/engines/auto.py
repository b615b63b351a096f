"""Chooses an engine from the cohort, the model and the machine, and says why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from fedcl.core.engine import BlockResult, Engine, Request
from fedcl.core.population import Memories
from fedcl.core.site import Site
from fedcl.engines.serial import Serial
from fedcl.engines.vectorized import Vectorized

__all__ = ["Auto"]

Inner = Literal["serial", "vectorized"]


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
        training = launch["training"]
        cohort = training["cohort"] or launch["clients"]
        inner, why = self._inner(
            site.model, min(cohort, site.fold), training["local"].get("batch_size", 1)
        )
        blocks = -(-cohort // site.fold)
        cores = os.cpu_count() or 1
        # Starting Ray takes some 5 to 10 s, which a run must be long enough to earn back.
        work = (
            launch["stages"]
            * training["rounds"]
            * cohort
            * sum(p.numel() for p in site.model.parameters())
        )
        if cores > 1 and blocks >= 2 and work > 5e10 and site.device.type == "cpu":
            from fedcl.engines.ray import Ray

            workers = min(cores, blocks)
            self._chosen = Ray(workers=workers, inner=inner)
            self.reason = f"ray with {workers} workers over {inner}: {blocks} blocks a round; {why}"
        else:
            self._chosen = Vectorized() if inner == "vectorized" else Serial()
            self.reason = f"{inner} in this process: {why}"
        self._chosen.open(site, launch)

    @staticmethod
    def _inner(model: nn.Module, together: int, batch_size: int) -> tuple[Inner, str]:
        linear = not any(isinstance(m, nn.Conv2d | nn.RNNBase) for m in model.modules())
        if together < 4:
            return "serial", f"{together} clients at a time are too few to batch"
        if not linear:
            return "serial", "batching clients gains little for convolutions on a CPU"
        if batch_size >= 64:
            return "serial", f"batches of {batch_size} already fill the processor"
        return "vectorized", f"{together} clients at a time, linear layers, batches of {batch_size}"

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
