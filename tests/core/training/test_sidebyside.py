"""Runs side by side say what they say one after the other, and train as one where they can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedcl.core.audit import Records
from fedcl.core.errors import ClientError
from fedcl.core.training.sidebyside import Meeting, side_by_side
from fedcl.loop import asked_again
from fedcl.repeated import Repeats
from tests.tiny import CNN, stream_of, tiny

EXACT = {"training.dtype": "float64", "engine.name": "vectorized", "evaluation.every": 0}
NOISY = {"name": "central_dp", "noise": "seeded", "noise_multiplier": 0.3}


def both(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **tables: Any
) -> tuple[float, int]:
    """Returns the largest difference of four runs' answers, and how many blocks were joined."""
    experiment = tiny({**EXACT, **changes}, **tables)
    stream, joined = stream_of(experiment), []
    records = [Records(task.index, task.train[:20], task.test[:9]) for task in stream.tasks]
    kept = np.random.default_rng(0).random((4, len(stream.dataset.train.labels))) < 0.6
    leave = Meeting.leave

    def left(self: Meeting) -> None:
        leave(self)
        joined.append(self.joined)

    monkeypatch.setattr(Meeting, "leave", left)
    again = Repeats(experiment.resolved, asked_again)
    together = again.together(list(range(4)), list(kept), records)
    alone = [again(seed, kept[seed], records) for seed in range(4)]
    differences = [
        float((a[task] - b[task]).abs().max())
        for one, other in zip(together, alone, strict=True)
        for a, b in zip(one, other, strict=True)
        for task in a
    ]
    assert len(differences) == 4 * 3  # one task after the first stage, two after the second
    assert not torch.equal(alone[0][1][0], alone[1][1][0])
    return max(differences), joined[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"method.name": "fedavg"},
        {"method.name": "replay", "training.local.momentum": 0.9},
        {"method.name": "fot"},
        {"method.name": "fedavg", "training.local.weight_decay": 0.01, "model.dropout": [0.3]},
    ],
    ids=["fedavg", "replay", "fot", "dropout"],
)
def test_runs_that_train_as_one_say_the_same(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    difference, joined = both(changes, monkeypatch)
    assert difference < 1e-9 and joined == 4 * 2 * 2 * 2  # runs, stages, rounds, fold blocks


def test_convolutions_and_clipped_replies_are_each_runs_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    difference, joined = both({}, monkeypatch, model=CNN, channel=[NOISY])
    assert difference < 1e-9 and joined > 0


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"method.name": "ewc"}, 16),  # its penalty heeds the message, from the second stage on
        ({"method.name": "lwf"}, 16),  # as does its loss
        ({"method.name": "gpm"}, 16),  # and its projection of gradients
        ({"engine.name": "serial"}, 0),
        ({"training.local": {"name": "dp_sgd", "batch_size": 8}}, 0),
    ],
    ids=["penalty", "loss", "projection", "serial", "private"],
)
def test_what_cannot_be_one_trains_alone(
    changes: dict[str, Any], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny({**EXACT, **changes})
    secret = experiment.training.local.private  # whose noise nobody can repeat
    difference, joined = both(changes, monkeypatch)
    assert joined == first and (secret or difference < 1e-9)


def test_the_error_is_that_of_the_run_that_failed() -> None:
    experiment = tiny({**EXACT, "training.local.lr": 1e200})
    count = len(stream_of(experiment).dataset.train.labels)
    with pytest.raises(ClientError, match="lower training"):
        Repeats(experiment.resolved, asked_again).together([0, 1], [np.ones(count, bool)] * 2, [])


def test_results_stand_in_the_order_of_the_runs_and_the_first_error_counts() -> None:
    def says(word: str) -> Callable[[Meeting], str]:
        return lambda meeting: word

    def fails(word: str) -> Callable[[Meeting], str]:
        def run(meeting: Meeting) -> str:
            raise ValueError(word)

        return run

    assert side_by_side([says(word) for word in "abc"]) == ["a", "b", "c"]
    assert side_by_side([]) == []
    with pytest.raises(ValueError, match="first"):
        side_by_side([says("a"), fails("first"), fails("second")])
