"""Numbers as a reader wants them: three digits, a unit, n/a for what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedcl.reporting.text import duration, percent, points, volume


def test_bytes_have_three_digits_and_a_unit() -> None:
    assert [volume(10.0**k) for k in (0, 3, 7, 13)] == ["1 B", "1.00 kB", "10.0 MB", "10.0 TB"]
    assert [volume(size) for size in (0, 999, 999.9)] == ["0 B", "999 B", "1.00 kB"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.00 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (61.0, "1 min 01 s"),
        (3725.0, "1 h 02 min"),
    ],
)
def test_times_have_the_two_units_that_matter(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_fractions_have_a_true_minus_sign_and_none_before_zero() -> None:
    assert [percent(0.5), percent(-0.0001)] == ["50.0 %", "0.0 %"]
    assert [points(-0.123), points(0.25)] == ["−12.3 pp", "25.0 pp"]


@pytest.mark.parametrize("show", [duration, percent, points, volume])
def test_what_is_missing_is_said(show: Callable[[Any], str]) -> None:
    assert show(None) == "n/a"
