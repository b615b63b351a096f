"""The embedded digits: complete, divided by class, and the same at every load."""

import sys

import numpy as np
import pytest

from fedcl.core.errors import ConfigError
from fedcl.datasets.digits import Digits


def test_holds_every_digit_once_with_pixels_between_zero_and_one() -> None:
    dataset = Digits().load()
    train, test = dataset.train, dataset.test
    assert (dataset.name, dataset.classes, dataset.shape) == ("digits", 10, (1, 8, 8))
    assert dataset.class_names == tuple("0123456789")
    assert len(train.labels) + len(test.labels) == 1797
    rows = train.rows(np.arange(len(train.labels)))
    assert rows.shape == (len(train.labels), 1, 8, 8)
    assert rows.dtype == np.float32
    assert (rows.min(), rows.max()) == (0.0, 1.0)


def test_divides_scikit_learns_rows_without_loss_or_repetition() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    dataset = Digits().load()
    found = sorted(
        (int(label), row.tobytes())
        for table in (dataset.train, dataset.test)
        for label, row in zip(table.labels, table.rows(np.arange(len(table.labels))), strict=True)
    )
    images = (bunch.images / 16).astype(np.float32)
    wanted = [(int(y), x.tobytes()) for y, x in zip(bunch.target, images, strict=True)]
    assert found == sorted(wanted)


@pytest.mark.parametrize("fraction", [0.001, 0.2, 0.5, 0.999])
def test_each_class_gives_its_share_to_both_splits(fraction: float) -> None:
    dataset = Digits(test_fraction=fraction).load()
    held, kept = np.bincount(dataset.test.labels), np.bincount(dataset.train.labels)
    assert (np.abs(held - fraction * (held + kept)) <= 1.0).all()
    assert held.min() >= 1
    assert kept.min() >= 1


def test_the_seed_alone_decides_the_split() -> None:
    first, again, other = (Digits(seed=seed).load().test for seed in (3, 3, 4))
    rows = np.arange(50)
    np.testing.assert_array_equal(first.rows(rows), again.rows(rows))
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.rows(rows) != other.rows(rows)).any()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_refuses_a_fraction_that_leaves_a_split_empty(fraction: float) -> None:
    with pytest.raises(ValueError, match="test_fraction must lie between 0 and 1"):
        Digits(test_fraction=fraction)


def test_refuses_a_negative_seed() -> None:
    with pytest.raises(ValueError, match="seed must not be negative, not -1"):
        Digits(seed=-1)


def test_names_the_extra_that_brings_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r'dataset\.name; install fedcl with its extra "sim"'):
        Digits().load()
