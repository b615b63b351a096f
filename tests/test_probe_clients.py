"""The clients whose local models are looked at: which, what with, and what it costs."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

import fedcl
from fedcl.core.errors import ConfigError
from fedcl.decomposition import client_losses
from tests.probed import KEYS, ON, PERSONAL, local_rows, union
from tests.tiny import (
    logits,
    stream_of,
    tiny,
    watched,
)

# --- The local models. ---


@pytest.mark.parametrize("name", [PERSONAL, "tests.plugins:Twice"])
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_a_local_model_is_what_the_client_had_after_training(name: str, engine: str) -> None:
    """Parameters received plus the change reported, from what the engine really ran."""
    changes = {**ON, "method.name": name, "training.dtype": "float64", "evaluation.decompose": 3}
    experiment = tiny({**changes, "training.fold": 1, "engine.name": engine})
    record, watching = watched(experiment)
    stream, trained = stream_of(experiment), {}
    results = iter(watching.results)
    for request, ids in watching.requests:
        at = request.position
        for id in ids:  # blocks of one client: the sum of its change times its weight
            total = next(results).total
            assert total is not None
            start = request.message.params
            weight = total.weight
            trained[3 * at.stage + at.round + 1, id] = {
                key: start[key] + total.total[key] / weight for key in start
            }
    found = local_rows(record)
    assert len(found) == 3 * 3 * (1 + 2)
    for row in found:
        held = stream.held_out(row["task"], "test")
        answers = logits(trained[row["round"], row["client"]], held.x.double()).argmax(1)
        assert row["value"] == int((answers == held.y).sum()) / len(held), row
        assert row["n"] == len(held) and row["split"] == "test"
        assert row["stage"] == row["client_stage"] == (row["round"] - 1) // 3


def test_a_client_trains_on_what_it_remembered_before_the_round() -> None:
    """Everybody takes part in every round, so in round r each one trains on r examples."""
    changes = {**ON, "method.name": "tests.probed:Learner", "training.cohort": 5}
    record = fedcl.run(tiny({**changes, "evaluation.decompose": 5}))
    booked = {r["round"]: r["examples"] for r in record.costs if r["payload"] == "decomposition"}
    assert booked == {number: 5 * number for number in range(4, 10)}


# --- Who is looked at, when, and what it costs. ---


def test_a_sample_of_the_cohort_is_looked_at() -> None:
    record, watching = watched(tiny(ON))
    cohorts = {
        3 * request.position.stage + request.position.round + 1: set(ids)
        for request, ids in watching.requests
    }
    seen: dict[int, set[int]] = defaultdict(set)
    for row in local_rows(record):
        seen[row["round"]].add(row["client"])
    assert set(seen) == set(range(4, 10))
    assert all(len(seen[number]) == 2 and seen[number] < cohorts[number] for number in seen)
    assert len({frozenset(ids) for ids in seen.values()}) > 1
    others = fedcl.run(tiny({**ON, "seed": 1}))
    assert [r["client"] for r in local_rows(others)] != [r["client"] for r in local_rows(record)]
    every = fedcl.run(tiny({**ON, "evaluation.decompose": 99}))
    assert Counter(r["round"] for r in local_rows(every)) == {
        number: 3 * ((number - 1) // 3) for number in range(4, 10)
    }


def test_only_those_who_answered_are_looked_at() -> None:
    changes = {**ON, "training.availability": 0.4, "training.minimum": 2, "training.rounds": 6}
    record, watching = watched(tiny({**changes, "training.cohort": 4, "evaluation.decompose": 4}))
    skipped = {
        6 * event["stage"] + event["round"] + 1
        for event in record.summary["skipped_or_repeated_rounds"]
    }
    answered = {
        6 * r.position.stage + r.position.round + 1: set(ids) for r, ids in watching.requests
    }
    assert skipped and any(len(ids) == 3 for ids in answered.values())
    seen: dict[int, set[int]] = defaultdict(set)
    for row in local_rows(record):
        seen[row["round"]].add(row["client"])
    assert seen == {n: ids for n, ids in answered.items() if n > 6 and n not in skipped}


def test_a_repeated_round_counts_once() -> None:
    changes = {**ON, "training.availability": 0.4, "training.minimum": 2, "training.cohort": 4}
    record, watching = watched(tiny({**changes, "training.shortfall": "repeat"}))
    assert record.summary["skipped_or_repeated_rounds"]
    last = {3 * r.position.stage + r.position.round + 1: ids for r, ids in watching.requests}
    assert {r["round"] for r in local_rows(record)} == set(range(4, 10))
    assert all(row["client"] in last[row["round"]] for row in local_rows(record))


def test_not_every_round_need_be_decomposed() -> None:
    changes = {**ON, "evaluation.every": 0, "evaluation.decompose_every": 4}
    record = fedcl.run(tiny(changes))
    assert {row["round"] for row in local_rows(record)} == {4, 8}
    assert {number for _, number in union(record)} == {0, 3, 4, 6, 7, 8, 9}
    accuracy = union(record)
    for (task, number, _), loss in client_losses(record.evaluations).items():
        assert loss.total == accuracy[task, number - 1] - accuracy[task, number]


def test_costs_are_booked_and_are_no_work_of_the_clients() -> None:
    experiment = tiny(ON)
    record, stream = fedcl.run(experiment), stream_of(experiment)
    booked = {r["round"]: r for r in record.costs if r["payload"] == "decomposition"}
    assert list(booked) == list(range(4, 10))
    for number, cost in booked.items():
        stage = (number - 1) // 3
        sampled = {r["client"] for r in local_rows(record) if r["round"] == number}
        sizes = [len(stream.train(id, stage)) for id in sampled]
        assert cost["examples"] == sum(sizes)
        assert cost["steps"] == sum(-(-size // 8) for size in sizes)
        assert (cost["stage"], cost["direction"], cost["bytes"]) == (stage, "", None)
        assert cost["seconds"] > 0
    trained = [row for row in record.costs if row["payload"] == "train"]
    assert record.summary["steps"] == sum(row["steps"] for row in trained)
    assert record.summary["examples"] == sum(row["examples"] for row in trained)


# --- What cannot be evaluated, and wrong options. ---


def test_training_of_something_else_than_the_model_is_left_out() -> None:
    """A reply of the wrong names would be no model: no row, and the cost is booked all the same."""
    record = fedcl.run(tiny({**ON, "method.name": "tests.probed:HeadOnly"}))
    assert not local_rows(record)
    assert [record.summary[key] for key in KEYS] == [None] * 4


@pytest.mark.parametrize(
    ("option", "value", "fact"),
    [
        ("decompose", -1, "decompose must be at least 0, not -1"),
        ("decompose_every", 0, "decompose_every must be at least 1, not 0"),
    ],
)
def test_wrong_options_are_refused(option: str, value: int, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        tiny({f"evaluation.{option}": value})
