"""The study of a federation under load names what is wrong: each of its claims can fail."""

from __future__ import annotations

from typing import Any

import load as study
import pytest
from bench.federation import SIZE, Load

NODES, ROUNDS = 3, 12
SUPERLINK, SERVERAPP = (study.PROGRAMS[name] for name in study.BOUNDED)


def measured(grown: float = 0.0, **changes: Any) -> Load:
    """Returns a faultless measurement but for changes.

    Args:
        grown: MB by which the SuperLink grows in each round.
        changes: Other values.
    """
    sums = dict.fromkeys(range(1, ROUNDS + 1), NODES * SIZE)
    whole: dict[str, Any] = {
        "ends": [10.0 * number for number in range(1, ROUNDS + 1)],
        "memory": [
            {SUPERLINK: 150 + (90 if number < 4 else 100) + grown * number, SERVERAPP: 300.0}
            for number in range(ROUNDS)
        ],
        "work": [{SUPERLINK: 5.0 * number} for number in range(ROUNDS)],
        "kept": {"objects": 0, "message_ins": 0},
        "told": {
            "answered": {
                "query.introduction": {str(id): 1 for id in range(NODES)},
                "query.exchange": {str(id): ROUNDS for id in range(NODES)},
            },
            "twice": 0,
            "errors": [],
        },
        "up": sums,
        "down": sums,
        "status": "finished:completed",
    }
    return Load(NODES, ROUNDS, **{**whole, **changes})


def test_nothing_is_said_when_nothing_is_wrong() -> None:
    assert study.complaints(measured()) == []


def test_growth_is_told_for_each_message_from_the_fifth_round_on() -> None:
    # What the first rounds need, 10 MB in the fifth, does not count.
    assert study.growth(measured(), "SuperLink") == pytest.approx(0.0, abs=1e-9)
    assert study.growth(measured(grown=0.03), "SuperLink") == pytest.approx(5.0)
    assert study.growth(measured(grown=0.03), "ServerApp") == pytest.approx(0.0, abs=1e-9)
    assert study.growth(measured(ends=[1.0] * 9), "SuperLink") is None, "too few rounds"
    assert study.complaints(measured(grown=0.005)) == []
    (told,) = study.complaints(measured(grown=0.03))
    assert told == "SuperLink grows by 5.00 kB for each message"


def test_a_message_that_is_lost_is_named_and_one_that_was_asked_again_is_none() -> None:
    told = measured().told
    told["answered"]["query.exchange"]["2"] = ROUNDS + 1
    assert study.complaints(measured(told=told)) == []
    told["answered"]["query.exchange"]["1"] = ROUNDS - 1
    (why,) = study.complaints(measured(told=told))
    assert why == "client 1 has answered 11 messages of kind exchange, not 12"
    (why,) = study.complaints(measured(told={**measured().told, "twice": 2}))
    assert why == "2 messages were answered twice"


def test_a_reply_that_is_not_recorded_is_named() -> None:
    up = measured().up | {7: (NODES - 1) * SIZE}
    (told,) = study.complaints(measured(up=up))
    assert "other bytes from clients" in told and f"7: {(NODES - 1) * SIZE}" in told


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": "finished:failed"}, "the run ended as finished:failed"),
        ({"ends": [1.0] * (ROUNDS - 1)}, "11 of 12 rounds were seen"),
        ({"kept": {"objects": 4}}, "4 rows are left in objects"),
        ({"rejected": 2}, "2 replies were refused"),
        ({"failures": ["no answer"]}, "a client failed: no answer"),
    ],
)
def test_whatever_else_is_wrong_is_named(changes: dict[str, Any], why: str) -> None:
    assert study.complaints(measured(**changes)) == [why]
