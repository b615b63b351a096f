"""The one loop: stages, rounds, evaluation, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fedcl.assembly import guarded, is_live, may_be_late, sealed
from fedcl.assessment import assess
from fedcl.audited import opened_watches, shown
from fedcl.config import Experiment
from fedcl.core.channel import mechanism
from fedcl.core.data.stream import Stream
from fedcl.core.door import Door
from fedcl.core.engine import Engine
from fedcl.core.exchange import Exchange
from fedcl.core.owed import owed
from fedcl.core.params import copy
from fedcl.core.site import Site
from fedcl.core.tree import settle
from fedcl.core.watch import Watch
from fedcl.core.watched import Watched
from fedcl.journal import Journal
from fedcl.ledgerfile import opened_ledger
from fedcl.privacy import spent_so_far
from fedcl.probe import Probe
from fedcl.progress import Progress
from fedcl.record import Record
from fedcl.repeated import Look, Repeats
from fedcl.rounds import ATTEMPTS, Rounds
from fedcl.survey import survey
from fedcl.waiting import await_data
from fedcl.workload import training_flops


@dataclass
class Loop:
    """The state of a run between its rounds.

    Attributes:
        experiment: What is run.
        site: Where it computes.
        journal: What it writes down, and where it goes on from.
        root: Secret below which noise and draws lie; None where nothing protects anybody.
        watch: Called after each round.
        engine_reason: Why this engine runs.
        accuracy: Of the last evaluation; None before the first.
        watches: Audits at work.
        look: Asks the model at the end of each stage, instead of evaluations.
    """

    experiment: Experiment
    site: Site
    journal: Journal
    root: bytes | None
    watch: Callable[[Progress], None] | None
    engine_reason: str = ""
    accuracy: float | None = None
    watches: Sequence[Watch] = ()
    look: Look | None = None

    def __post_init__(self) -> None:
        self.stream: Stream = self.site.population.stream  # type: ignore[attr-defined]
        self.method = self.experiment.method
        self.memories = self.journal.memories
        self.probe = Probe(self.experiment.engine, self.experiment, self.stream)

    def run(self) -> Record:
        """Runs from the checkpoint, or from the beginning, to the end."""
        params = copy(dict(self.site.model.named_parameters()))
        state = self.method.init(params)
        channel = [step.init() for step in self.experiment.channel]
        first = (0, 0)
        saved = self.journal.restore(self.site.device)
        if saved is not None:
            state, channel, first = saved
        ledger = self.journal.ledger
        again = Repeats(self.experiment.resolved, asked_again)
        self.watches = opened_watches(self.experiment, self.site, ledger, saved is None, again)
        engine = self.experiment.engine
        inner: Engine = self.probe if self.experiment.evaluation.decompose else engine
        inner = guarded(self.experiment, self.site, inner)
        if self.watches:
            inner = Watched(inner, self.watches, self.site.equal)
        door = self._door(inner, channel)
        door.committed = first
        try:
            engine.open(self.site, self._launch())
            self.engine_reason = (
                getattr(engine, "reason", "")
                or f"{self.experiment.names['engine']}: named in the config"
            )
            if saved is None:
                self._evaluate(state, 0, at_end=False, untrained=True)
            rounds = Rounds(
                self.experiment,
                self.site,
                door,
                self.journal.events,
                self.probe.drop,
                getattr(engine, "presence", None),
                {first: ledger.sittings * ATTEMPTS},
            )
            last = self.experiment.training.rounds
            for stage in range(first[0], self.stream.stages):
                if stage != first[0] or not first[1]:
                    await_data(self.experiment, self.site, engine, stage)
                for number in range(first[1] if stage == first[0] else 0, last):
                    state = self._round(state, rounds, stage, number)
        finally:
            engine.close()
        record = self.journal.finished()
        record.params = state.params
        return record

    def _door(self, engine: Engine, channel: list[Any]) -> Door:
        """Returns the door between server and clients.

        Args:
            engine: Runs the clients.
            channel: States of the channel's steps.
        """
        training = self.experiment.training
        return Door(
            sealed(self.experiment, engine),
            self.experiment.aggregation,
            self.experiment.channel,
            channel,
            self.memories,
            self.journal.words,
            self.experiment.seed,
            # A round that is left out or repeated for a count would tell it.
            training.minimum if mechanism(self.experiment.channel) is None else 0,
            training.availability,
            sampling=training.sampling,
            size=training.cohort,
            enough=training.enough,
            waits=is_live(self.experiment),
            root=self.root,
            ledger=self.journal.ledger,
            watches=self.watches,
            promise=self.site.promise,
            coverage=self.method.records(),
            owed=partial(owed, self.site) if may_be_late(self.experiment) else None,
        )

    def _launch(self) -> Mapping[str, Any]:
        """Returns what an engine may want to know: the resolved config and the stream's sizes."""
        folder = self.journal.record.folder
        return {
            **self.experiment.resolved,
            "clients": self.stream.clients,
            "stages": self.stream.stages,
            "flops": training_flops(self.experiment, self.site, self.stream),
            "folder": None if folder is None else str(folder.resolve()),
            "resolved": self.experiment.resolved,
            "method_object": self.method,
        }

    def _round(self, state: Any, rounds: Rounds, stage: int, number: int) -> Any:
        start = time.perf_counter()
        training, door = self.experiment.training, rounds.door
        last = number == training.rounds - 1
        done: list[Exchange] = []
        before = state
        if self.probe.due(stage, number) and not self._is_evaluated(stage, number - 1):
            self._evaluate(before, stage, at_end=False)
        state = rounds.ask(state, stage, number, done)
        # A resumed run gets its state from the checkpoint: the same bits, so the same layout too.
        state = settle(state, self.site.device)
        door.channel_state = settle(door.channel_state, self.site.device)
        finished = self.journal.finish_round(stage, done)
        trained = sum(len(e.answered) for e in done)
        speed = trained / max(1e-9, time.perf_counter() - start)
        if self._is_evaluated(stage, number):
            self._evaluate(state, stage, at_end=last)
        if last:
            shown(self.watches, self.experiment, self.site.model, state, stage)
        looks, costs = self.probe.assess(self.site, before, stage, finished)
        self.journal.record.evaluations.extend(looks)
        self.journal.record.costs.extend(costs)
        if last or self.journal.due:
            door.committed = (stage + 1, 0) if last else (stage, number + 1)
            self.journal.commit(state, door.channel_state, door.committed)
        if self.watch is not None:
            total = self.stream.stages * training.rounds
            self.watch(
                Progress(
                    stage,
                    self.stream.stages,
                    number + 1,
                    training.rounds,
                    finished,
                    total,
                    self.accuracy,
                    speed,
                    self.engine_reason,
                    *self.journal.traffic,
                    len(self.journal.rejected),
                    spent_so_far(self.experiment, self.journal.ledger),
                )
            )
        return state

    def _is_evaluated(self, stage: int, number: int) -> bool:
        """Returns whether the model is evaluated after a round: as planned, or to decompose it."""
        rounds = self.experiment.training.rounds
        planned = self.experiment.evaluation.is_planned(stage * rounds + number + 1, rounds)
        return planned or self.probe.due(stage, number)

    def _evaluate(self, state: Any, stage: int, at_end: bool, untrained: bool = False) -> None:
        if self.look is not None:
            if at_end:
                self.look.at(state, stage)
            return
        at = self.experiment, self.site, state, self.memories, stage, self.journal.rounds
        if self.experiment.evaluation.where == "clients":
            found = survey(*at)
            self.journal.take(found)
            accuracy = found.accuracy
        elif self.stream.elsewhere:
            accuracy = None  # clients are protected: nobody tells how good a model is
        else:
            rows, accuracy = assess(*at, at_end, untrained)
            self.journal.record.evaluations.extend(rows)
        self.accuracy = self.accuracy if untrained else accuracy


def asked_again(experiment: Experiment, site: Site, look: Look) -> None:
    """Runs an experiment without files, and looks at it instead of evaluating it."""
    torch.set_num_threads(1)  # each thread has its own number
    protection, seed = mechanism(experiment.channel), experiment.seed
    with opened_ledger(None, protection, seed, None, site) as (root, ledger):
        journal = Journal(experiment, None, None, ledger)
        Loop(experiment, site, journal, root, None, look=look).run()
