"""Clients whose own data arrive while a run goes on: on devices, or simulated with their folders.

The server knows of their data nothing but the label space, so its stream has no rows
(`Stream.elsewhere`). What a client has, and of what task, is in its diary
(`fedcl.core.data.diary`): what it first learns at stage t is its part of task t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedcl.core.block import Block, block_of
from fedcl.core.client import Client
from fedcl.core.data.arrival import Arrival, Source
from fedcl.core.data.diary import Diary, Entry, decided_at, read_diary
from fedcl.core.data.fetch import fetch
from fedcl.core.data.ownstream import own_stream
from fedcl.core.data.stream import Stream
from fedcl.core.data.table import IntArray
from fedcl.core.errors import AbsentError, ConfigError, ResumeError
from fedcl.core.task import ClientTask, Examples, class_mask
from fedcl.core.tree import move, settle

_END = 2**31  # a round after all rounds of a stage


@dataclass(frozen=True)
class Arriving:
    """Clients that learn what arrives.

    Attributes:
        stream: The stream as the server knows it: without rows.
        source: Where examples arrive.
        folder: Holds a folder for each client, in which it keeps its diary; None where nobody is
            asked anything.
        dtype: Type of the inputs.
        device: Where the examples go.
        round: The round of a stage that is asked about; by default its end.
    """

    stream: Stream
    source: Source
    folder: Path | None
    dtype: torch.dtype
    device: torch.device
    round: int = _END
    poison: None = field(default=None, init=False)  # attackers are simulated on known data alone

    def at(self, round: int) -> Arriving:
        """Returns the population as of a round of a stage."""
        return replace(self, round=round)

    def on(self, device: torch.device) -> Arriving:
        """Returns the population whose examples go to a device."""
        return replace(self, device=device)

    def client(self, id: int, stage: int, model: nn.Module, state: Any, seed: int) -> Client:
        """Returns a client for one exchange.

        Raises:
            AbsentError: Nothing has arrived that it could learn.
            ResumeError: What it has learnt already is gone or has been changed.
        """
        taken = self._taken(id, stage)
        if not taken:
            raise AbsentError(f"client {id}: {_NOTHING}")
        table = self._load(id, taken[-1]).train
        rows = fetch(table, np.arange(len(table.labels)), None)
        data = settle(Examples(rows.x.to(self.dtype), rows.y), self.device)
        task = move(self._task(taken, stage), self.device)
        return Client(id, model, data, task, settle(state, self.device), seed)

    def block(
        self,
        ids: Sequence[int],
        stage: int,
        model: nn.Module,
        states: Sequence[Any],
        seeds: Sequence[int],
    ) -> Block:
        """Returns several clients of one exchange."""
        each = zip(ids, states, seeds, strict=True)
        return block_of([self.client(id, stage, model, state, seed) for id, state, seed in each])

    def absent(self, ids: Sequence[int], stage: int) -> Mapping[int, str]:
        """Returns which clients have nothing to learn at a stage, and why."""
        return {id: _NOTHING for id in ids if not self._taken(id, stage)}

    def sizes(self, ids: Sequence[int], stage: int) -> IntArray:
        """Returns how many examples each client learns, where it has decided that; else 0."""
        found = np.zeros(len(ids), dtype=np.int64)
        for k, id in enumerate(ids):
            taken = self._diary(id).until(self._place(stage))
            found[k] = taken[-1].rows if taken else 0
        return found

    def stream_of(self, id: int, stage: int) -> Stream:
        """Returns the stream as a client knows it as of a stage: with its own rows alone."""
        diary = self._diary(id)
        # Before the first round nothing of a stage is known: only asking for it decides.
        taken = diary.until((stage, -1) if self.round < 0 else self._place(stage))
        return own_stream(self.stream, id, taken, lambda entry: self._load(id, entry))

    def ready(self, id: int, stage: int) -> bool:
        """Returns whether a client has new data for a stage, or has begun with it already."""
        diary = self._diary(id)
        begun = any(entry.stage >= stage for entry in diary.entries)
        return begun or bool(diary.fresh(self.source, id))

    def arrived(self, id: int) -> int:
        """Returns how many arrivals a client has begun with, or could begin with."""
        diary = self._diary(id)
        return len(diary.entries) + len(diary.fresh(self.source, id))

    def _place(self, stage: int) -> tuple[int, int]:
        """Returns where in a run decisions are made: with borders once a stage."""
        return stage, 0 if self.stream.borders else max(0, self.round)

    def _own(self, id: int) -> Path:
        if self.folder is None:
            raise ConfigError(
                "clients whose data arrive must keep a diary of them: give them a folder"
            )
        return self.folder / str(id)

    def _diary(self, id: int) -> Diary:
        """Returns what a client has decided so far; reading decides nothing."""
        return read_diary(self._own(id), self.source, id)

    def _taken(self, id: int, stage: int) -> tuple[Entry, ...]:
        return decided_at(self._own(id), self.source, id, self._place(stage))

    def _load(self, id: int, entry: Entry) -> Arrival:
        try:
            found = self.source.load(id, entry.name)
        except ConfigError as error:
            raise ResumeError(
                f"client {id} has learnt arrival {entry.name!r}, which cannot be read any more "
                f"({error}): put it back"
            ) from error
        if found.digest != entry.digest:
            raise ResumeError(
                f"client {id} has learnt arrival {entry.name!r}, which is another one now: put it "
                "back, and give new data a name of their own"
            )
        return found

    def _task(self, taken: Sequence[Entry], stage: int) -> ClientTask:
        """Returns the masks of what a client learns now, and of all that it has met."""
        last, total = taken[-1], self.stream.classes
        seen = sorted({label for entry in taken for label in entry.classes})
        return ClientTask(
            torch.tensor(len(taken) - 1),
            torch.tensor(last.stage),
            class_mask(last.classes, total),
            class_mask(seen, total),
            self.stream.head(last.stage, stage),
        )


_NOTHING = "no data have arrived that it could learn"
