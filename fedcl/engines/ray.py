"""Blocks of clients on Ray workers: data travel once, a message once, replies come folded.

Equal to its inner engine to the bit, whatever the number of workers: the same blocks are computed
by the same code and their sums are added in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch

from fedcl.core.block import Batching, Path
from fedcl.core.client import Each
from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site
from fedcl.core.tree import move
from fedcl.engines._worker import Worker

__all__ = ["Ray"]

_CPU = torch.device("cpu")


@dataclass
class Ray:
    """Workers that each run whole fold blocks.

    Attributes:
        workers: Number of workers; 0 means one for each processor, or for each share of a GPU.
        gpus: GPUs that a worker has: a whole number, or the share of one that several use; then
            clients run there. 0 means none where the server has none, else that the workers divide
            the GPUs among them.
        inner: How a worker runs a block: `serial` or `vectorized`.
        block: Clients of one batched computation, when vectorized; 0 means 16, or 8 where the model
            has convolutions.
        path: How one computation trains several clients, when vectorized.
        tune: Measure, before the run begins, which path and block are fastest here, and write the
            choice into the run's config.
        address: Cluster to join: `host:port` of its head, or `auto` for one on this machine, all
            of whose machines have this Python environment; empty starts Ray on this machine, or
            joins this process's session.
        patience: Seconds in which workers must start.
    """

    workers: int = 0
    gpus: float = 0.0
    inner: Literal["serial", "vectorized"] = "vectorized"
    block: int = 0
    path: Path = "auto"
    tune: bool = False
    address: str = ""
    patience: float = 120.0
    _site: Any = field(default=None, init=False, repr=False)
    _crew: Any = field(default=None, init=False, repr=False)
    _session: str = field(default="", init=False, repr=False)
    _started: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, not {self.workers}")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus % 1):
            raise ValueError(f"gpus must be a share of one or a whole number, not {self.gpus}")
        if not self.patience > 0:
            raise ValueError(f"patience must be above 0, not {self.patience}")
        self._batching = Batching(self.path, self.block)
        if find_spec("ray") is None:
            raise ValueError(
                "ray is not installed: pip install 'fedcl[sim]', or take engine serial"
            )

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Starts the workers and puts the site, its arrays with it, into the object store once.

        Raises:
            ConfigError: Ray cannot be started or joined, or has no room for so many workers.
        """
        import ray

        from fedcl.engines import _crew, _session

        self._started = _session.enter(self.address, self.workers)
        self._session = _session.name()
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        workers, gpus = _session.divide(self.workers, self.gpus, site.device, there)
        self._site = site
        shared = ray.put(site)
        device = torch.device("cuda" if gpus else "cpu")
        batching = self._batching if self.inner == "vectorized" else None
        kind: Any = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")(Worker)
        self._crew = _crew.Crew(
            lambda: kind.remote(shared, batching, device), workers, self.patience
        )
        self._crew.gather()

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the results of the fold blocks of `ids`, in their order."""
        import ray

        from fedcl.engines._crew import Job

        request = replace(request, message=move(request.message, _CPU))
        each = request.message if isinstance(request.message, Each) else None
        # In a list, it is fetched when a worker first needs it and not for each call.
        shared = [ray.put(request if each is None else replace(request, message=None))]

        def job(block: tuple[int, ...], examples: int) -> Job:
            def arguments() -> tuple[Any, ...]:
                own = each and Each({id: each.messages[id] for id in block})
                return shared, own, block, memories.load(block)

            at = request.position
            name = (
                f"program {request.name!r} of clients {block[0]} to {block[-1]} in stage "
                f"{at.stage}, round {at.round}"
            )
            return Job(examples, name, arguments)

        sizes = self._site.population.sizes(ids, request.position.stage)
        blocks = self._site.blocks(ids)
        costs = np.add.reduceat(sizes, range(0, len(ids), self._site.fold)) if blocks else ()
        results: Iterator[BlockResult] = self._crew.run(list(map(job, blocks, costs)))
        return results

    def close(self) -> None:
        """Ends the workers, and Ray itself when `open` started it, unless somebody else has."""
        if self._session:
            import ray

            from fedcl.engines import _session

            if _session.name() == self._session:
                if self._crew is not None:
                    self._crew.close()
                if self._started:
                    ray.shutdown()
        self._site, self._crew, self._session, self._started = None, None, "", False
