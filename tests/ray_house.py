"""One Ray session for the whole suite: starting it takes longer than many tiny runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.engine import Engine
from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site
from fedcl.engines.ray import Ray


@dataclass
class Held:
    """An open engine that a run can neither open nor close."""

    inner: Engine

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Is open already, for a site of the same config."""

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Lets the inner engine run."""
        return self.inner.run(request, ids, memories)

    def close(self) -> None:
        """Stays open for the next run."""


@dataclass
class RayHouse:
    """Starts Ray when first asked, and anew when somebody else has shut it down.

    Attributes:
        cpus: Workers that the session has room for, more than any machine's cores: they idle.
        held: How many of them may stay for later runs; the oldest make room.
    """

    cpus: int = 10
    held: int = 6
    _open: dict[tuple[str, int, str], Ray] = field(default_factory=dict)
    _started: bool = False

    def start(self) -> None:
        """Makes sure that this process has a Ray session, which the Ray engine then joins."""
        import ray

        if not ray.is_initialized():
            self._open, self._started = {}, True
            for patience in (2, 1, 0):  # Ray gives itself 30 s, which a busy machine may not keep
                try:
                    ray.init(
                        num_cpus=self.cpus,
                        include_dashboard=False,
                        log_to_driver=False,
                        configure_logging=False,
                    )
                    break
                except Exception as error:
                    if "timed out during startup" not in str(error) or not patience:
                        raise
                    ray.shutdown()

    def on(
        self, experiment: Experiment, workers: int, inner: Literal["serial", "vectorized"]
    ) -> Experiment:
        """Returns the experiment with an open Ray engine, shared by all methods on the same site.

        Where clients run depends on data, stream, model and training, not on the method.
        """
        self.start()
        parts = {k: v for k, v in experiment.resolved.items() if k not in ("method", "engine")}
        key = json.dumps(parts, sort_keys=True), workers, inner
        if key not in self._open:
            while self._open and sum(count for _, count, _ in self._open) + workers > self.held:
                self._open.pop(next(iter(self._open))).close()
            engine = Ray(workers=workers, inner=inner)
            engine.open(build_site(experiment), {})
            self._open[key] = engine
        return replace(experiment, engine=Held(self._open[key]))

    def close(self) -> None:
        """Ends the workers and the session."""
        import ray

        if self._started and ray.is_initialized():
            for engine in self._open.values():
                engine.close()
            ray.shutdown()
