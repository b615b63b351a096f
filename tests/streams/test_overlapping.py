"""Shares that each client draws by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl.core.data.scenario import Shares
from fedcl.streams._overlapping import Overlapping


def draw(rule: Overlapping, labels: object, clients: int = 10**9, seed: int = 3) -> Shares:
    return rule.divide(np.asarray(labels, dtype=np.int64), {}, clients, seed)


@given(
    rows=st.integers(1, 60),
    examples=st.integers(1, 60),
    classes=st.integers(1, 5),
    alpha=st.sampled_from([0.0, 1e-3, 0.5, 1e3]),
    client=st.integers(0, 10**9 - 1),
)
def test_a_client_has_no_row_twice(
    rows: int, examples: int, classes: int, alpha: float, client: int
) -> None:
    examples = min(examples, rows)
    shares = draw(Overlapping(examples, alpha), np.arange(rows) * 7 % classes)
    own = shares.rows(client)
    assert len(set(own.tolist())) == len(own) == examples
    assert set(own.tolist()) <= set(range(rows))
    assert own.dtype == np.int64
    assert shares.sizes(np.array([client, 0])).tolist() == [examples] * 2
    assert own.tolist() == shares.rows(client).tolist()


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_shares_are_functions_of_seed_and_client_alone(alpha: float) -> None:
    labels = np.arange(200) % 4
    rule = Overlapping(20, alpha)
    first = draw(rule, labels).rows(7).tolist()
    assert draw(rule, labels, clients=8).rows(7).tolist() == first
    assert draw(rule, labels).rows(8).tolist() != first
    assert draw(rule, labels, seed=4).rows(7).tolist() != first


def test_every_row_is_as_likely_and_shares_overlap() -> None:
    shares = draw(Overlapping(5), np.arange(20) % 2)
    held = np.bincount(np.concatenate([shares.rows(c) for c in range(4000)]), minlength=20)
    # 4000 draws of chance 1/4: 1000, of standard deviation 27.
    assert np.abs(held - 1000).max() < 5 * 27


def test_mixes_of_classes_follow_the_dirichlet_distribution() -> None:
    """With k classes a share has mean 1/k and variance (k - 1) / (k^2 (k alpha + 1))."""
    alpha, labels = 0.5, np.arange(4000) % 4
    shares = draw(Overlapping(200, alpha), labels)
    mixes = np.array([np.bincount(labels[shares.rows(c)], minlength=4) / 200 for c in range(1500)])
    assert np.allclose(mixes.mean(0), 0.25, atol=0.035)
    # Drawing 200 examples of a mix adds (1/4 3/4 - variance) / 200.
    variance = 3 / (16 * 3)
    assert np.allclose(mixes.var(0), variance + (3 / 16 - variance) / 200, atol=0.007)


def test_rows_of_a_class_are_as_likely_and_stand_in_random_order() -> None:
    labels = np.arange(40) % 2
    shares = draw(Overlapping(8, 1.0), labels)
    drawn = np.array([shares.rows(c) for c in range(3000)])
    held = np.bincount(drawn.ravel(), minlength=40)
    assert np.abs(held - 600).max() < 120
    assert abs(labels[drawn[:, 0]].mean() - labels[drawn[:, -1]].mean()) < 0.05


def test_a_class_that_is_too_small_is_filled_from_the_others() -> None:
    labels = np.array([0] * 3 + [1] * 17)
    shares = draw(Overlapping(12, 0.01), labels)
    zeros = {int((labels[shares.rows(client)] == 0).sum()) for client in range(200)}
    assert zeros <= {0, 1, 2, 3}
    assert {0, 3} <= zeros


def test_a_large_population_takes_no_memory() -> None:
    labels = np.arange(10_000) % 10
    assert draw(Overlapping(50), labels).nbytes == 0
    assert draw(Overlapping(50, 0.5), labels).nbytes == 4 * 10_000 + 8 * 10


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="examples must be at least 1, not 0"):
        Overlapping(examples=0)
    with pytest.raises(ValueError, match="alpha must be at least 0, not -1"):
        Overlapping(alpha=-1.0)
    with pytest.raises(ValueError, match="a client draws 50 examples, but a task has 49: lower"):
        draw(Overlapping(), np.zeros(49))
