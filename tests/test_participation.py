"""Who is asked, who answers, and which rounds count."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedcl
from fedcl.assembly import build_site
from fedcl.store import Store
from tests.tiny import (
    distance,
    rows,
    same,
    tiny,
    trace,
    watched,
)

# --- Sampling. ---


def cohorts(changes: dict[str, Any]) -> list[tuple[int, ...]]:
    _, watching = watched(tiny(changes))
    return [ids for _, ids in watching.requests]


def test_cohorts_of_fixed_size() -> None:
    changes = {"stream.clients": 12, "training.cohort": 5, "training.rounds": 20}
    found = cohorts(changes)
    assert all(len(ids) == 5 and list(ids) == sorted(set(ids)) for ids in found)
    assert {i for ids in found for i in ids} == set(range(12))
    assert len(set(found)) > 20
    assert cohorts(changes) == found != cohorts({**changes, "seed": 1})
    everyone = cohorts({"training.cohort": 0})
    assert everyone == [(0, 1, 2, 3, 4)] * 4 == cohorts({"training.cohort": 99})


def test_poisson_cohorts_vary_in_size() -> None:
    changes = {
        "stream.clients": 12,
        "training.cohort": 6,
        "training.rounds": 40,
        "training.sampling": "poisson",
        "training.local.steps": 1,
    }
    sizes = [len(ids) for ids in cohorts(changes)]
    assert min(sizes) < 5 < 7 < max(sizes)
    assert np.mean(sizes) == pytest.approx(6, abs=0.8)


def test_an_empty_poisson_cohort_skips_its_round(tmp_path: Path) -> None:
    changes = {"training.sampling": "poisson", "training.cohort": 1, "training.rounds": 6}
    record, states = trace(tiny(changes), tmp_path / "run")
    told = record.summary["skipped_or_repeated_rounds"]
    assert told and all(event["what"] == "skipped" for event in told)
    empty = [6 * event["stage"] + event["round"] for event in told]
    for number in range(1, 12):
        stood = same(dict(states[number].params), dict(states[number - 1].params))
        assert stood == (number in empty)


def test_an_empty_poisson_cohort_is_drawn_again_where_rounds_are_repeated() -> None:
    changes = {
        "training.sampling": "poisson",
        "training.cohort": 1,
        "training.rounds": 6,
        "training.shortfall": "repeat",
    }
    record, watching = watched(tiny(changes))
    told = record.summary["skipped_or_repeated_rounds"]
    assert told and all(event["what"] == "repeated" for event in told)
    answered = {
        (request.position.stage, request.position.round)
        for request, ids in watching.requests
        if ids
    }
    assert len(answered) == 12


def test_round_robin_reaches_everybody_in_turn() -> None:
    changes = {
        "stream.clients": 7,
        "training.cohort": 3,
        "training.rounds": 7,
        "training.sampling": "round_robin",
        "stream.tasks": 1,
    }
    found = cohorts(changes)
    assert found[:3] == [(0, 1, 2), (3, 4, 5), (0, 1, 6)]
    assert Counter(i for ids in found for i in ids) == dict.fromkeys(range(7), 3)


def test_round_robin_goes_on_in_the_next_stage() -> None:
    """Else, with few rounds a stage, the last clients would never be asked."""
    changes = {
        "stream.clients": 8,
        "training.cohort": 2,
        "training.rounds": 2,
        "training.sampling": "round_robin",
    }
    assert cohorts(changes) == [(0, 1), (2, 3), (4, 5), (6, 7)]


# --- Missing replies. ---
FEW = {
    "stream.clients": 8,
    "training.cohort": 4,
    "training.rounds": 8,
    "training.availability": 0.5,
    "training.minimum": 3,
}


def test_rounds_with_too_few_replies_are_skipped(tmp_path: Path) -> None:
    experiment = tiny(FEW, method={"name": "replay"})
    record, states = trace(experiment, tmp_path / "run")
    told = record.summary["skipped_or_repeated_rounds"]
    _, watching = watched(experiment)
    short = [i for i, (_, ids) in enumerate(watching.requests) if len(ids) < 3]
    assert 2 < len(short) < 14
    assert [8 * event["stage"] + event["round"] for event in told] == short
    assert {event["what"] for event in told} == {"skipped"}
    for event, number in zip(told, short, strict=True):
        count = len(watching.requests[number][1])
        assert event["why"] == f"{count} of 4 clients answered; training.minimum is 3"
    for number in range(1, 16):
        stood = same(dict(states[number].params), dict(states[number - 1].params))
        assert stood == (number in short)
    assert record.summary["rounds"] == 16
    assert {row["round"] for row in rows(record)} == set(range(17))
    # What was sent in vain is paid for too.
    model = 4 * (16 * 12 + 12 + 12 * 4 + 4)
    by_payload = record.summary["bytes_by_payload"]
    assert by_payload["down"]["model"] == 16 * 4 * model
    assert by_payload["up"]["model"] == sum(len(ids) for _, ids in watching.requests) * model


def test_who_answered_in_a_skipped_round_remembers_nothing_of_it(tmp_path: Path) -> None:
    changes = {**FEW, "stream.tasks": 1, "training.rounds": 3}
    experiment = tiny(changes, method={"name": "replay"})
    _, watching = watched(experiment)
    counted = {i for _, ids in watching.requests if len(ids) >= 3 for i in ids}
    in_vain = {i for _, ids in watching.requests if len(ids) < 3 for i in ids}
    assert in_vain - counted, "take another seed"
    fedcl.run(experiment, tmp_path / "run")
    store = Store(tmp_path / "run" / "checkpoint")
    remembering = {client for client in range(50) if store.memories.read(client) is not None}
    store.close()
    assert remembering == counted


def test_rounds_with_too_few_replies_are_repeated() -> None:
    experiment = tiny({**FEW, "training.shortfall": "repeat"})
    record, watching = watched(experiment)
    told = record.summary["skipped_or_repeated_rounds"]
    assert {event["what"] for event in told} == {"repeated"}
    enough = [
        (request.position.stage, request.position.round)
        for request, ids in watching.requests
        if len(ids) >= 3
    ]
    assert enough == [(stage, number) for stage in range(2) for number in range(8)]
    attempts = [request.position.attempt for request, _ in watching.requests]
    assert len(attempts) == 16 + len(told)
    assert max(attempts) >= 1
    # A first attempt is that of a run in which nothing was repeated.
    first = {
        (r.position.stage, r.position.round): ids
        for r, ids in watching.requests
        if r.position.attempt == 0
    }
    _, skipping = watched(tiny(FEW))
    assert first == {(r.position.stage, r.position.round): ids for r, ids in skipping.requests}


def test_what_ends_a_stage_is_repeated_even_where_rounds_are_skipped() -> None:
    changes = {**FEW, "training.minimum": 5, "training.cohort": 0, "training.rounds": 2}
    record = fedcl.run(tiny(changes, method={"name": "fot"}))
    told = record.summary["skipped_or_repeated_rounds"]
    ends = [event["what"] for event in told if event["round"] == 2]
    assert set(ends) == {"repeated"}
    assert {event["what"] for event in told if event["round"] < 2} <= {"skipped"}
    grams = [row for row in record.costs if row["payload"] == "gram" and row["direction"] == ""]
    assert len(grams) == 2 + len(ends)


def test_hopeless_rounds_end_with_an_error() -> None:
    changes = {
        "training.availability": 0.01,
        "training.minimum": 3,
        "training.shortfall": "repeat",
    }
    with pytest.raises(fedcl.FedclError, match=r"training\.minimum is 3.*availability"):
        fedcl.run(tiny(changes))


def test_a_dropped_round_leaves_the_channel_as_it_was() -> None:
    """The second question of a round finds too few: the first one's sum must not count either."""
    channel = [{"name": "tests.plugins:Growing"}]
    changes = {**FEW, "training.rounds": 6, "stream.tasks": 1, "training.local.lr": 1e-3}
    method = {"name": "tests.plugins:Twice"}
    record, watching = watched(tiny(changes, channel=channel, method=method))
    told = record.summary["skipped_or_repeated_rounds"]
    halves = [
        event
        for event in told
        if sum(request.position.round == event["round"] for request, _ in watching.requests) == 2
    ]
    assert halves, "no round failed at its second question: take another seed"
    # The sums that counted grow 1, 2, 3, ...: replay them by hand.
    params = {k: v.clone() for k, v in build_site(tiny(changes)).model.named_parameters()}
    count = 0
    dropped = {event["round"] for event in told}
    by_round: dict[int, list[Any]] = {}
    results = iter(watching.results)
    for request, ids in watching.requests:
        blocks = [next(results) for _ in range(-(-len(ids) // 2))]
        by_round.setdefault(request.position.round, []).append(blocks)
    for number, exchanges in by_round.items():
        if number in dropped:
            continue
        for blocks in exchanges:
            count += 1
            weight = sum(block.total.weight for block in blocks)
            for name in params:
                total = sum(block.total.total[name] for block in blocks)
                params[name] = params[name].detach() + 0.5 * count * (total / weight).float()
    assert distance(params, record.params) < 1e-6
