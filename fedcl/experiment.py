"""The one loop: stages, rounds, evaluation, record, checkpoint."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedcl import __version__
from fedcl.assessment import assess
from fedcl.config import Experiment
from fedcl.core import wire
from fedcl.core.engine import Engine, Site
from fedcl.core.errors import ConfigError, FedclError, ResumeError
from fedcl.core.federation import Door, Exchange, Federation, TooFewReplies
from fedcl.core.model import check_model
from fedcl.core.params import copy
from fedcl.core.population import Memories, Simulated, sample
from fedcl.core.seeds import seed_of
from fedcl.core.stream import Stream
from fedcl.core.tree import settle
from fedcl.record import Record, Row, Store, check_same, export, finish, open_folder, write_text
from fedcl.summary import privacy_rows, read_reference, summarise

_ATTEMPTS = 20


@dataclass(frozen=True)
class Progress:
    """What a watcher is told after each round.

    Attributes:
        stage: Stage of the round.
        stages: Number of stages.
        round: Finished rounds of this stage.
        rounds: Rounds of a stage.
        done: Finished rounds of the whole run.
        total: Rounds of the whole run.
        accuracy: Mean accuracy over the tasks met so far, when last evaluated, or None.
        clients_per_second: Clients trained per second in this round.
        engine: Why this engine.
    """

    stage: int
    stages: int
    round: int
    rounds: int
    done: int
    total: int
    accuracy: float | None
    clients_per_second: float
    engine: str


def build_site(experiment: Experiment) -> Site:
    """Returns what is needed where clients run: a pure function of the config, on whatever machine.

    Raises:
        ConfigError: Data, stream and model do not go together.
    """
    device = choose_device(experiment.training.device)
    dtype = getattr(torch, experiment.training.dtype)
    dataset = experiment.dataset.load()
    stream = experiment.stream.build(dataset, experiment.seed, experiment.names["stream"])
    model = build_model(experiment, dataset.shape, dataset.classes).to(device=device, dtype=dtype)
    return Site(
        population=Simulated(stream, dtype, device),
        model=model,
        trainer=experiment.training.local,
        channel=experiment.channel,
        seed=experiment.seed,
        fold=experiment.training.fold,
        equal=experiment.aggregation.weights == "equal",
        device=device,
    )


def check_minimum(experiment: Experiment, stream: Stream) -> None:
    """Raises ConfigError when a stage has fewer clients than the replies that a round needs."""
    minimum = experiment.training.minimum
    for stage in range(stream.stages if minimum > 1 else 0):
        members = len(stream.members(stage))
        if members < minimum:
            raise ConfigError(
                f"[training] minimum = {minimum} replies cannot come from the {members} clients "
                f"with data at stage {stage}: lower it"
            )


def build_model(experiment: Experiment, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Returns the freshly initialised model: a function of the experiment's seed.

    Raises:
        ConfigError: The model does not fit the data, or mixes examples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(experiment.seed, "model"))
        try:
            model = experiment.model.build(shape, classes)
            check_model(model)
            with torch.no_grad():
                found = tuple(model(torch.zeros(2, *shape)).shape)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"[model] {error}") from error
    if found != (2, classes):
        raise ConfigError(
            f"[model] two inputs of shape {shape} give an output of shape {found}, not the logits "
            f"of shape {(2, classes)}: end it with a layer over all {classes} classes"
        )
    return model


def choose_device(name: str) -> torch.device:
    """Returns the device of a config's name; raises ConfigError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError('training.device = "cuda", but PyTorch finds no GPU: use "auto" or "cpu"')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def run(
    experiment: Experiment,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    watch: Callable[[Progress], None] | None = None,
    command: tuple[str, ...] = (),
) -> Record:
    """Runs an experiment and returns its record.

    Args:
        experiment: What to run.
        out: Folder for its files; None writes nothing.
        resume: Go on from the folder's checkpoint, to the same bits as an uninterrupted run.
        watch: Called after each round.
        command: The command that repeats the run, for the summary.

    Raises:
        ConfigError: The experiment cannot be run as it is, or the folder is in use.
        ResumeError: The checkpoint belongs to another config or version.
        ClientError: A client's program failed.
    """
    # One thread everywhere: one and two threads give different bits.
    torch.set_num_threads(1)
    site = build_site(experiment)
    stream: Stream = site.population.stream  # type: ignore[attr-defined]
    check_minimum(experiment, stream)
    joint = read_reference(experiment.evaluation.reference, experiment, stream)
    folder = None if out is None else Path(out)
    new = folder is not None and not folder.exists()
    if folder is not None:
        open_folder(folder, resume)
    empty = folder is not None and not any(folder.iterdir())
    store = None
    try:
        if folder is not None:
            store = Store(folder / "checkpoint")
            check_same(store, experiment.resolved, __version__)
            write_text(folder / "config.toml", experiment.toml)
        loop = _Loop(experiment, site, folder, store, watch)
        record = loop.run()
        record.summary = {
            **summarise(experiment, loop.stream, record, joint),
            "engine": experiment.names["engine"],
            "engine_reason": loop.engine_reason,
            "rounds": loop.rounds,
            "skipped_or_repeated_rounds": loop.events,
            "seconds": loop.seconds,
            "command": list(command),
        }
        if folder is not None:
            export(record, privacy_rows(record.costs))
            finish(record)
    except Exception:
        if folder is not None and empty and (store is None or store.saved() is None):
            # Nothing was committed: a run that could not begin leaves nothing behind.
            if store is not None:
                store.close()
            shutil.rmtree(folder)
            if not new:
                folder.mkdir()
        raise
    finally:
        if store is not None:
            store.close()
    return record


@dataclass
class _Loop:
    """The state of a run between its rounds."""

    experiment: Experiment
    site: Site
    folder: Path | None
    store: Store | None
    watch: Callable[[Progress], None] | None
    rounds: int = 0
    events: list[dict[str, int | str]] = field(default_factory=list)
    engine_reason: str = ""
    spent: float = 0.0

    def __post_init__(self) -> None:
        self.stream: Stream = self.site.population.stream  # type: ignore[attr-defined]
        self.method = self.experiment.method
        self.memories = Memories()
        self.words = wire.vocabulary(self.method)
        self.started = time.perf_counter()
        self.committed = time.perf_counter()
        self.record = Record(folder=self.folder)
        self.written = (0, 0)
        self.dirty: dict[int, Any] = {}
        self.accuracy: float | None = None

    @property
    def seconds(self) -> float:
        """Wall time of the whole run, earlier sittings included."""
        return self.spent + time.perf_counter() - self.started

    def run(self) -> Record:
        """Runs from the checkpoint, or from the beginning, to the end."""
        params = copy(dict(self.site.model.named_parameters()))
        state = self.method.init(params)
        channel = [step.init() for step in self.experiment.channel]
        first = (0, 0)
        saved = self.store.saved() if self.store is not None else None
        if saved is not None:
            state, channel, first = self._restore(saved)
        else:
            self._evaluate(state, 0, at_end=False, untrained=True)
        engine = self.experiment.engine
        door = Door(
            engine,
            self.experiment.aggregation,
            self.experiment.channel,
            channel,
            self.memories,
            self.words,
            self.experiment.seed,
            self.experiment.training.minimum,
            self.experiment.training.availability,
        )
        door.committed = first
        engine.open(self.site, self._launch())
        self.engine_reason = (
            getattr(engine, "reason", "")
            or f"{self.experiment.names['engine']}: named in the config"
        )
        try:
            rounds = self.experiment.training.rounds
            for stage in range(first[0], self.stream.stages):
                for number in range(first[1] if stage == first[0] else 0, rounds):
                    state = self._round(state, door, stage, number)
        finally:
            engine.close()
        self.record.params = state.params
        return self.record

    def _launch(self) -> Mapping[str, Any]:
        """Returns what an engine may want to know: the resolved config and the sizes of the stream."""
        folder = None if self.folder is None else str(self.folder.resolve())
        return {
            **self.experiment.resolved,
            "clients": self.stream.clients,
            "stages": self.stream.stages,
            "folder": folder,
            "resolved": self.experiment.resolved,
            "method_object": self.method,
        }

    def _round(self, state: Any, door: Door, stage: int, number: int) -> Any:
        start = time.perf_counter()
        training = self.experiment.training
        last = number == training.rounds - 1
        seed = seed_of(self.experiment.seed, "cohort", stage, number)
        members = self.stream.members(stage)
        cohort = sample(members, training.cohort, training.sampling, seed, number)
        done: list[Exchange] = []
        method = self.method
        if number == 0 and self.stream.borders:
            state = self._step(method.begin_task, state, door, stage, -1, cohort, done)
        state = self._step(method.round, state, door, stage, number, cohort, done)
        if last and self.stream.borders:
            state = self._step(method.end_task, state, door, stage, training.rounds, cohort, done)
        # A resumed run gets its state from the checkpoint: the same bits, so the same layout too.
        state = settle(state, self.site.device)
        door.channel_state = settle(door.channel_state, self.site.device)
        self.rounds += 1
        self.dirty.update(self.memories.commit())
        self._book(done, stage)
        trained = sum(len(e.answered) for e in done)
        speed = trained / max(1e-9, time.perf_counter() - start)
        every = self.experiment.evaluation.every
        if last or (every and self.rounds % every == 0):
            self._evaluate(state, stage, at_end=last)
        now = time.perf_counter()
        if last or now - self.committed >= self.experiment.checkpoint.seconds:
            self._commit(state, door, (stage + 1, 0) if last else (stage, number + 1))
        if self.watch is not None:
            total = self.stream.stages * training.rounds
            self.watch(
                Progress(
                    stage,
                    self.stream.stages,
                    number + 1,
                    training.rounds,
                    self.rounds,
                    total,
                    self.accuracy,
                    speed,
                    self.engine_reason,
                )
            )
        return state

    def _step(
        self,
        step: Callable[[Any, Federation], Any],
        state: Any,
        door: Door,
        stage: int,
        number: int,
        cohort: tuple[int, ...],
        done: list[Exchange],
    ) -> Any:
        """Runs one moment of a method; a round with too few replies is skipped or repeated, and the record says so."""
        training = self.experiment.training
        moment = number in (-1, training.rounds)
        for attempt in range(_ATTEMPTS):
            door.exchanges = []
            before = dict(self.memories.pending)
            fed = Federation(
                self._info(stage),
                number,
                training.rounds,
                cohort,
                self.stream.members(stage),
                self.site.model,
                self.site.device,
                attempt,
                _door=door,
            )
            try:
                after = step(state, fed)
            except TooFewReplies as error:
                self.memories.pending = before
                # What begins or ends a stage happens once and cannot be left out.
                happened = "repeated" if moment or training.shortfall == "repeat" else "skipped"
                self.events.append(
                    {"stage": stage, "round": number, "what": happened, "why": str(error)}
                )
                if happened == "skipped":
                    return state
                continue
            done.extend(door.exchanges)
            return after
        raise FedclError(
            f"stage {stage}, round {number}: fewer than training.minimum = {training.minimum} clients answered in "
            f"{_ATTEMPTS} attempts; lower it or raise training.availability"
        )

    def _info(self, stage: int) -> Any:
        if getattr(self, "_known", (None, None))[0] != stage:
            self._known = (stage, settle(self.stream.info(stage), self.site.device))
        return self._known[1]

    def _book(self, exchanges: list[Exchange], stage: int) -> None:
        blank = {
            "round": self.rounds,
            "stage": stage,
            "client": None,
            "steps": None,
            "examples": None,
            "seconds": None,
        }
        for exchange in exchanges:
            for direction, sizes in (("down", exchange.down), ("up", exchange.up)):
                for kind, size in sorted(sizes.items()):
                    self.record.costs.append(
                        {**blank, "direction": direction, "payload": kind, "bytes": size}
                    )
            work = {
                "steps": exchange.steps,
                "examples": exchange.examples,
                "seconds": exchange.seconds,
            }
            self.record.costs.append(
                {**blank, "direction": "", "payload": exchange.program, "bytes": None, **work}
            )

    def _evaluate(self, state: Any, stage: int, at_end: bool, untrained: bool = False) -> None:
        rows, accuracy = assess(
            self.experiment,
            self.stream,
            self.site,
            state,
            self.memories,
            stage,
            self.rounds,
            at_end,
            untrained,
        )
        self.record.evaluations.extend(rows)
        self.accuracy = self.accuracy if untrained else accuracy

    def _commit(self, state: Any, door: Door, following: tuple[int, int]) -> None:
        if self.store is None:
            return
        data = wire.dumps((state, tuple(door.channel_state)), self.words)
        memories = {
            id: None if value is None else wire.dumps(value, self.words)
            for id, value in self.dirty.items()
        }
        evaluations, costs = self.written
        meta = {
            "version": __version__,
            "config": self.experiment.resolved,
            "stage": following[0],
            "round": following[1],
            "rounds": self.rounds,
            "seconds": self.seconds,
            "events": self.events,
        }
        new_rows: tuple[list[Row], list[Row]] = (
            self.record.evaluations[evaluations:],
            self.record.costs[costs:],
        )
        self.store.commit(meta, data, memories, *new_rows)
        door.committed = following
        self.written = (len(self.record.evaluations), len(self.record.costs))
        self.dirty = {}
        self.committed = time.perf_counter()
        if following[1] == 0:
            export(self.record, privacy_rows(self.record.costs))

    def _restore(self, saved: Any) -> tuple[Any, list[Any], tuple[int, int]]:
        from fedcl.record import COSTS, EVALUATIONS

        assert self.store is not None
        try:
            state, channel = wire.loads(saved.state, self.words)
            self.memories.committed = {
                id: wire.loads(data, self.words) for id, data in saved.memories.items()
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ResumeError(
                f"the checkpoint in {self.folder} is damaged: {error}; remove the folder and start "
                "anew, or name another --out"
            ) from error
        self.record.evaluations = self.store.rows("evaluations", EVALUATIONS)
        self.record.costs = self.store.rows("costs", COSTS)
        self.written = (len(self.record.evaluations), len(self.record.costs))
        self.rounds, self.spent, self.events = saved.rounds, saved.seconds, saved.events
        channel = settle(list(channel), self.site.device)
        return settle(state, self.site.device), channel, (saved.stage, saved.round)
