"""Workers on Ray that run jobs: the longest first, two at each worker, results in order.

A worker that dies is replaced, and what it had is run again, each job alone at a worker: which of
them killed it cannot be told, since a result may be made and not yet sent. A job of which several
workers died ends the run.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from fedcl.core.errors import ConfigError, FedclError

_DEPTH = 2  # jobs at a worker: it need not wait until its last one's result is taken
_AHEAD = 4  # jobs for each worker that may be done before their turn: results take memory
_DEATHS = 3  # workers that one job may cost, or a start

# How the end of a worker shows, be it its process's or its machine's.
_DEAD = (RayActorError, OutOfMemoryError, WorkerCrashedError, ObjectLostError)


@dataclass(frozen=True)
class Job:
    """A call of a worker's `run`.

    Attributes:
        cost: How long it takes compared with the others.
        name: What it is, for errors.
        arguments: Makes the arguments, when a worker is free.
    """

    cost: float
    name: str
    arguments: Callable[[], tuple[Any, ...]]


@dataclass(eq=False)
class _Place:
    """A worker, and the results that it owes with their jobs; it works on the first one."""

    actor: Any
    jobs: deque[tuple[Any, int]] = field(default_factory=deque)

    def has_room(self, alone: bool, suspects: set[int]) -> bool:
        """Whether it can take another job, or one that must be alone."""
        if alone or any(index in suspects for _, index in self.jobs):
            return not self.jobs
        return len(self.jobs) < _DEPTH


class Crew:
    """Workers of one kind."""

    def __init__(self, hire: Callable[[], Any], workers: int, patience: float) -> None:
        """Starts the workers; `close` must follow.

        Args:
            hire: Starts a worker that has `ready()` and `run(*arguments)`.
            workers: How many.
            patience: Seconds in which a worker must start.
        """
        self._hire, self._workers, self._patience = hire, workers, patience
        self._places: list[_Place] = []
        self._starting: dict[Any, Any] = {}
        self._failures = 0
        for _ in range(workers):
            self._start()

    def gather(self) -> None:
        """Waits until all workers are ready.

        Raises:
            ConfigError: They did not start in time.
            FedclError: They died while they started.
        """
        while self._starting:
            self._welcome(self._wait(()))

    def run(self, jobs: Sequence[Job]) -> Iterator[Any]:
        """Yields the jobs' results in the order of the jobs; ends what runs before it begins.

        Raises:
            ConfigError: No worker was left, and none started in time.
            FedclError: Several workers died of one job, or its own error.
        """
        waiting: list[tuple[float, int]] = []  # a heap, the longest job first
        done: dict[int, Any] = {}
        deaths: Counter[int] = Counter()
        suspects: set[int] = set()  # what dead workers had
        for place in self._places:
            place.jobs.clear()  # of a run that was not taken to its end
        admitted = 0
        for following in range(len(jobs)):
            while following not in done:
                while admitted < min(len(jobs), following + _AHEAD * self._workers):
                    heapq.heappush(waiting, (-jobs[admitted].cost, admitted))
                    admitted += 1
                self._hand_out(jobs, waiting, suspects)
                fronts = {place.jobs[0][0]: place for place in self._places if place.jobs}
                reference = self._wait(tuple(fronts))
                if reference not in fronts:
                    self._welcome(reference)
                    continue
                place = fronts[reference]
                index = place.jobs[0][1]
                try:
                    done[index] = _get(reference)
                    place.jobs.popleft()
                except _DEAD as error:
                    deaths[index] += 1
                    if deaths[index] == _DEATHS:
                        raise FedclError(
                            f"{_DEATHS} workers died of {jobs[index].name}: they were killed, or "
                            "memory ran out; then lower engine.workers, engine.block or "
                            "training.fold"
                        ) from error
                    for _, lost in self._bury(place):
                        suspects.add(lost)
                        heapq.heappush(waiting, (-jobs[lost].cost, lost))
            yield done.pop(following)

    def _hand_out(
        self, jobs: Sequence[Job], waiting: list[tuple[float, int]], suspects: set[int]
    ) -> None:
        """Gives jobs to the workers that have room, first to the one with the least to do.

        A suspect is alone at its worker, so that the next death is laid to nobody else.
        """
        while waiting:
            alone = waiting[0][1] in suspects
            room = [place for place in self._places if place.has_room(alone, suspects)]
            if not room:
                return
            place = min(room, key=lambda place: sum(jobs[index].cost for _, index in place.jobs))
            _, index = heapq.heappop(waiting)
            place.jobs.append((place.actor.run.remote(*jobs[index].arguments()), index))

    def _wait(self, results: Sequence[Any]) -> Any:
        """Returns the reference of the next result, or of the next worker that has started."""
        patience = None if results else self._patience
        ready, _ = ray.wait([*results, *self._starting], num_returns=1, timeout=patience)
        if not ready:
            raise ConfigError(
                f"{len(self._starting)} of engine.workers = {self._workers} did not start within "
                f"engine.patience = {self._patience:g} s: others have taken what they need of the "
                "Ray session, or it is slow; lower the first or raise the second"
            )
        return ready[0]

    def _start(self) -> None:
        actor = self._hire()
        self._starting[actor.ready.remote()] = actor

    def _welcome(self, reference: Any) -> None:
        """Takes a worker that has started, or has failed to, among the others."""
        actor = self._starting.pop(reference)
        try:
            _get(reference)
        except _DEAD as error:
            self._failures += 1
            if self._failures == _DEATHS or getattr(error, "actor_init_failed", False):
                raise FedclError(f"a worker cannot start: {error}") from error
            self._start()
        else:
            self._failures = 0
            self._places.append(_Place(actor))

    def _bury(self, place: _Place) -> Sequence[tuple[Any, int]]:
        """Replaces a dead worker and returns what it had."""
        self._places.remove(place)
        ray.kill(place.actor)  # it may be out of reach only
        self._start()
        return place.jobs

    def close(self) -> None:
        """Ends the workers, busy or not."""
        for actor in (*self._starting.values(), *(place.actor for place in self._places)):
            ray.kill(actor)
        self._starting, self._places = {}, []


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, FedclError):
            raise error.cause from error
        raise
