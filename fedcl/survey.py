"""What clients find on their own held-out examples: who is asked, and what is believed and written.

An engine whose clients live elsewhere asks them (`evaluate`); for any other engine they are
simulated here, by the same function. That is a channel, simulated or not: it is booked as traffic,
and `privacy.csv` lists it among what nothing protects.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcl.config import Experiment
from fedcl.core.data.stream import Stream
from fedcl.core.memories import Memories
from fedcl.core.method import Method
from fedcl.core.site import Site
from fedcl.core.survey import Examination, Finding, Known, findings, models_of, stream_at
from fedcl.core.tree import nbytes
from fedcl.record import COSTS, EVALUATIONS, REJECTED, Row

PAYLOAD = "evaluation"  # what goes down and up for it is booked under
# Examples of a client's share. What counts more is no share, but a weight that drowns all others.
_MOST = 2**31
_NUMBERS = 4 * 8  # bytes of a finding: task, accuracy, loss, examples


@dataclass(frozen=True)
class Survey:
    """What came of asking clients once.

    Attributes:
        rows: Rows of evaluations.csv.
        accuracy: Mean over the tasks that somebody told of; None where nobody did.
        costs: Rows of costs.csv.
        rejected: Rows of rejected.csv: whose answers are not believed, and why.
    """

    rows: list[Row]
    accuracy: float | None
    costs: list[Row]
    rejected: list[Row]


def survey(
    experiment: Experiment, site: Site, state: Any, memories: Memories, stage: int, rounds: int
) -> Survey:
    """Asks clients how good the model is on their own held-out examples of the tasks they met.

    Args:
        experiment: Its engine asks; its method says what clients get for it.
        site: Who could be asked, and where simulated clients compute.
        state: The method's state.
        memories: What the clients remember.
        stage: Stage of the stream.
        rounds: Finished rounds of the whole run.
    """
    start = time.perf_counter()
    settings, method, stream = experiment.evaluation, experiment.method, stream_at(site)
    view = method.for_prediction(state)
    number = rounds - stage * experiment.training.rounds - 1
    examination = Examination(stage, number, settings.splits, settings.batch_size, view)
    engine: Any = experiment.engine
    asks = hasattr(engine, "evaluate")
    present = engine.present(range(stream.clients)) if asks else None
    ids = [
        id for id in panel(stream.clients, settings.clients, present) if stream.history(id, stage)
    ]
    told, bad = (engine if asks else _Simulated(experiment, site)).evaluate(
        examination, ids, memories
    )
    wrong = {id: fault(own, method, stream, examination, id) for id, own in told.items()}
    bad = {**bad, **{id: reason for id, reason in wrong.items() if reason is not None}}
    told = {id: own for id, own in sorted(told.items()) if id not in bad}
    shared = pooled(told)
    known = [one.accuracy for one in shared if one.split == settings.splits[0]]
    at = {"round": rounds, "stage": stage}
    return Survey(
        rows=[*_rows(at, shared), *_client_rows(at, stream, told)],
        accuracy=float(np.mean(known)) if known else None,
        costs=_costs(at, len(ids) * nbytes(view), told, time.perf_counter() - start),
        rejected=[
            dict.fromkeys(REJECTED) | at | {"program": PAYLOAD, "client": id, "reason": reason}
            for id, reason in sorted(bad.items())
        ],
    )


@dataclass(frozen=True)
class _Simulated:
    """Clients that are simulated in this process."""

    experiment: Experiment
    site: Site

    def evaluate(
        self, examination: Examination, ids: Sequence[int], memories: Memories
    ) -> tuple[Mapping[int, Sequence[Finding]], Mapping[int, str]]:
        """Returns what clients find, and nobody's fault."""
        method, known = self.experiment.method, Known()
        remember = "personal" in models_of(method)
        return {
            id: findings(
                method, self.site, examination, id, memories.look(id) if remember else None, known
            )
            for id in ids
        }, {}


def _rows(at: Mapping[str, int], found: Sequence[Finding], **client: int) -> Iterator[Row]:
    for one in found:
        for metric, value in (("accuracy", one.accuracy), ("loss", one.loss)):
            yield {
                **dict.fromkeys(EVALUATIONS),
                **at,
                **client,
                "model": one.model,
                "task": one.task,
                "split": one.split,
                "metric": metric,
                "value": value,
                "n": one.n,
            }


def _client_rows(
    at: Mapping[str, int], stream: Stream, told: Mapping[int, Sequence[Finding]]
) -> Iterator[Row]:
    for id, own in told.items():
        yield from _rows(at, own, client=id, client_stage=len(stream.history(id, at["stage"])) - 1)


def _costs(
    at: Mapping[str, int], down: int, told: Mapping[int, Sequence[Finding]], seconds: float
) -> list[Row]:
    blank = {**dict.fromkeys(COSTS), **at, "payload": PAYLOAD}
    up = sum(len(own) for own in told.values()) * _NUMBERS
    traffic = [
        {**blank, "direction": direction, "bytes": size}
        for direction, size in (("down", down), ("up", up))
        if size
    ]
    examples = sum(one.n for own in told.values() for one in own)
    work = {"direction": "", "steps": 0, "examples": examples, "padded": 0, "seconds": seconds}
    return [*traffic, {**blank, **work}]


def panel(clients: int, most: int, present: Sequence[int] | None = None) -> tuple[int, ...]:
    """Returns the clients that are asked: evenly spaced among all, so mostly the same every time.

    Args:
        clients: Registered clients.
        most: How many at most.
        present: Those that can be reached, ascending: who cannot is replaced by others as evenly
            spaced among them; None for all.
    """
    count = min(most, clients)
    chosen = {int(id) for id in np.linspace(0, clients - 1, count)} if count else set()
    if present is None:
        return tuple(sorted(chosen))
    found = chosen & set(present)
    others = [id for id in present if id not in chosen]
    places = np.linspace(0, len(others) - 1, min(count - len(found), len(others)))
    return tuple(sorted(found | {others[int(place)] for place in places}))


def fault(
    found: Sequence[Finding],
    method: Method[Any],
    stream: Stream,
    examination: Examination,
    client: int,
) -> str | None:
    """Returns what is wrong with what a client says that it found, or None.

    Args:
        found: What came up: of the right types, but anything may stand in it.
        method: Says which models there are.
        stream: Who meets what.
        examination: What was asked.
        client: Who says so.
    """
    met = set(stream.history(client, examination.stage))
    seen: set[tuple[str, str, int]] = set()
    for one in found:
        about = f"task {one.task} ({one.split}, {one.model})"
        if one.model not in models_of(method) or one.split not in examination.splits:
            return f"it tells of {about}, which nobody asked for"
        if one.task not in met:
            return f"it tells of {about}, a task that it has not met"
        if (one.model, one.split, one.task) in seen:
            return f"it tells twice of {about}"
        seen.add((one.model, one.split, one.task))
        if not 0 <= one.accuracy <= 1:  # NaN does not lie anywhere
            return f"its accuracy {one.accuracy:g} on {about} does not lie in [0, 1]"
        if not (math.isfinite(one.loss) and one.loss >= 0):
            return f"its loss {one.loss:g} on {about} is no finite number of at least 0"
        if not 0 < one.n <= _MOST:
            return f"its {one.n} examples of {about} are no number from 1 to {_MOST}"
    return None


def pooled(found: Mapping[int, Sequence[Finding]]) -> list[Finding]:
    """Returns what all clients together found of the global model, by split and task.

    Accuracies and losses are means over clients weighted by their examples, whose numbers add up.

    Args:
        found: By client.
    """
    parts: dict[tuple[str, int], list[Finding]] = {}
    for _, own in sorted(found.items()):
        for one in own:
            if one.model == "global":
                parts.setdefault((one.split, one.task), []).append(one)
    result = []
    for (split, task), ones in sorted(parts.items()):
        n = sum(one.n for one in ones)
        accuracy, loss = (
            math.fsum(one.n * value for one, value in zip(ones, values, strict=True)) / n
            for values in ([o.accuracy for o in ones], [o.loss for o in ones])
        )
        result.append(Finding("global", split, task, accuracy, loss, n))
    return result
