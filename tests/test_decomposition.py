"""The table of losses by hand: local update and aggregation on old tasks."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl.decomposition import (
    Loss,
    by_task,
    client_losses,
    loss_decomposition,
    mean,
    total,
)
from tests.test_evaluations import evaluation, written

N = 10


def row(
    round: int, task: int, right: int, client: int | None = None, **other: Any
) -> dict[str, Any]:
    model = "global" if client is None else "local"
    values = {"n": N, "client": client, "model": model} | other
    return evaluation(round, 1, task, right / values["n"], **values)


# Task 0 is old in rounds 3 and 4, task 1 (of seven examples) in round 4 alone.
RUN = [
    row(2, 0, 9),
    row(3, 0, 8),
    row(3, 0, 7, client=1),
    row(3, 0, 6, client=4),
    row(3, 1, 5, n=7),
    row(4, 0, 5),
    row(4, 0, 4, client=4),
    row(4, 1, 6, n=7),
    row(4, 1, 1, client=4, n=7),
    row(5, 0, 1),
]
NOISE = [
    row(3, 0, 0, client=1, model="personal"),
    row(3, 0, 0, client=1, model="global"),
    row(3, 0, 0, client=1, split="validation"),
    row(3, 0, 0, client=1, metric="loss"),
    {**row(3, 0, 0, client=9), "value": None},
]


@pytest.mark.parametrize("shape", [list, written])
def test_losses_by_hand(shape: Any) -> None:
    """Round 3 on task 0: 9 right before, 7 and 6 after training, 8 in the end."""
    table = shape(NOISE + RUN[::-1])
    assert client_losses(table) == {
        (0, 3, 1): (Fraction(2, 10), Fraction(-1, 10)),
        (0, 3, 4): (Fraction(3, 10), Fraction(-2, 10)),
        (0, 4, 4): (Fraction(4, 10), Fraction(-1, 10)),
        (1, 4, 4): (Fraction(4, 7), Fraction(-5, 7)),
    }
    losses = loss_decomposition(table)
    assert losses == {
        0: {3: (Fraction(5, 20), Fraction(-3, 20)), 4: (Fraction(4, 10), Fraction(-1, 10))},
        1: {4: (Fraction(4, 7), Fraction(-5, 7))},
    }
    tasks = by_task(losses)
    assert tasks == {
        0: (Fraction(13, 20), Fraction(-1, 4)),
        1: (Fraction(4, 7), Fraction(-5, 7)),
    }
    assert tasks[0].total == Fraction(9 - 5, 10)
    assert tasks[1].total == Fraction(5 - 6, 7)
    assert mean(tasks.values()) == (Fraction(171, 280), Fraction(-27, 56))
    assert mean(tasks.values()).total == (tasks[0].total + tasks[1].total) / 2


def test_another_split_is_its_own_table() -> None:
    assert loss_decomposition([{**r, "split": "validation"} for r in RUN], split="validation")
    assert loss_decomposition([{**r, "split": "validation"} for r in RUN]) == {}


def test_no_local_model_no_losses() -> None:
    assert loss_decomposition([r for r in RUN if r["model"] == "global"]) == {}
    assert by_task({}) == {}
    assert total([]) == Loss(Fraction(0), Fraction(0))


@pytest.mark.parametrize(
    ("rows", "fact"),
    [
        (RUN[1:], "client 1's local model was evaluated on task 0 in round 3, the global one not "
         "in round 2"),
        ([r for r in RUN if r is not RUN[5]], "the global one not in round 4"),
        ([*RUN, RUN[2]], "two accuracies of one model on task 0 in round 3"),
        ([*RUN, RUN[0]], "two accuracies of one model on task 0 in round 2"),
        ([{**RUN[0], "value": 0.85}, *RUN[1:]], "0.85 is no number of right answers among 10 ex"),
        ([*RUN[:2], {**RUN[2], "value": 0.7000001}], "0.7000001 is no number of right answers"),
        ([{**RUN[0], "n": 0}, *RUN[1:]], "among 0 examples"),
        ([{"metric": "accuracy"}], "lacks the column 'split'"),
    ],
)  # fmt: skip
def test_wrong_tables_are_refused(rows: Any, fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        loss_decomposition(rows)


@given(st.data())
def test_losses_telescope_to_the_last_digit(data: st.DataObject) -> None:
    """However many examples and clients: the sum over rounds is what the global model lost."""
    n = data.draw(st.integers(1, 10_000))
    counts = st.integers(0, n)
    shared = data.draw(st.lists(counts, min_size=2, max_size=9))
    rows = [row(r, 0, right, n=n) for r, right in enumerate(shared)]
    for r in range(1, len(shared)):
        sampled = data.draw(st.dictionaries(st.integers(0, 99), counts, min_size=1, max_size=4))
        rows += [row(r, 0, right, client=client, n=n) for client, right in sampled.items()]
    loss = by_task(loss_decomposition(written(rows)))[0]
    assert loss.local_update + loss.aggregation == Fraction(shared[0] - shared[-1], n)
    assert isinstance(loss, Loss)
