"""Workers on Ray that take letters in blocks and let nodes answer them.

Blocks become smaller towards the end of a send, so that workers end at the same time; what a node
answers does not depend on its block. A worker that dies is replaced and its letters are handed out
again, one by one; a letter that has cost several workers is answered with an error.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import ray
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from ray import cloudpickle
from ray.exceptions import RayActorError, RayTaskError

from fedcl.core.errors import FedclError
from fedcl.flower.grid.crew import Desk
from fedcl.flower.grid.letters import Kept, Letter, failure
from fedcl.flower.grid.node import Facts, answer
from fedcl.flower.ray_session import start_ray

_DEPTH = 2  # blocks that a worker has: it need not wait until its last one is taken
_LETTERS = 32  # of a block, at most
_BYTES = 64_000_000  # of a block's letters, unless it is a single one
_DEATHS = 3  # workers that one letter may cost


class _Worker:
    """What runs in a worker process."""

    def __init__(self, paths: Sequence[str], app: bytes, facts: Facts) -> None:
        sys.path.extend(path for path in paths if path not in sys.path)
        self._app, self._facts = cloudpickle.loads(app), facts

    def answer(
        self, shared: Sequence[bytes], letters: Sequence[Letter], kept: Mapping[int, Kept]
    ) -> tuple[list[Any], dict[int, Kept]]:
        replies, now = answer(self._app, self._facts, shared, letters, kept)
        # As arrays they go into Ray's object store, and come out of it, without a copy more.
        return [np.frombuffer(reply, np.uint8) for reply in replies], now


@dataclass(eq=False)
class _Errand:
    """A letter, the records that it shares with others, and the workers that died of it."""

    letter: Letter
    shared: Any
    deaths: int = 0


@dataclass(eq=False)
class _Block:
    """Letters that a worker has."""

    errands: list[_Errand]

    @property
    def letters(self) -> list[Letter]:
        return [errand.letter for errand in self.errands]


@dataclass(eq=False)
class _Place:
    """A worker and its blocks; the first one is under way."""

    actor: Any
    blocks: deque[_Block] = field(default_factory=deque)


class Workers:
    """A crew on Ray; one thread hands blocks out and takes results in, and nothing polls."""

    def __init__(
        self, app: ClientApp, facts: Facts, desk: Desk, workers: int, gpus: float = 0.0
    ) -> None:
        """Starts workers, and Ray unless this process has it.

        Args:
            app: The client app.
            facts: What every node knows.
            desk: Where replies go to.
            workers: How many.
            gpus: Share of a GPU that each one has.
        """
        self._desk, self._started = desk, start_ray(workers)
        # Ray counts CPUs to share them out; who asks for workers has decided that already.
        kind: Any = ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy="SPREAD")(_Worker)
        paths = [os.path.abspath(path) for path in sys.path]
        packed: bytes = cloudpickle.dumps(app)  # type: ignore[no-untyped-call]
        self._hire = partial(kind.remote, paths, packed, facts)
        self._places = [_Place(self._hire()) for _ in range(workers)]
        self._waiting: deque[_Errand] = deque()
        self._busy: set[int] = set()
        self._inbox: SimpleQueue[partial[None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="fedcl-grid", daemon=True)
        self._thread.start()

    def share(self, records: tuple[bytes, ...]) -> Any:
        """Puts the records into Ray's object store, once for all workers."""
        return ray.put(records) if records else ()

    def hand(self, shared: Any, letters: Sequence[Letter], until: float | None) -> None:
        """Queues letters; who waits for the replies withdraws them when the time is up."""
        self._inbox.put(partial(self._queue, [_Errand(letter, shared) for letter in letters]))

    def withdraw(self, ids: set[str]) -> None:
        """Drops the letters with these ids, unless a worker has them already."""
        self._inbox.put(partial(self._drop, ids))

    def close(self) -> None:
        """Ends the workers, busy or not, and Ray when it was started for them."""
        self._inbox.put(None)
        self._thread.join()
        if ray.is_initialized():
            for place in self._places:
                ray.kill(place.actor)
            if self._started:
                ray.shutdown()

    def _work(self) -> None:
        """Does what comes, in the order in which it comes: the body of the thread."""
        try:
            while (event := self._inbox.get()) is not None:
                event()
                self._fill()
        except BaseException as error:
            self._desk.fail(error)

    def _queue(self, errands: Sequence[_Errand]) -> None:
        self._waiting.extend(errands)

    def _drop(self, ids: set[str]) -> None:
        self._waiting = deque(e for e in self._waiting if e.letter.id not in ids)

    def _fill(self) -> None:
        """Hands blocks to the workers that have the fewest."""
        while self._waiting:
            place = min(self._places, key=lambda place: len(place.blocks))
            block = _Block(self._next() if len(place.blocks) < _DEPTH else [])
            if not block.errands:
                return
            place.blocks.append(block)
            self._busy.update(letter.node for letter in block.letters)
            reference = place.actor.answer.remote(
                block.errands[0].shared, block.letters, self._desk.kept(block.letters)
            )
            reference.future().add_done_callback(partial(self._done, place, block))

    def _next(self) -> list[_Errand]:
        """Takes the next letters of one send, in order, but for nodes that are busy."""
        room = min(_LETTERS, -(-len(self._waiting) // (_DEPTH * len(self._places))))
        taken: list[_Errand] = []
        passed: list[_Errand] = []
        size = 0
        while self._waiting and len(taken) < room:
            errand = self._waiting[0]
            first = taken[0] if taken else errand
            alone = first is not errand and (first.deaths or errand.deaths)
            size += errand.letter.size
            if alone or errand.shared is not first.shared or (taken and size > _BYTES):
                break
            self._waiting.popleft()
            if errand.letter.node in self._busy:
                passed.append(errand)
            else:
                taken.append(errand)
        self._waiting.extendleft(reversed(passed))
        return taken

    def _done(self, place: _Place, block: _Block, future: Future[Any]) -> None:
        """Runs in a thread of Ray's, so it only leaves word."""
        self._inbox.put(partial(self._take, place, block, future))

    def _take(self, place: _Place, block: _Block, future: Future[Any]) -> None:
        """Takes what has become of a block."""
        if block not in place.blocks:
            return  # its worker has died, and the block is no longer one
        error = future.exception()
        if error is None:
            place.blocks.remove(block)
            replies, kept = future.result()
            self._desk.deliver(block.letters, [memoryview(reply) for reply in replies], kept)
            self._busy.difference_update(kept)
        elif isinstance(error, RayTaskError) or getattr(error, "actor_init_failed", False):
            raise FedclError(f"a worker cannot run the client app: {error}") from error
        elif isinstance(error, RayActorError) and ray.is_initialized():
            self._replace(place)
        else:
            raise FedclError(f"Ray has ended under the workers: {error}") from error

    def _replace(self, place: _Place) -> None:
        """Starts a worker in the place of a dead one, whose letters wait again."""
        for errand in place.blocks[0].errands:
            errand.deaths += 1
        again = [errand for block in place.blocks for errand in block.errands]
        self._busy.difference_update(errand.letter.node for errand in again)
        self._waiting.extendleft(reversed([e for e in again if e.deaths < _DEATHS]))
        place.blocks.clear()
        place.actor = self._hire()
        for letter in (errand.letter for errand in again if errand.deaths >= _DEATHS):
            reason = f"{_DEATHS} workers have died of this message to node {letter.node}"
            reply = failure(letter.metadata, ErrorCode.CLIENT_APP_CRASHED, reason)
            kept = self._desk.kept([letter])
            self._desk.deliver([letter], [reply], kept)
