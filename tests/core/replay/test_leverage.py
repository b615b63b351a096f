"""Leverage scores from masked features equal those of the plain stack; the draw is fair."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fedcl.core.replay.leverage import directions, draw, masked, rotation

EPS = 2.2e-16


def shares(sizes: Sequence[int], d: int, rank: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(d)
    basis = torch.randn(rank or d, d, generator=generator, dtype=torch.float64)
    return [
        torch.randn(n, rank or d, generator=generator, dtype=torch.float64) @ basis for n in sizes
    ]


def scores_by_way_of_the_server(own: Sequence[Tensor], seed: int) -> tuple[list[Tensor], Tensor]:
    """Returns each client's scores, and the stack that the server saw."""
    d = own[0].shape[1]
    height = min(d, max(map(len, own)))
    shared = rotation(d, seed, "Q")
    sent = [
        masked(x, height, rotation(height, seed, client), shared) for client, x in enumerate(own)
    ]
    stack = torch.cat([hidden for hidden, _ in sent])
    assert stack.shape == (height * len(own), d)
    parts = directions(stack, EPS).split(height)
    scores = [(back @ part).square().sum(1) for (_, back), part in zip(sent, parts, strict=True)]
    return scores, stack


@pytest.mark.parametrize(
    ("sizes", "d", "rank"),
    [((9, 30, 4), 6, None), ((3, 2, 4), 12, None), ((20, 1, 7), 7, None), ((30, 12, 2), 8, 3)],
)
def test_scores_equal_those_of_the_plain_stack(
    sizes: tuple[int, ...], d: int, rank: int | None
) -> None:
    """|e_j^T U|^2 of X = U S V^T, the paper's equation 5, and x_j^T (X^T X)^+ x_j."""
    own = shares(sizes, d, rank)
    found, stack = scores_by_way_of_the_server(own, seed=5)
    plain = torch.cat(own)
    left, values, _ = torch.linalg.svd(plain, full_matrices=False)
    left = left[:, values > 1e-10 * values[0]]
    assert left.shape[1] == (rank or min(d, sum(sizes)))
    slow = left.square().sum(1)
    assert [len(scores) for scores in found] == list(sizes)
    assert float((torch.cat(found) - slow).abs().max()) < 1e-10
    inverse = torch.linalg.pinv(plain.T @ plain, rtol=1e-12, hermitian=True)
    assert float(((plain @ inverse * plain).sum(1) - slow).abs().max()) < 1e-8
    assert float(torch.cat(found).sum()) == pytest.approx(left.shape[1], abs=1e-10)
    # Singular values are the features' own: this much the server learns.
    assert torch.linalg.svdvals(stack)[: len(values)] == pytest.approx(
        values[: len(stack)].tolist(), abs=1e-10
    )


def test_scores_do_not_depend_on_the_masks() -> None:
    own = shares((9, 30, 4), 6)
    first, other = (torch.cat(scores_by_way_of_the_server(own, seed)[0]) for seed in (1, 2))
    assert float((first - other).abs().max()) < 1e-10


@pytest.mark.parametrize("n", [3, 8, 9, 40])
def test_what_is_sent_is_masked_and_can_be_taken_back(n: int) -> None:
    (x,), shared = shares((n,), 8), rotation(8, 0)
    height = min(8, n) if n > 3 else 8
    hidden, back = masked(x, height, rotation(height, 1), shared)
    assert hidden.shape == (height, 8)
    assert float((back @ hidden @ shared.T - x).abs().max()) < 1e-12
    assert float((hidden.T @ hidden - shared.T @ x.T @ x @ shared).abs().max()) < 1e-11
    # The masks do change what is sent: no row of it is a row of the features, turned or not.
    for plain in (x, x @ shared):
        assert float(torch.cdist(hidden, plain).min()) > 1e-3


def test_a_rotation_is_orthogonal_and_uniform() -> None:
    drawn = torch.stack([rotation(2, seed) for seed in range(400)])
    eye = torch.eye(2, dtype=torch.float64)
    assert float((drawn @ drawn.mT - eye).abs().max()) < 1e-14
    assert torch.equal(rotation(5, 1, "own"), rotation(5, 1, "own"))
    # Uniform: reflections are as many, and entries are centred. A plain QR has one sign of R.
    assert abs(float(torch.linalg.det(drawn).mean())) < 0.15
    assert float(drawn.mean(0).abs().max()) < 0.1


# --- The draw. ---


def test_each_row_is_drawn_with_its_probability() -> None:
    """Over all starting points, each row is in the sample for a share of them that is its own."""
    scores = torch.tensor([0.3, 0.0, 0.1, 0.25, 0.05, 0.2, 0.1, 0.0])
    counts, grid = torch.zeros(8), 2000
    for place in range(grid):
        taken = draw(scores, 3, (place + 0.5) / grid)
        assert len(taken) == 3
        counts[taken] += 1
    assert (counts / grid).tolist() == pytest.approx((3 * scores).tolist(), abs=2 / grid)


def test_each_stretch_has_its_expected_number() -> None:
    """Of 40 rows of three clients: by the sum of scores, up to less than one row."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, generator=generator, dtype=torch.float64) + 0.5
    for start in torch.rand(50, generator=generator, dtype=torch.float64).tolist():
        taken = draw(scores, 12, start)
        assert len(set(taken.tolist())) == len(taken) == 12
        for first, last in ((0, 7), (7, 25), (25, 40)):
            expected = 12 * float(scores[first:last].sum() / scores.sum())
            number = int(((taken >= first) & (taken < last)).sum())
            assert abs(number - expected) < 1


def test_rows_that_would_be_drawn_twice_are_taken_once() -> None:
    """Of 3: the first for certain; 2 of the others, whose scores are alike."""
    scores = torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0])
    for start in (0.0, 0.3, 0.999999):
        taken = draw(scores, 3, start)
        assert len(taken) == 3
        assert int(taken[0]) == 0
    counts = sum(torch.bincount(draw(scores, 3, s / 100), minlength=5) for s in range(100))
    assert counts.tolist() == [100, 50, 50, 50, 50]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("scores", "samples", "rows"),
    [
        ([1.0, 0.0, 2.0], 5, [0, 2]),
        ([1.0, 0.0, 2.0], 2, [0, 2]),
        ([0.0, 0.0], 2, []),
        ([1.0, 1.0], 0, []),
        ([], 3, []),
    ],
)
def test_what_has_no_score_is_never_drawn(
    scores: list[float], samples: int, rows: list[int]
) -> None:
    for start in (0.0, 0.5, 0.999):
        assert draw(torch.tensor(scores), samples, start).tolist() == rows


def test_rounding_never_changes_the_size_of_a_sample() -> None:
    generator = torch.Generator().manual_seed(1)
    for count in (7, 100, 1001):
        scores = torch.rand(count, generator=generator) ** 8
        for start in (0.0, 1e-17, 0.5, 1 - 2**-53):
            for samples in (1, 5, count - 1, count):
                assert len(draw(scores, samples, start)) == samples
