"""Local models on old tasks: what a round lost in training, what in aggregation.

An engine tells sums, and a channel may hide single replies, so a few clients are trained once more
here: all that they did is a function of their position in the run. No method, channel or engine
knows of it, and nothing of it goes back into the run. The sampled clients' models are those of the
loop over clients, whatever the engine: to the bit for engines that loop, up to rounding else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedcl.assessment import held_out_answers
from fedcl.config import Experiment
from fedcl.core.around import Around
from fedcl.core.client import Client, Reply
from fedcl.core.data.stream import Stream
from fedcl.core.local import Local, own_state
from fedcl.core.memories import Memories
from fedcl.core.params import Params
from fedcl.core.population import sample
from fedcl.core.request import BlockResult, Request
from fedcl.core.seeds import seed_of
from fedcl.core.site import Site
from fedcl.core.tree import settle
from fedcl.decomposition import PAYLOAD
from fedcl.record import COSTS, Row


@dataclass(frozen=True)
class Asked:
    """What a sampled client was asked to train on, and what it remembered then."""

    request: Request
    memory: Any


@dataclass
class Probe(Around):
    """An engine that remembers what a sample of a round's clients was asked to train on.

    Of several exchanges of local training in a round, a client's last one counts.

    Attributes:
        experiment: The experiment.
        stream: Its stream.
        asked: By client, those that answered in the present round.
    """

    experiment: Experiment
    stream: Stream
    asked: dict[int, Asked] = field(default_factory=dict)

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Lets the inner engine run."""
        results = self.inner.run(request, ids, memories)
        at = request.position
        chosen: set[int] = set()
        if isinstance(request.program, Local) and self.due(at.stage, at.round):
            seed = seed_of(self.experiment.seed, PAYLOAD, at.stage, at.round)
            chosen = set(sample(ids, self.experiment.evaluation.decompose, "fixed", seed, 0))
            chosen |= self.asked.keys() & set(ids)
        # Before the first result is taken: what a client remembers changes with it.
        asked = {id: Asked(request, memories.look(id)) for id in sorted(chosen)}
        for result in results:
            self.asked.update({id: asked[id] for id in result.ids if id in asked})
            yield result

    def due(self, stage: int, number: int) -> bool:
        """Returns whether a round of a stage is decomposed; not what begins or ends the stage."""
        rounds, settings = self.experiment.training.rounds, self.experiment.evaluation
        return (
            settings.decompose > 0
            and 0 <= number < rounds
            and (stage * rounds + number + 1) % settings.decompose_every == 0
            and bool(old_tasks(self.stream, stage))
        )

    def drop(self) -> None:
        """Forgets a round that came to nothing."""
        self.asked = {}

    def assess(
        self, site: Site, state: Any, stage: int, rounds: int
    ) -> tuple[list[Row], list[Row]]:
        """Returns the evaluations of the round's local models, and what they cost.

        Args:
            site: Where the clients are trained once more.
            state: The method's state before the round: what the clients could know.
            stage: Stage of the round.
            rounds: Finished rounds of the whole run.
        """
        if not self.asked:
            return [], []
        start = time.perf_counter()
        rows: list[Row] = []
        steps = examples = 0
        for id, asked in sorted(self.asked.items()):
            reply = _train(site, id, asked)
            steps += reply.steps
            examples += reply.examples
            if reply.tensors.keys() == state.params.keys():
                rows.extend(self._rows(site, state, stage, rounds, id, reply.tensors))
        self.asked = {}
        cost = {"round": rounds, "stage": stage, "direction": "", "payload": PAYLOAD}
        work = {"steps": steps, "examples": examples, "seconds": time.perf_counter() - start}
        return rows, [dict.fromkeys(COSTS) | cost | work]

    def _rows(
        self, site: Site, state: Any, stage: int, rounds: int, id: int, params: Params
    ) -> Iterator[Row]:
        client_stage = len(self.stream.history(id, stage)) - 1
        for split in self.experiment.evaluation.splits:
            for task in old_tasks(self.stream, stage):
                answers = held_out_answers(self.experiment, site, state, params, split, task, stage)
                yield {
                    "round": rounds,
                    "stage": stage,
                    "client": id,
                    "client_stage": client_stage,
                    "model": "local",
                    "task": task,
                    "split": split,
                    "metric": "accuracy",
                    "value": answers.accuracy,
                    "n": len(answers.right),
                }


def old_tasks(stream: Stream, stage: int) -> list[int]:
    """Returns the tasks that somebody met before a stage, ascending."""
    return sorted({task for earlier in range(stage) for task in stream.present(earlier)})


def _train(site: Site, id: int, asked: Asked) -> Reply:
    """Trains a client as it was trained, and returns its parameters as the reply's tensors."""
    local = asked.request.program
    assert isinstance(local, Local)
    request = replace(asked.request, program=replace(local, report=_everything, keep=own_state))
    bare = replace(site, channel=())
    return bare.answer(request, id, asked.memory, settle(request.message, site.device)).reply


def _everything(client: Client, message: object, params: Params) -> Params:
    return params
