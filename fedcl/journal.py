"""What a run writes down on its way, and how it goes on from there: tables, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedcl import __version__
from fedcl.config import Experiment
from fedcl.core import wire
from fedcl.core.accounting.ledger import Ledger
from fedcl.core.channel import mechanism
from fedcl.core.errors import ResumeError
from fedcl.core.exchange import Exchange
from fedcl.core.generative.samples import few_of_each
from fedcl.core.memories import Memories
from fedcl.core.seeds import seed_of
from fedcl.core.tree import settle
from fedcl.core.vocabulary import vocabulary
from fedcl.privacy import privacy_rows
from fedcl.record import (
    COSTS,
    EVALUATIONS,
    REJECTED,
    Record,
    Row,
    export,
    write_rows,
    write_samples,
)
from fedcl.store import Store, scratch
from fedcl.survey import Survey


@dataclass
class Journal:
    """The tables of a run and its clients' memories; what is committed is not held in RAM.

    Attributes:
        experiment: The experiment.
        folder: The run's folder, or None.
        store: Its checkpoint, or None.
        rounds: Finished rounds of the whole run.
        events: Skipped and repeated rounds, and nodes that a live federation refused.
        rejected: Rows of rejected.csv.
        traffic: Bytes from all clients, and to them.
        ledger: What was released under differential privacy.
        record: Rows since the last commit; all of them without a store, and once it is `finished`.
        memories: What the clients remember.
    """

    experiment: Experiment
    folder: Path | None
    store: Store | None
    ledger: Ledger = field(default_factory=Ledger)
    rounds: int = 0
    events: list[dict[str, int | str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rejected: list[Row] = []
        self.record = Record(folder=self.folder)
        self.words = vocabulary(self.experiment.method)
        shelf = scratch() if self.store is None else self.store.memories
        self.memories = Memories(shelf, self.words, self.experiment.memory.cache)
        self.traffic = (0, 0)
        self._spent = 0.0
        self._started = self._committed = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time of the whole run, earlier sittings included."""
        return self._spent + time.perf_counter() - self._started

    def events_by_kind(self) -> dict[str, list[dict[str, int | str]]]:
        """Returns what summary.json says of what happened beside the rounds themselves."""
        refused = [event for event in self.events if event["what"] == "refused"]
        others = [event for event in self.events if event["what"] != "refused"]
        told = {"refused_nodes": refused} if refused else {}
        return {"skipped_or_repeated_rounds": others, **told}

    @property
    def due(self) -> bool:
        """Whether the last commit is long enough ago."""
        return time.perf_counter() - self._committed >= self.experiment.checkpoint.seconds

    def finish_round(self, stage: int, exchanges: Sequence[Exchange]) -> int:
        """Books a round's exchanges and returns how many rounds are done."""
        self.rounds += 1
        for exchange in exchanges:
            self._book(stage, exchange)
        return self.rounds

    def _book(self, stage: int, exchange: Exchange) -> None:
        for client, reason in sorted(exchange.rejected.items()):
            at = exchange.position
            values = (self.rounds, stage, at.exchange, exchange.program, client, reason)
            self.rejected.append(dict(zip(REJECTED, values, strict=True)))
        up, down = self.traffic
        self.traffic = up + sum(exchange.up.values()), down + sum(exchange.down.values())
        blank = dict.fromkeys(COSTS) | {"round": self.rounds, "stage": stage}
        for direction, sizes in (("down", exchange.down), ("up", exchange.up)):
            for kind, size in sorted(sizes.items()):
                row = {**blank, "direction": direction, "payload": kind, "bytes": size}
                self.record.costs.append(row)
        self.record.costs.append(
            {
                **blank,
                "direction": "",
                "payload": exchange.program,
                "steps": exchange.steps,
                "examples": exchange.examples,
                "padded": exchange.padded,
                "seconds": exchange.seconds,
            }
        )

    def take(self, survey: Survey) -> None:
        """Books what clients found on their own held-out examples."""
        self.record.evaluations.extend(survey.rows)
        self.record.costs.extend(survey.costs)
        self.rejected.extend(survey.rejected)

    def commit(self, state: Any, channel: Sequence[Any], following: tuple[int, int]) -> None:
        """Writes everything since the last commit in one transaction.

        Args:
            state: The method's state.
            channel: States of the channel's steps.
            following: Stage and round that come next.
        """
        if self.store is None:
            return
        if following[1] == 0:
            self._keep_samples(state, following[0] - 1)
        self.memories.write()
        self.store.commit(
            {
                "version": __version__,
                "config": self.experiment.resolved,
                "stage": following[0],
                "round": following[1],
                "rounds": self.rounds,
                "seconds": self.seconds,
                "events": self.events,
                "rejected": self.rejected,
                "releases": self.ledger.releases,
            },
            wire.dumps((state, tuple(channel)), self.words),
            self.record.evaluations,
            self.record.costs,
        )
        self.record.evaluations, self.record.costs = [], []
        self._committed = time.perf_counter()
        if following[1] == 0:
            self.export()

    def _keep_samples(self, state: Any, stage: int) -> None:
        """Writes a few of the synthetic images that a method has at a stage's end, if it has any.

        That is before the stage is committed: a run that is killed in between makes them again.
        """
        seed = seed_of(self.experiment.seed, "samples", stage)
        found = self.experiment.method.synthetic(state, seed)
        if found is not None and len(found) and self.folder is not None:
            rows = few_of_each(found.y, seed).to(found.y.device)
            write_samples(self.folder, stage, found.take(rows))

    def export(self) -> None:
        """Writes the tables into the run's folder, as of the last commit."""
        if self.store is not None and self.folder is not None:
            evaluations, costs = self._rows("evaluations"), self._rows("costs")
            own, promise = mechanism(self.experiment.channel), self.experiment.promise
            privacy = privacy_rows(self._rows("costs"), self.ledger, own, promise)
            export(self.folder, evaluations, costs, privacy)
            if self.rejected:
                write_rows(self.folder / "rejected.csv", REJECTED, self.rejected)

    def finished(self) -> Record:
        """Returns the record of a run whose last round is committed, with all of its rows."""
        if self.store is not None:
            self.record.evaluations = list(self._rows("evaluations"))
            self.record.costs = list(self._rows("costs"))
        return self.record

    def _rows(self, table: str) -> Iterable[Row]:
        assert self.store is not None
        return self.store.rows(table, {"evaluations": EVALUATIONS, "costs": COSTS}[table])

    def restore(self, device: torch.device) -> tuple[Any, list[Any], tuple[int, int]] | None:
        """Returns state, channel states, and next stage and round of the last commit, or None.

        Raises:
            ResumeError: The checkpoint is damaged, or of another version.
        """
        saved = None if self.store is None else self.store.saved()
        if self.store is None or saved is None:
            return None
        try:
            state, channel = wire.loads(saved.state, self.words)
        except (ValueError, KeyError, TypeError) as error:
            raise ResumeError(
                f"the checkpoint in {self.folder} cannot be read, being damaged or written by "
                f"another version of fedcl: {error}; resume with that version, remove the "
                "folder and start anew, or name another --out"
            ) from error
        self.rounds, self._spent, self.events = saved.rounds, saved.seconds, saved.events
        self.rejected = saved.rejected
        sent = {"up": 0, "down": 0}
        for row in self._rows("costs"):
            if row["direction"] in sent:
                sent[row["direction"]] += row["bytes"]
        self.traffic = sent["up"], sent["down"]
        if self.ledger.releases < (self.store.meta("releases") or 0):
            raise ResumeError(
                f"the privacy ledger in {self.folder} has lost releases that this run made: put "
                "back checkpoint/ledger.sqlite, or name another --out to start anew"
            )
        channel = settle(list(channel), device)
        return settle(state, device), channel, (saved.stage, saved.round)
