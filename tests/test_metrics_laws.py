"""Metrics: laws that hold for any matrix, and what other code bases make of the same matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

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


def matrices(least: int = 1) -> st.SearchStrategy[FloatArray]:
    return st.integers(least, 6).flatmap(
        lambda tasks: arrays(np.float64, (tasks, tasks), elements=st.floats(0, 1))
    )


def missing(matrix: npt.ArrayLike, *cells: tuple[int, ...]) -> FloatArray:
    """Returns a copy without the given cells."""
    copy = np.array(matrix, dtype=np.float64)
    for cell in cells:
        copy[cell] = NAN
    return copy


def seen_only(matrix: FloatArray) -> FloatArray:
    """Returns what a run stores that evaluates only the tasks seen so far."""
    return np.where(np.triu(np.ones_like(matrix), k=1) == 1, NAN, matrix)


@given(matrices())
def test_first_last_is_minus_backward_transfer_to_the_last_digit(matrix: FloatArray) -> None:
    lost, transfer = metrics.forgetting_first_last(matrix), metrics.backward_transfer(matrix)
    assert lost == -transfer or (len(matrix) == 1 and math.isnan(lost) and math.isnan(transfer))


@given(matrices(least=2))
def test_order_of_the_three_forgettings(matrix: FloatArray) -> None:
    clipped, plain = metrics.forgetting_clipped(matrix), metrics.forgetting(matrix)
    assert clipped >= 0
    assert clipped >= plain >= metrics.forgetting_first_last(matrix)


@given(matrices(least=2), st.randoms(use_true_random=False))
def test_nan_above_the_diagonal_is_no_candidate(matrix: FloatArray, random: Any) -> None:
    above = [tuple(cell) for cell in np.argwhere(np.triu(np.ones_like(matrix), k=1))]
    cells = random.sample(above, random.randint(0, len(above)))
    holes = missing(matrix, *cells)
    ignored = np.where(np.isnan(holes), 0.0, matrix)  # no accuracy is below 0
    for metric in (metrics.forgetting, metrics.forgetting_clipped):
        assert metric(holes) == metric(ignored)
    assert metrics.forgetting_first_last(holes) == metrics.forgetting_first_last(matrix)


@given(matrices(least=2), st.data())
def test_nan_on_or_below_the_diagonal_is_never_skipped(matrix: FloatArray, data: Any) -> None:
    row = data.draw(st.integers(0, len(matrix) - 1))
    column = data.draw(st.integers(0, min(row, len(matrix) - 2)))
    holes = missing(matrix, (row, column))
    last = row == len(matrix) - 1
    assert math.isnan(metrics.forgetting(holes))
    assert math.isnan(metrics.forgetting_clipped(holes))
    assert math.isnan(metrics.average_incremental_accuracy(holes))
    assert math.isnan(metrics.average_accuracy(holes)) == last
    assert math.isnan(metrics.backward_transfer(holes)) == (last or row == column)
    assert math.isnan(metrics.forgetting_first_last(holes)) == (last or row == column)
    assert math.isnan(metrics.learning_accuracy(holes)) == (row == column)


@given(matrices(least=2))
def test_forward_transfer_needs_the_cells_just_above_the_diagonal(matrix: FloatArray) -> None:
    before = np.zeros(len(matrix))
    assert math.isnan(metrics.forward_transfer(missing(matrix, (0, 1)), before))
    assert math.isnan(metrics.forward_transfer(matrix, missing(before, (1,))))
    rest = np.where(np.eye(len(matrix), k=1) == 1, matrix, NAN)
    first = missing(before, (0,))
    assert metrics.forward_transfer(rest, first) == metrics.forward_transfer(matrix, before)


@given(matrices())
def test_pooling_equal_sizes_is_the_mean(matrix: FloatArray) -> None:
    pooled = metrics.average_incremental_accuracy(matrix, [7] * len(matrix))
    assert pooled == pytest.approx(metrics.average_incremental_accuracy(matrix), abs=1e-12)
    assert metrics.pooled_accuracy(matrix[-1], [7] * len(matrix)) == pytest.approx(
        metrics.average_accuracy(matrix), abs=1e-12
    )


@given(matrices())
def test_one_point_a_stage_ties_curves_to_matrices(matrix: FloatArray) -> None:
    ends = np.arange(len(matrix))
    anytime = metrics.anytime_accuracy(matrix, ends)
    assert anytime == metrics.average_incremental_accuracy(matrix)
    if len(matrix) == 2:  # the one later point is the last one
        assert metrics.worst_case_accuracy(matrix, ends) == pytest.approx(
            metrics.average_accuracy(matrix), abs=1e-12
        )


@given(matrices(least=2))
def test_worst_case_is_no_better_than_average_accuracy(matrix: FloatArray) -> None:
    worst = metrics.worst_case_accuracy(matrix, np.arange(len(matrix)))
    assert worst <= metrics.average_accuracy(matrix) + 1e-12


@st.composite
def federations(draw: Any, elements: st.SearchStrategy[Any]) -> tuple[list[Any], list[Any]]:
    """Draws the accuracies of a global model on two tasks, and of a local one, by rounds."""
    rounds = draw(st.integers(1, 8))
    task_pair = st.lists(elements, min_size=2, max_size=2)
    shared = draw(st.lists(task_pair, min_size=rounds + 1, max_size=rounds + 1))
    return shared, draw(st.lists(task_pair, min_size=rounds, max_size=rounds))


@given(federations(st.integers(0, 10_000)) | federations(st.fractions(0, 1)))
def test_decomposition_telescopes_exactly(federation: tuple[list[Any], list[Any]]) -> None:
    shared, local = federation
    local_update = metrics.local_update_loss(shared, local)
    aggregation = metrics.aggregation_loss(shared, local)
    total = local_update.sum(axis=0) + aggregation.sum(axis=0)
    assert total.tolist() == [shared[0][j] - shared[-1][j] for j in range(2)]
    kind = Fraction if isinstance(shared[0][0], Fraction) else int
    assert all(isinstance(value, kind) for value in total.tolist())


@given(federations(st.floats(0, 1)))
def test_decomposition_telescopes_to_rounding(federation: tuple[list[Any], list[Any]]) -> None:
    shared, local = federation
    total = metrics.local_update_loss(shared, local) + metrics.aggregation_loss(shared, local)
    np.testing.assert_allclose(total.sum(axis=0), np.subtract(shared[0], shared[-1]), atol=1e-14)


@given(matrices())
def test_arguments_are_left_alone(matrix: FloatArray) -> None:
    before = matrix.copy()
    metrics.forgetting(matrix)
    metrics.forgetting_clipped(matrix)
    metrics.pooled_accuracy(matrix[0], np.ones(len(matrix)))
    np.testing.assert_array_equal(matrix, before)


# --- What other code bases call forgetting: their formulas, written anew. ---


def fot(a: FloatArray) -> float:
    """(a) Diagonal minus last row, without the last task."""
    return float(np.mean([a[t, t] - a[-1, t] for t in range(len(a) - 1)]))


def fed_mammoth(a: FloatArray) -> float:
    """(b) The same, divided by T: the last task counts with 0."""
    return float(sum(a[t, t] - a[-1, t] for t in range(len(a))) / len(a))


def fedprotip(a: FloatArray) -> float:
    """(c) Best before the last row, from learning on; the last task counts with 0; divided by T."""
    return float(sum(max(a[k:-1, k]) - a[-1, k] for k in range(len(a) - 1)) / len(a))


def agem(a: FloatArray) -> float:
    """Chaudhry et al.'s equation 3 as in their own A-GEM code."""
    return float(np.mean([max(a[:-1, k]) - a[-1, k] for k in range(len(a) - 1)]))


def pycil(a: FloatArray) -> float:
    """Zeros above the diagonal, best over all rows, without the last task; Mammoth alike."""
    table = np.tril(a)
    return float(np.mean((table.max(axis=0) - table[-1])[:-1]))


def lander(a: FloatArray) -> float:
    """(e) The maximum along the wrong axis: over tasks at each time, not over time."""
    table = np.tril(a)
    return float(np.mean(table.max(axis=1) - table[-1]))


def mfcl(a: FloatArray) -> float:
    """(f) First task stored as a fraction, all else in percent; diagonal minus last row over T."""
    learnt = [a[0, 0], *(100 * a[t, t] for t in range(1, len(a)))]
    return float(sum(learnt[t] - 100 * a[-1, t] for t in range(len(a))) / len(a))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (fed_mammoth, 0.17),
        (fedprotip, 0.175),
        (lander, 0.205),
        (fot, 0.226667),
        (agem, 0.233333),
        (pycil, 0.25),
        (mfcl, -5.275),
    ],
)
def test_other_code_bases_on_the_fixture(
    other: Callable[[FloatArray], float], expected: float
) -> None:
    assert other(R) == pytest.approx(expected, abs=5e-7)
    assert f"| {str(round(expected, 4)).replace('-', '−')} |" in PAGE


@given(matrices(least=2))
def test_which_of_our_names_is_whose_number(matrix: FloatArray) -> None:
    tasks = len(matrix)
    share = (tasks - 1) / tasks
    first_last = metrics.forgetting_first_last(matrix)
    assert fot(matrix) == pytest.approx(first_last, abs=1e-12)
    assert fed_mammoth(matrix) == pytest.approx(share * first_last, abs=1e-12)
    assert agem(matrix) == pytest.approx(metrics.forgetting(matrix), abs=1e-12)
    seen = seen_only(matrix)
    assert fedprotip(matrix) == pytest.approx(share * metrics.forgetting(seen), abs=1e-12)
    assert pycil(matrix) == pytest.approx(metrics.forgetting_clipped(seen), abs=1e-12)
