"""What is evaluated when: the long table's rows, for the federation and for single clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fedcl.config import Experiment
from fedcl.core.data.stream import Stream
from fedcl.core.evaluate import Answers
from fedcl.core.memories import Memories
from fedcl.core.method import Method
from fedcl.core.params import Params
from fedcl.core.site import Site
from fedcl.core.survey import answered, expected, stream_at
from fedcl.record import Row


def assess(
    experiment: Experiment,
    site: Site,
    state: Any,
    memories: Memories,
    stage: int,
    rounds: int,
    at_end: bool,
    untrained: bool,
) -> tuple[list[Row], float | None]:
    """Returns the rows of one evaluation and the mean accuracy over the tasks met so far.

    Inside a stage the tasks met so far are evaluated; at its end, and before any training, all
    tasks are, and (at its end) a bounded number of clients gets rows of its own.

    A client's accuracy on a task is that of its own test rows when the clients are natural.
    Otherwise nobody owns test rows, and it is the expected accuracy under the client's own mix of
    classes: the mean of the classes' accuracies weighted by its training examples of each class.
    """
    settings, stream = experiment.evaluation, stream_at(site)
    met = {task for earlier in range(stage + 1) for task in stream.present(earlier)}
    tasks = range(len(stream.tasks)) if at_end or untrained else sorted(met)
    start = {
        "round": rounds,
        "stage": stage,
        "client": None,
        "client_stage": None,
        "model": "global",
    }
    rows: list[Row] = []
    found: dict[tuple[str, int], Answers] = {}
    for split in settings.splits:
        for task in tasks:
            answers = held_out_answers(experiment, site, state, state.params, split, task, stage)
            found[split, task] = answers
            for metric, value in (("accuracy", answers.accuracy), ("loss", answers.loss)):
                rows.append(
                    {
                        **start,
                        "task": task,
                        "split": split,
                        "metric": metric,
                        "value": value,
                        "n": len(answers.right),
                    }
                )
    known = [
        found[settings.splits[0], task].accuracy
        for task in sorted(met)
        if (settings.splits[0], task) in found
    ]
    if at_end:
        for split in settings.splits:
            rows.extend(
                _client_rows(experiment, stream, site, state, memories, stage, rounds, split, found)
            )
    return rows, float(np.mean(known)) if known else None


def held_out_answers(
    experiment: Experiment,
    site: Site,
    state: Any,
    params: Params,
    split: str,
    task: int,
    stage: int,
) -> Answers:
    """Returns the answers of a model with these parameters to a task's held-out examples.

    Args:
        experiment: Its method says how to predict.
        site: Where the model computes, with the data.
        state: The method's state.
        params: The parameters to evaluate.
        split: Which held-out examples.
        task: The task.
        stage: Decides which classes a prediction may choose from.
    """
    at = split, task, stage, experiment.evaluation.batch_size
    return answered(experiment.method, site, stream_at(site), state, params, *at)


def _client_rows(
    experiment: Experiment,
    stream: Stream,
    site: Site,
    state: Any,
    memories: Memories,
    stage: int,
    rounds: int,
    split: str,
    found: dict[tuple[str, int], Answers],
) -> Iterator[Row]:
    method = experiment.method
    personal = type(method).personal is not Method.personal
    count = min(experiment.evaluation.clients, stream.clients)
    for client in (
        sorted({int(c) for c in np.linspace(0, stream.clients - 1, count)}) if count else ()
    ):
        history = stream.history(client, stage)
        params = method.personal(state, memories.look(client)) if personal else state.params
        for task in dict.fromkeys(history):
            if personal:
                answers = held_out_answers(experiment, site, state, params, split, task, stage)
            else:
                answers = found[split, task]
            value, n = _own_accuracy(stream, client, task, split, answers)
            if n:
                yield {
                    "round": rounds,
                    "stage": stage,
                    "client": client,
                    "client_stage": len(history) - 1,
                    "model": "personal" if personal else "global",
                    "task": task,
                    "split": split,
                    "metric": "accuracy",
                    "value": value,
                    "n": n,
                }


def _own_accuracy(
    stream: Stream, client: int, task: int, split: str, answers: Answers
) -> tuple[float, int]:
    """Returns a client's accuracy on its share of a task, and the number of examples behind it."""
    right = answers.right.numpy()
    owner = stream.owners(task, split)
    if owner is not None:
        own = right[owner == client]
        return (float(own.mean()), len(own)) if len(own) else (0.0, 0)
    return expected(stream, client, task, answers.labels, answers.right)
