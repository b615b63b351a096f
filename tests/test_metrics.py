"""Metrics: the fixture that docs/metrics.md prints, cases by hand, what is undefined or wrong."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedcl import metrics

FloatArray = npt.NDArray[np.float64]
NAN = float("nan")
PAGE = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")

R = np.array(
    [
        [0.90, 0.12, 0.10, 0.11],
        [0.60, 0.85, 0.14, 0.09],
        [0.92, 0.50, 0.88, 0.12],
        [0.65, 0.90, 0.40, 0.80],
    ]
)
UNTRAINED = [0.10] * 4
JOINT = [0.93, 0.91, 0.90, 0.88]
OF_MATRIX: list[Callable[[FloatArray], float]] = [
    metrics.average_accuracy,
    metrics.average_incremental_accuracy,
    metrics.backward_transfer,
    lambda matrix: metrics.forward_transfer(matrix, np.zeros(len(matrix))),
    metrics.forgetting,
    metrics.forgetting_first_last,
    metrics.forgetting_clipped,
    lambda matrix: metrics.intransigence(matrix, np.ones(len(matrix))),
    lambda matrix: metrics.mean_intransigence(matrix, np.ones(len(matrix))),
    metrics.learning_accuracy,
]


def missing(matrix: npt.ArrayLike, *cells: tuple[int, ...]) -> FloatArray:
    """Returns a copy without the given cells."""
    copy = np.array(matrix, dtype=np.float64)
    for cell in cells:
        copy[cell] = NAN
    return copy


def seen_only(matrix: FloatArray) -> FloatArray:
    """Returns what a run stores that evaluates only the tasks seen so far."""
    return np.where(np.triu(np.ones_like(matrix), k=1) == 1, NAN, matrix)


# --- The fixture. ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (metrics.average_accuracy(R), 0.6875),
        (metrics.average_accuracy(R, 0), 0.9),
        (metrics.average_accuracy(R, 1), 0.725),
        (metrics.average_accuracy(R, 2), 0.766667),
        (metrics.average_accuracy(R, 3), 0.6875),
        (metrics.average_incremental_accuracy(R), 0.769792),
        (metrics.average_incremental_accuracy(R, include_first=False), 0.726389),
        (metrics.backward_transfer(R), -0.226667),
        (metrics.forward_transfer(R, UNTRAINED), 0.026667),
        (metrics.forgetting(R), 0.233333),
        (metrics.forgetting_first_last(R), 0.226667),
        (metrics.forgetting_clipped(R), 0.25),
        (metrics.intransigence(R, JOINT), 0.08),
        (metrics.mean_intransigence(R, JOINT), 0.0475),
        (metrics.learning_accuracy(R), 0.8575),
    ],
)
def test_fixture(value: float, expected: float) -> None:
    assert value == pytest.approx(expected, abs=5e-7)


def test_the_page_prints_the_numbers_that_the_functions_give() -> None:
    rows = re.findall(r"^\| `([^`]*\(R[^`]*)` \| (\S+) \|$", PAGE, flags=re.MULTILINE)
    names = vars(metrics) | {"R": R, "b": UNTRAINED, "a": JOINT}
    assert len(rows) == 15
    for expression, printed in rows:
        value = eval(compile(ast.parse(expression, mode="eval"), "page", "eval"), names)
        assert f"{value:.6f}".rstrip("0") == printed.replace("−", "-"), expression


def test_the_page_names_every_function() -> None:
    public = [name for name, _ in inspect.getmembers(metrics, inspect.isfunction) if name[0] != "_"]
    assert len(public) == 18
    assert [name for name in public if f"`{name}`" not in PAGE] == []


# --- Small cases by hand. ---


def test_forgetting_can_be_negative_and_then_clipped_is_zero() -> None:
    improves = [[0.5, 0.2], [0.8, 0.6]]
    assert metrics.forgetting(improves) == pytest.approx(-0.3)
    assert metrics.forgetting_clipped(improves) == 0


def test_the_maximum_of_forgetting_reaches_above_the_diagonal() -> None:
    # Task 1 is known best before it is learnt: eq. 3 takes the maximum over all l < T.
    matrix = [[1.0, 0.9, 0.0], [1.0, 0.4, 0.0], [1.0, 0.3, 1.0]]
    assert metrics.forgetting(matrix) == pytest.approx((0 + 0.6) / 2)
    assert metrics.forgetting(seen_only(np.array(matrix))) == pytest.approx((0 + 0.1) / 2)


def test_pooled_accuracy_weighs_by_size() -> None:
    assert metrics.pooled_accuracy([1.0, 0.5], [100, 300]) == 0.625
    assert metrics.pooled_accuracy([1.0, NAN], [100, 0]) == 1
    assert math.isnan(metrics.pooled_accuracy([1.0, NAN], [100, 300]))
    assert math.isnan(metrics.pooled_accuracy([1.0, 0.5], [100, NAN]))
    assert math.isnan(metrics.pooled_accuracy([NAN, 0.5], [0, 0]))


def test_incremental_accuracy_can_pool() -> None:
    matrix = [[1.0, 0.0], [0.5, 1.0]]
    assert metrics.average_incremental_accuracy(matrix) == pytest.approx((1 + 0.75) / 2)
    assert metrics.average_incremental_accuracy(matrix, [300, 100]) == pytest.approx(
        (1 + 0.625) / 2
    )
    by_stage = [[300.0, NAN], [100.0, 100.0]]
    assert metrics.average_incremental_accuracy(matrix, by_stage) == pytest.approx((1 + 0.75) / 2)


def test_intransigence_at_an_earlier_stage_needs_no_later_cell() -> None:
    matrix = missing(R, (2, 2), (3, 3))
    assert metrics.intransigence(matrix, missing(JOINT, (3,)), 1) == pytest.approx(0.06)
    assert math.isnan(metrics.intransigence(matrix, JOINT))


CURVE = [
    [0.2, 0.0, 0.0],
    [0.9, 0.1, 0.0],  # the end of stage 0
    [0.4, 0.5, 0.0],
    [0.7, 0.8, 0.1],  # the end of stage 1
    [0.5, 0.3, 0.6],
    [0.6, 0.6, 0.9],  # the end of stage 2
]
STAGES = [0, 0, 1, 1, 2, 2]


def test_min_and_worst_case_accuracy() -> None:
    # Task 0: lowest of .4 .7 .5 .6; task 1: lowest of .3 .6.
    assert metrics.min_accuracy(CURVE, STAGES) == pytest.approx((0.4 + 0.3) / 2)
    assert metrics.worst_case_accuracy(CURVE, STAGES) == pytest.approx(0.9 / 3 + 2 / 3 * 0.35)
    assert metrics.min_accuracy(CURVE, STAGES, 1) == pytest.approx(0.4)
    assert metrics.worst_case_accuracy(CURVE, STAGES, 1) == pytest.approx(0.8 / 2 + 0.4 / 2)
    assert math.isnan(metrics.min_accuracy(CURVE, STAGES, 0))
    assert metrics.worst_case_accuracy(CURVE, STAGES, 0) == 0.9


def test_min_accuracy_misses_what_it_needs_only() -> None:
    early = missing(CURVE, (0, 0), (1, 0), (3, 1), (5, 2))
    assert metrics.min_accuracy(early, STAGES) == pytest.approx(0.35)
    assert math.isnan(metrics.min_accuracy(missing(CURVE, (4, 0)), STAGES))
    assert math.isnan(metrics.worst_case_accuracy(missing(CURVE, (5, 2)), STAGES))


def test_anytime_accuracy() -> None:
    seen = [0.2, 0.9, 0.45, 0.75, 1.4 / 3, 0.7]
    assert metrics.anytime_accuracy(CURVE, STAGES) == pytest.approx(np.mean(seen))
    # A task without examples does not count.
    pooled = [0.2, 0.9, 0.4, 0.7, 0.5, 0.6]
    assert metrics.anytime_accuracy(CURVE, STAGES, [10, 0, 0]) == pytest.approx(np.mean(pooled))
    assert math.isnan(metrics.anytime_accuracy(missing(CURVE, (2, 1)), STAGES))
    assert metrics.anytime_accuracy(missing(CURVE, (0, 1)), STAGES) == pytest.approx(np.mean(seen))


def test_retention() -> None:
    assert metrics.temporal_retention([0.4, 0.9], [0.8, 0.6]) == pytest.approx((0.5 + 1.5) / 2)
    assert metrics.spatial_retention([0.3], [0.4]) == pytest.approx(0.75)
    assert math.isnan(metrics.temporal_retention([0.4, 0.0], [0.8, 0.0]))
    assert math.isnan(metrics.spatial_retention([0.4, NAN], [0.8, 0.5]))


def test_decomposition_by_hand() -> None:
    # One old task, two rounds: local training loses 30 and 5, averaging wins 20 back, then loses 1.
    shared, local = np.array([90, 80, 74], dtype=np.uint8), np.array([60, 75], dtype=np.uint8)
    assert metrics.local_update_loss(shared, local).tolist() == [30, 5]
    assert metrics.aggregation_loss(shared, local).tolist() == [-20, 1]


def test_decomposition_without_a_local_evaluation_is_missing_in_both_parts() -> None:
    shared, local = [0.9, 0.8, 0.7], [NAN, 0.75]
    lost = metrics.local_update_loss(shared, local), metrics.aggregation_loss(shared, local)
    assert np.isnan(lost).tolist() == [[True, False], [True, False]]


# --- What is undefined, and what is wrong. ---


def test_one_task_has_no_transfer_and_no_forgetting() -> None:
    alone = [[0.9]]
    for metric in (
        metrics.backward_transfer,
        metrics.forgetting,
        metrics.forgetting_first_last,
        metrics.forgetting_clipped,
    ):
        assert math.isnan(metric(alone))
    assert math.isnan(metrics.forward_transfer(alone, [0.1]))
    assert math.isnan(metrics.average_incremental_accuracy(alone, include_first=False))
    assert metrics.average_accuracy(alone) == metrics.learning_accuracy(alone) == 0.9
    assert metrics.average_incremental_accuracy(alone) == 0.9
    assert metrics.intransigence(alone, [1.0]) == pytest.approx(0.1)


@pytest.mark.parametrize("metric", OF_MATRIX)
@pytest.mark.parametrize(
    ("matrix", "fact"),
    [
        (np.ones((2, 3)), r"matrix must be square, stages by tasks, but has shape \(2, 3\)"),
        (np.ones(4), r"matrix must have 2 dimension\(s\), but has shape \(4,\)"),
        (np.ones((0, 0)), "matrix is empty"),
        ([[90.0, 10.0], [65.0, 80.0]], r"matrix must hold fractions in \[0, 1\] or NaN, not 90"),
        ([[0.9, 0.1], [-0.1, 0.8]], "not -0.1"),
        ([[0.9, 0.1], [np.inf, 0.8]], "not inf"),
    ],
)
def test_wrong_matrices_are_refused(
    metric: Callable[[Any], float], matrix: npt.ArrayLike, fact: str
) -> None:
    with pytest.raises(ValueError, match=fact):
        metric(matrix)


@pytest.mark.parametrize(
    ("call", "fact"),
    [
        (lambda: metrics.forgetting([[0.9], [0.6, 0.8]]), "matrix is not a regular array"),
        (lambda: metrics.forgetting([["a"]]), "matrix is not a regular array of numbers"),
        (lambda: metrics.average_accuracy(R, 4), "stage 4 does not exist: stages go from 0 to 3"),
        (lambda: metrics.average_accuracy(R, -1), "stage -1 does not exist"),
        (lambda: metrics.forward_transfer(R, [0.1]), "untrained needs one accuracy for each of 4"),
        (lambda: metrics.intransigence(R, [1.0] * 5), "joint needs one accuracy for each of 4"),
        (lambda: metrics.mean_intransigence(R, []), "joint is empty"),
        (lambda: metrics.intransigence(R, JOINT, 7), "stage 7 does not exist"),
        (lambda: metrics.pooled_accuracy([], []), "accuracies is empty"),
        (lambda: metrics.pooled_accuracy([0.5], [1, 2]), "1 accuracies need as many sizes, not 2"),
        (lambda: metrics.pooled_accuracy([0.5], [-1]), "sizes must not be negative"),
        (lambda: metrics.average_incremental_accuracy(R, [1, 2]), r"sizes of shape \(2,\) do not"),
        (lambda: metrics.average_incremental_accuracy(R, 3), "sizes must have 2 dimension"),
        (lambda: metrics.min_accuracy(R, [0, 1]), "curve has 4 points, but stages has 2"),
        (lambda: metrics.min_accuracy(R, [0, 1, 0, 1]), "that never fall"),
        (lambda: metrics.min_accuracy(R, [0, 1, 2, 4]), "whole numbers from 0 to 3"),
        (lambda: metrics.min_accuracy(R, [0, 0.5, 1, 2]), "whole numbers from 0 to 3"),
        (lambda: metrics.min_accuracy(R, [0, NAN, 1, 2]), "whole numbers from 0 to 3"),
        (lambda: metrics.worst_case_accuracy(R, [0, 0, 2, 2], 1), "no evaluation point lies in"),
        (lambda: metrics.anytime_accuracy([], []), "curve is empty"),
        (lambda: metrics.temporal_retention([0.5], [0.5, 0.5]), "1 and 2 clients do not pair up"),
        (lambda: metrics.spatial_retention([], []), "is empty"),
        (lambda: metrics.local_update_loss([0.5, 0.4], [0.5, 0.4]), "must be .rounds . 1, ...."),
        (lambda: metrics.aggregation_loss([0.5], []), "must be .rounds . 1, ...."),
        (lambda: metrics.aggregation_loss(0.5, 0.4), "must be .rounds . 1, ...."),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], object], fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        call()


def test_null_of_a_summary_is_missing() -> None:
    stored: Any = [[0.9, None], [0.6, 0.8]]
    assert metrics.forgetting(stored) == pytest.approx(0.3)
