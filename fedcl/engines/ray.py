"""Blocks of clients on Ray workers: data travel once, a message once, replies come folded.

Equal to its inner engine to the bit, whatever the number of workers: the same blocks are computed
by the same code and their sums are added in the same order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Literal

import torch

from fedcl.core.engine import Batching, BlockResult, Path, Request
from fedcl.core.errors import ClientError, ConfigError
from fedcl.core.population import Memories
from fedcl.core.site import Site
from fedcl.core.tree import move

__all__ = ["Ray"]


@dataclass
class Ray:
    """Workers that each run whole fold blocks.

    Attributes:
        workers: Number of workers; 0 means one a core.
        inner: How a worker runs a block: `serial` or `vectorized`.
        block: Clients of one batched computation, when vectorized.
        path: How one computation trains several clients, when vectorized.
        address: Ray cluster to join; empty starts one in this machine, or joins this process's.
    """

    workers: int = 0
    inner: Literal["serial", "vectorized"] = "vectorized"
    block: int = 16
    path: Path = "auto"
    address: str = ""
    _actors: list[Any] = field(default_factory=list, init=False, repr=False)
    _fold: int = field(default=0, init=False, repr=False)
    _started: bool = field(default=False, init=False, repr=False)
    _site: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, not {self.workers}")
        self._batching = Batching(self.path, self.block)
        if find_spec("ray") is None:
            raise ValueError(
                "ray is not installed: pip install 'fedcl[sim]', or take engine serial"
            )

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Starts the workers and puts the site, its arrays with it, into the object store once."""
        import ray

        if not ray.is_initialized():
            # Workers run at this process's niceness: they are the experiment, not background jobs.
            os.environ.setdefault("RAY_worker_niceness", "0")
            options = (
                {"address": self.address}
                if self.address
                else {"num_cpus": max(self.workers, os.cpu_count() or 1)}
            )
            try:
                ray.init(
                    include_dashboard=False, log_to_driver=False, configure_logging=False, **options
                )
            except (ValueError, ConnectionError, RuntimeError) as error:
                raise ConfigError(
                    f"[engine] Ray cannot be started or joined: {error}; check engine.address "
                    f"({self.address!r}), or leave it out"
                ) from error
            self._started = True
        count = self.workers or os.cpu_count() or 1
        processors = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
        if count > processors:
            raise ConfigError(
                f"engine.workers = {count}, but the Ray session has {processors} processors, so "
                "some would wait for ever: lower engine.workers"
            )
        self._fold = site.fold
        self._site = ray.put(site)
        worker = ray.remote(num_cpus=1)(_Worker)
        batching = self._batching if self.inner == "vectorized" else None
        self._actors = [worker.remote(self._site, batching) for _ in range(count)]
        ray.get([actor.ready.remote() for actor in self._actors])

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the results of the fold blocks of `ids`, in their order."""
        import ray

        cpu = torch.device("cpu")
        shared = ray.put(replace(request, message=move(request.message, cpu)))
        blocks = [
            tuple(ids[start : start + self._fold]) for start in range(0, len(ids), self._fold)
        ]
        # Two blocks wait at each worker, so that none idles until its last result is taken.
        waiting: deque[tuple[int, Any]] = deque(enumerate(blocks))
        running: dict[Any, int] = {}
        done: dict[int, BlockResult] = {}
        following = 0
        free = [actor for actor in self._actors for _ in range(2)]
        owner: dict[Any, Any] = {}
        while waiting or running or done:
            while waiting and free:
                index, block = waiting.popleft()
                actor = free.pop(0)
                reference = actor.run.remote(shared, block, memories.load(block))
                running[reference], owner[reference] = index, actor
            if running:
                ready, _ = ray.wait(list(running), num_returns=1)
                for reference in ready:
                    done[running.pop(reference)] = self._get(reference)
                    free.append(owner.pop(reference))
            while following in done:
                yield done.pop(following)
                following += 1

    @staticmethod
    def _get(reference: Any) -> BlockResult:
        import ray

        try:
            result: BlockResult = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ClientError):
                raise error.cause from error
            raise
        return result

    def close(self) -> None:
        """Ends the workers, and Ray itself when `open` started it."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._site = [], None
        if self._started:
            ray.shutdown()
            self._started = False


class _Worker:
    """What runs in a worker process."""

    def __init__(self, site: Site, batching: Batching | None) -> None:
        torch.set_num_threads(1)
        self._site, self._batching = site, batching

    def ready(self) -> bool:
        return True

    def run(self, request: Request, ids: Sequence[int], memories: Mapping[int, Any]) -> BlockResult:
        if self._batching is not None:
            result = self._site.batch(request, ids, memories, self._batching)
        else:
            result = self._site.loop(request, ids, memories)
        return move(result, torch.device("cpu"))
