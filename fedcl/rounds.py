"""One round of a method: who is asked, and what happens when too few answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedcl.config import Experiment
from fedcl.core.channel import mechanism
from fedcl.core.data.stream import Stream
from fedcl.core.door import Door, TooFewReplies
from fedcl.core.errors import FedclError
from fedcl.core.exchange import Exchange
from fedcl.core.federation import Federation
from fedcl.core.population import sample
from fedcl.core.presence import Presence
from fedcl.core.privacy.noise import seed_below
from fedcl.core.seeds import seed_of
from fedcl.core.site import Site
from fedcl.core.task import TaskInfo
from fedcl.core.tree import settle

ATTEMPTS = 20  # of one round in one sitting


@dataclass
class Rounds:
    """Opens the door to a method, round after round.

    Attributes:
        experiment: The experiment.
        site: Where clients run.
        door: What stands behind the door.
        events: Takes note of skipped and repeated rounds.
        dropped: Called when a round came to nothing.
        presence: Knows which clients of a live federation are there; None in a simulation.
        begin: Number of the first attempt at a stage and round, where it is not 0: a live run that
            protects somebody never asks the same again.
    """

    experiment: Experiment
    site: Site
    door: Door
    events: list[dict[str, int | str]]
    dropped: Callable[[], None]
    presence: Presence | None = None
    begin: Mapping[tuple[int, int], int] = field(default_factory=dict)
    _known: TaskInfo | None = field(default=None, init=False)

    @property
    def _stream(self) -> Stream:
        stream: Stream = self.site.population.stream  # type: ignore[attr-defined]
        return stream

    def ask(self, state: Any, stage: int, number: int, done: list[Exchange]) -> Any:
        """Runs the method's round, and what begins or ends the stage with it.

        Args:
            state: The method's state before.
            stage: The stage.
            number: The round of the stage.
            done: Takes the exchanges, those of attempts that came to nothing too.

        Raises:
            FedclError: Too few clients answered, however often they were asked.
        """
        method, rounds = self.experiment.method, self.experiment.training.rounds
        first = self.begin.get((stage, number), 0)
        cohort = self._cohort(stage, number, first)
        if number == 0 and self._stream.borders:
            state, _ = self._step(method.begin_task, state, stage, -1, cohort, done, first)
        state, cohort = self._step(method.round, state, stage, number, cohort, done, first)
        if number == rounds - 1 and self._stream.borders:
            state, _ = self._step(method.end_task, state, stage, rounds, cohort, done, first)
        return state

    def _cohort(self, stage: int, number: int, attempt: int = 0) -> tuple[int, ...]:
        """Returns the clients that are asked in a round; a repeated one draws anew."""
        training = self.experiment.training
        again = (attempt,) if attempt else ()
        root = self.door.root
        if root is None or mechanism(self.door.channel) is None:
            seed = seed_of(self.experiment.seed, "cohort", stage, number, *again)
        else:  # who took part is a secret that the accounting relies on
            seed = seed_below(root, "cohort", stage, number, *again)
        members, turn = self._stream.members(stage), stage * training.rounds + number
        if self.presence is not None:
            here = self.presence.gathered(members, training.minimum)
            self.events.extend(
                {"stage": stage, "round": number, **news} for news in self.presence.news()
            )
            if mechanism(self.door.channel) is None:  # else who is there must not show
                members = here
        return sample(members, training.asked, training.sampling, seed, turn)

    def _step(
        self,
        step: Callable[[Any, Federation], Any],
        state: Any,
        stage: int,
        number: int,
        cohort: tuple[int, ...],
        done: list[Exchange],
        first: int = 0,
    ) -> tuple[Any, tuple[int, ...]]:
        """Runs one moment of a method, skipped or repeated with too few replies.

        Returns the next state, and the cohort that was asked in the end.
        """
        training, door = self.experiment.training, self.door
        moment, why = number in (-1, training.rounds), ""
        for attempt in range(first, first + ATTEMPTS):
            if attempt > first and not moment:
                cohort = self._cohort(stage, number, attempt)
            door.exchanges = []
            channel_state = list(door.channel_state)
            fed = Federation(
                self._info(stage),
                number,
                training.rounds,
                cohort,
                self._stream.members(stage),
                self.site.model,
                self.site.device,
                attempt,
                _door=door,
            )
            try:
                after = step(state, fed)
            except TooFewReplies as error:
                done.extend(door.exchanges)
                door.memories.drop()
                why = str(error)
                door.channel_state = channel_state
                # What begins or ends a stage happens once and cannot be left out.
                happened = "repeated" if moment or training.shortfall == "repeat" else "skipped"
                self.events.append({"stage": stage, "round": number, "what": happened, "why": why})
                if not moment:
                    self.dropped()
                if happened == "skipped":
                    return state, cohort
                continue
            door.memories.keep()
            done.extend(door.exchanges)
            return after, cohort
        raise FedclError(
            f"stage {stage}, round {number}: too few clients answered in {ATTEMPTS} attempts "
            f"({why}); lower that or raise training.availability"
        )

    def _info(self, stage: int) -> TaskInfo:
        if self._known is None or self._known.index != stage:
            info = self._stream.info(stage)
            if info.public is not None:
                dtype = next(self.site.model.parameters()).dtype
                info = replace(info, public=replace(info.public, x=info.public.x.to(dtype)))
            self._known = settle(info, self.site.device)
        return self._known
