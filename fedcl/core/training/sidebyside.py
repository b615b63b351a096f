"""Several runs side by side: where all of them train, they train as one batched computation.

Each run is straight-line code in a thread of its own, of which one goes on at a time. Where a run
trains a block of clients it waits until every other run does so too or has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fedcl.core.block import Batching, Block
from fedcl.core.client import Program
from fedcl.core.local import Local, Trainer
from fedcl.core.trained import BlockReply
from fedcl.core.training.jointly import NUMBERS, Asked, alike, train_jointly

T = TypeVar("T")


@dataclass
class Meeting:
    """Where runs wait for each other.

    Attributes:
        runs: Runs that have not ended.
        turn: Whoever holds it goes on.
        waiting: Blocks to train.
        joined: Blocks that were trained with those of other runs.
    """

    runs: int
    turn: threading.Condition = field(default_factory=threading.Condition)
    waiting: list[Asked] = field(default_factory=list)
    joined: int = 0

    def train(self, asked: Asked) -> BlockReply:
        """Waits for the others, and returns what a block's training gives; with the turn held."""
        self.waiting.append(asked)
        self.go_on()
        while asked.answer is None and asked.error is None:
            self.turn.wait()
        if asked.error is not None:
            raise asked.error
        assert asked.answer is not None
        return asked.answer

    def go_on(self) -> None:
        """Trains what waits, once nobody is missing."""
        if not self.waiting or len(self.waiting) < self.runs:
            return
        waiting, self.waiting = self.waiting, []
        while waiting:
            first = waiting[0]
            own = [one for one in waiting if alike(first, one)] or [first]
            size = sum(value.numel() for value in first.message.params.values())
            own = own[: max(1, NUMBERS // max(1, size * len(first.block)))]
            waiting = [one for one in waiting if not any(one is other for other in own)]
            if len(own) == 1 or not train_jointly(own):
                for one in own:
                    one.alone()
            else:
                self.joined += len(own)
        self.turn.notify_all()

    def leave(self) -> None:
        """Ends a run."""
        self.runs -= 1
        self.go_on()


@dataclass(frozen=True)
class Joined:
    """A trainer whose blocks wait for those of other runs.

    Attributes:
        inner: The run's own trainer.
        meeting: Where they wait.
    """

    inner: Trainer
    meeting: Meeting

    @property
    def private(self) -> bool:
        """Whether the inner one's replies satisfy example-level differential privacy."""
        return self.inner.private

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError when it cannot train on inputs of this shape (without the batch)."""
        self.inner.check(shape)

    def scaled(self, factor: float) -> Joined:
        """Returns the trainer with its learning rate times `factor`."""
        return replace(self, inner=self.inner.scaled(factor))

    def __call__(self, local: Local) -> Program[Any]:
        """Returns the program that trains one client."""
        return self.inner(local)

    def block(self, local: Local, block: Block, message: Any, batching: Batching) -> BlockReply:
        """Trains several clients with those of other runs."""
        return self.meeting.train(Asked(self.inner, local, block, message, batching))


def side_by_side(runs: Sequence[Callable[[Meeting], T]]) -> list[T]:
    """Returns the results of runs that meet where they train.

    Raises:
        Exception: Of the first run that failed; the others went on without it.
    """
    meeting = Meeting(len(runs))
    found: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def work(number: int) -> None:
        with meeting.turn:
            try:
                found[number] = runs[number](meeting)
            except BaseException as error:
                errors[number] = error
            finally:
                meeting.leave()

    threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [found[number] for number in range(len(runs))]
