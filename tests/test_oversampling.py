"""More clients are asked than are needed: of those who answer, the first ones count."""

from __future__ import annotations

from typing import Any

import pytest

import fedcl
from fedcl.core.errors import ConfigError
from fedcl.settings import Training
from tests.tiny import assert_same_runs, tiny, watched

MORE = {"stream.clients": 8, "training.cohort": 4, "training.oversample": 0.5}


def test_as_many_more_are_asked_as_the_share_says() -> None:
    _, engine = watched(tiny({**MORE, "training.availability": 0.8}))
    counts = {len(ids) for _, ids in engine.requests}
    assert max(counts) == 4, "no more than are needed answer"
    record = fedcl.run(tiny({**MORE, "method.name": "fedavg"}))
    plain = fedcl.run(tiny({**MORE, "training.oversample": 0.0}))
    assert bytes_of(record, "down") == [1.5 * size for size in bytes_of(plain, "down")]
    assert bytes_of(record, "up") == bytes_of(plain, "up")


def bytes_of(record: fedcl.Record, direction: str) -> list[int]:
    """Returns the bytes of each row of costs in one direction."""
    return [row["bytes"] for row in record.costs if row["direction"] == direction]


def test_who_is_first_is_drawn_from_the_seed() -> None:
    first, second = (watched(tiny(MORE)) for _ in range(2))
    assert_same_runs(first[0], second[0])
    assert [ids for _, ids in first[1].requests] == [ids for _, ids in second[1].requests]
    assert len({ids for _, ids in first[1].requests}) == 4, "and differs from round to round"
    assert all(list(ids) == sorted(ids) for _, ids in first[1].requests)


@pytest.mark.parametrize(
    ("cohort", "share", "asked"), [(10, 0.1, 11), (10, 0.25, 13), (4, 0.0, 4), (3, 2.0, 9)]
)
def test_the_number_asked_is_rounded_up(cohort: int, share: float, asked: int) -> None:
    training = tiny({"training.cohort": cohort, "training.oversample": share}).training
    assert isinstance(training, Training)
    assert training.asked == asked


@pytest.mark.parametrize(
    ("changes", "tables", "told"),
    [
        ({"training.cohort": 0}, {}, "asks all of them: set cohort"),
        ({"training.oversample": -0.1}, {}, "oversample must be at least 0"),
        ({}, {"channel": [{"name": "central_dp"}]}, "no proof of privacy covers"),
        ({"training.local.name": "dp_sgd"}, {}, "no proof of privacy covers"),
    ],
)
def test_what_cannot_be_is_refused(
    changes: dict[str, Any], tables: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        tiny({**MORE, **changes}, **tables)
