"""Blobs that are computed when fetched: the right distribution, and functions of position alone."""

import math
import pickle
import time

import numpy as np
import pytest

from fedcl.core.data.table import Table
from fedcl.datasets.synthetic import Synthetic


def splitmix(word: int) -> int:
    """SplitMix64's output for a state, as published: 0 gives 0xE220A8397B1DCDAF."""
    word = (word + 0x9E3779B97F4A7C15) % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


def normal(seed: int, stream: int, counter: int) -> tuple[float, float]:
    """Two standard normal values by Box-Muller, the slow way."""
    assert splitmix(0) == 0xE220A8397B1DCDAF
    key = splitmix(splitmix(seed) + stream)
    bits = splitmix((key + (counter - 1) * 0x9E3779B97F4A7C15) % 2**64)
    radius = math.sqrt(-2.0 * math.log((bits // 2**32 + 1) / 2**32))
    angle = 2.0 * math.pi * (bits % 2**32) / 2**32
    return radius * math.cos(angle), radius * math.sin(angle)


def everything(table: Table) -> np.ndarray:
    return table.rows(np.arange(len(table.labels)))


def test_labels_and_domains_are_balanced_in_any_stretch() -> None:
    table = Synthetic(classes=3, domains=2, train=12, test=6).load().train
    assert table.labels.tolist() == [0, 1, 2] * 4
    assert table.columns["domain"].tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert table.labels.dtype == table.columns["domain"].dtype == np.int64


def test_one_domain_has_no_column() -> None:
    assert Synthetic().load().train.columns == {}


@pytest.mark.parametrize(("features", "shape"), [(5, (5,)), ((1, 3, 5), (1, 3, 5))])
def test_inputs_have_the_shape_asked_for(
    features: int | tuple[int, ...], shape: tuple[int, ...]
) -> None:
    dataset = Synthetic(features=features, train=50, test=20).load()
    assert (dataset.name, dataset.classes, dataset.shape) == ("synthetic", 10, shape)
    rows = dataset.test.rows(np.array([3, 19]))
    assert rows.shape == (2, *shape)
    assert rows.dtype == np.float32
    assert dataset.test.rows(np.array([], dtype=np.int64)).shape == (0, *shape)


def test_the_noise_is_standard_normal() -> None:
    noise = everything(Synthetic(features=100, train=10_000, spread=0.0).load().train).ravel()
    # A million values: the standard errors are 0.001, 0.0014, 0.0024 and 0.005.
    assert abs(noise.mean()) < 0.005
    assert abs(noise.var() - 1.0) < 0.007
    assert abs((noise**3).mean()) < 0.012
    assert abs((noise.astype(np.float64) ** 4).mean() - 3.0) < 0.025
    for bound, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert abs((np.abs(noise) < bound).mean() - share) < 0.0025


def test_values_are_uncorrelated_between_features_and_between_rows() -> None:
    noise = everything(Synthetic(features=7, train=20_000, spread=0.0).load().train)
    across = np.corrcoef(noise, rowvar=False) - np.eye(7)
    assert np.abs(across).max() < 0.03
    for lag in (1, 10):
        assert np.abs((noise[lag:] * noise[:-lag]).mean(axis=0)).max() < 0.03


def test_centres_have_the_spread_and_are_shared_by_both_splits() -> None:
    dataset = Synthetic(classes=20, features=200, train=4000, test=4000, spread=3.0).load()
    centres = [
        np.stack([everything(table)[table.labels == label].mean(axis=0) for label in range(20)])
        for table in (dataset.train, dataset.test)
    ]
    assert abs(centres[0].std() - 3.0) < 0.15
    # Two means of 200 rows each differ by a standard deviation of 0.1.
    assert abs((centres[0] - centres[1]).std() - 0.1) < 0.01


def test_each_domain_moves_all_centres_alike() -> None:
    table = (
        Synthetic(classes=2, features=50, domains=2, train=8000, test=8, spread=2.0).load().train
    )
    rows, labels, domains = everything(table), table.labels, table.columns["domain"]
    moves = [
        rows[(labels == k) & (domains == 1)].mean(axis=0)
        - rows[(labels == k) & (domains == 0)].mean(axis=0)
        for k in range(2)
    ]
    assert np.abs(moves[0] - moves[1]).max() < 0.3
    assert 1.8 < moves[0].std() < 4.0


@pytest.mark.parametrize("features", [1, 7, 20, (3, 32, 32)])
def test_a_row_does_not_depend_on_how_it_is_fetched(features: int | tuple[int, ...]) -> None:
    dataset = Synthetic(features=features, train=300, test=300, domains=3).load()
    whole = everything(dataset.train)
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_array_equal(dataset.train.rows(order), whole[order])
    np.testing.assert_array_equal(dataset.train.rows(np.array([5, 5, 5])), whole[[5, 5, 5]])
    alone = np.concatenate([dataset.train.rows(np.array([row])) for row in range(300)])
    np.testing.assert_array_equal(alone, whole)
    again = Synthetic(features=features, train=400, test=50, domains=3).load()
    np.testing.assert_array_equal(again.train.rows(np.arange(300)), whole)


def test_a_large_fetch_is_made_in_pieces_without_a_seam() -> None:
    table = Synthetic(features=20, train=10_000).load().train
    whole = everything(table)
    halves = [table.rows(np.arange(0, 5000)), table.rows(np.arange(5000, 10_000))]
    np.testing.assert_array_equal(np.concatenate(halves), whole)


def test_splits_and_seeds_give_other_values() -> None:
    first, other = Synthetic(train=500, test=500), Synthetic(train=500, test=500, seed=1)
    tables = [first.load().train, first.load().test, other.load().train, other.load().test]
    rows = [everything(table).ravel() for table in tables]
    for left in range(4):
        for right in range(left):
            assert not np.isin(rows[left], rows[right]).all()
            assert (rows[left] == rows[right]).mean() < 1e-3


def test_values_are_those_of_the_formula_one_by_one() -> None:
    """Guards stored results: a change here changes every run on synthetic data."""
    width, pairs, spread = 3, 2, 0.5
    dataset = Synthetic(classes=2, features=width, train=8, test=4, spread=spread, seed=7).load()
    for stream, table in ((1, dataset.train), (2, dataset.test)):
        rows = everything(table)
        for row, feature in np.ndindex(rows.shape):
            noise, centre = (
                normal(7, kind, pairs * at + feature // 2)[feature % 2]
                for kind, at in ((stream, row), (3, row % 2))
            )
            assert rows[row, feature] == pytest.approx(noise + spread * centre, rel=1e-5)


def test_a_linear_classifier_learns_the_classes() -> None:
    dataset = Synthetic().load()
    train, test = everything(dataset.train), everything(dataset.test)
    design = np.hstack([train, np.ones((len(train), 1))])
    weights, *_ = np.linalg.lstsq(design, np.eye(10)[dataset.train.labels], rcond=None)
    scores = np.hstack([test, np.ones((len(test), 1))]) @ weights
    assert (scores.argmax(axis=1) == dataset.test.labels).mean() > 0.9


def test_a_million_rows_cost_next_to_nothing() -> None:
    start = time.perf_counter()
    table = Synthetic(classes=100, features=(3, 32, 32), train=10**6, test=100).load().train
    assert len(table.labels) == 10**6
    rows = table.rows(np.array([0, 10**6 - 1]))
    assert time.perf_counter() - start < 5.0  # far above what it takes, far below making all rows
    assert np.isfinite(rows).all()


def test_counters_of_huge_splits_do_not_collide() -> None:
    table = Synthetic(features=3, train=2**40, spread=0.0).load().train
    rows = table.rows(np.array([0, 1, 2**32, 2**39, 2**40 - 1]))
    assert len(np.unique(rows, axis=0)) == 5


@pytest.mark.parametrize("rows", [[-1], [0, 2000]])
def test_refuses_rows_outside_the_split(rows: list[int]) -> None:
    with pytest.raises(IndexError, match="row indices must lie in 0 to 1999"):
        Synthetic().load().train.rows(np.array(rows))


def test_survives_pickling() -> None:
    table = Synthetic().load().train
    copy = pickle.loads(pickle.dumps(table))
    np.testing.assert_array_equal(copy.rows(np.arange(5)), table.rows(np.arange(5)))
    np.testing.assert_array_equal(copy.labels, table.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "classes must be at least 1, not 0"),
        ({"domains": 0}, "domains must be at least 1, not 0"),
        ({"train": 9}, "train must be at least 10 .* not 9"),
        ({"test": 29, "domains": 3}, "test must be at least 30 .* not 29"),
        ({"features": 0}, "features must be positive, not 0"),
        ({"features": ()}, r"features must be positive, not \(\)"),
        ({"features": (3, -1)}, r"features must be positive, not \(3, -1\)"),
        ({"spread": -1.0}, "spread must be finite and not negative, not -1.0"),
        ({"spread": float("nan")}, "spread must be finite and not negative, not nan"),
        ({"seed": -1}, "seed must not be negative, not -1"),
    ],
)
def test_refuses_options_without_meaning(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Synthetic(**options)  # type: ignore[arg-type]
