"""Banded noise: its covariance, its sensitivity by brute force, and who may take part when."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm, toeplitz

from fedcl.core.population import sample
from fedcl.core.privacy.banded import (
    coefficients,
    correlated,
    inverse,
    sensitivity,
    separation_of,
    squared_norms,
)
from fedcl.core.privacy.noise import gaussian, seeded_root


def matrix(column: tuple[float, ...], rounds: int) -> np.ndarray:
    first = np.zeros(rounds)
    first[: min(rounds, len(column))] = column[:rounds]
    return np.asarray(np.tril(toeplitz(first)))


def test_the_coefficients_are_those_of_the_square_root_of_ones() -> None:
    assert coefficients(4) == (1.0, 0.5, 0.375, 0.3125)
    root = sqrtm(np.tril(np.ones((8, 8))))
    assert np.allclose(matrix(coefficients(8), 8), root, atol=1e-6)
    with pytest.raises(ValueError, match="at least one band"):
        coefficients(0)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 3))
def test_sensitivity_is_that_of_the_worst_choice_of_rounds(
    rounds: int, bands: int, more: int
) -> None:
    separation, column = bands + more, coefficients(bands)
    c = matrix(column, rounds)
    worst = 0.0
    for count in range(rounds + 1):
        for chosen in combinations(range(rounds), count):
            if all(b - a >= separation for a, b in pairwise(chosen)):
                # Columns do not overlap, so that signs and directions do not matter.
                worst = max(worst, float(np.linalg.norm(c[:, chosen].sum(axis=1))))
    assert sensitivity(column, rounds, separation) == pytest.approx(worst, abs=1e-12)
    assert squared_norms(column, rounds) == pytest.approx((c**2).sum(0).tolist())


def test_columns_must_not_overlap() -> None:
    with pytest.raises(ValueError, match="3 bands need 3 rounds"):
        sensitivity(coefficients(3), 10, 2)


def test_one_band_is_independent_noise() -> None:
    assert sensitivity(coefficients(1), 12, 4) == pytest.approx(math.sqrt(3))
    drawn = {s: torch.full((2,), float(s)) for s in range(5)}
    assert torch.equal(correlated(coefficients(1), 4, drawn.__getitem__), drawn[4])


def test_the_noise_has_the_covariance_of_the_mechanism() -> None:
    rounds, column, d = 6, coefficients(3), 60_000
    root = seeded_root(2)
    noise = torch.stack(
        [correlated(column, t, lambda s: gaussian(root, (d,), 2.0, "z", s)) for t in range(rounds)]
    ).numpy()
    c = np.linalg.inv(matrix(column, rounds))
    expected = 4.0 * c @ c.T
    assert np.allclose(c[:, 0], inverse(column, rounds))
    found = noise @ noise.T / d
    # The variance of an entry of an empirical covariance is (s_ii s_jj + s_ij²) / d.
    spread = (np.outer(np.diag(expected), np.diag(expected)) + expected**2) / d
    bound = 3 * math.sqrt(spread.sum())
    assert np.linalg.norm(found - expected) < bound
    assert np.linalg.norm(4.0 * np.eye(rounds) - expected) > bound, "independent noise differs"
    less = 0.95 * noise
    assert np.linalg.norm(less @ less.T / d - expected) > bound, "as does five percent less"


def test_running_totals_have_less_noise_at_equal_sensitivity() -> None:
    """PRIVACY.md 1.3: 2.34 times less at 100 rounds and a separation of 10."""
    rounds, separation = 100, 10
    ones = np.tril(np.ones((rounds, rounds)))

    def error(bands: int) -> float:
        column = coefficients(bands)
        b = ones @ np.linalg.inv(matrix(column, rounds))
        rms = math.sqrt((b**2).sum() / rounds)
        return rms * sensitivity(column, rounds, separation)

    assert error(1) / error(separation) == pytest.approx(2.34, abs=0.02)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 5))
def test_taking_turns_never_violates_the_separation(members: int, size: int, first: int) -> None:
    size = min(size, members)
    last: dict[int, int] = {}
    for turn in range(first, first + 40):
        for client in sample(range(members), size, "round_robin", 0, turn):
            if client in last:
                assert turn - last[client] >= separation_of(members, size)
            last[client] = turn
