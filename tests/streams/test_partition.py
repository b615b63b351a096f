"""Every rule divides rows truly, leaves nobody empty, ends, and does what its name says."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedcl.core.data.table import IntArray
from fedcl.streams._partition import PARTITIONS, Dirichlet, Iid, Natural, Quantity, Shards

RULES: list[Any] = [
    Iid(),
    Dirichlet(),
    Dirichlet(alpha=1e-3),
    Dirichlet(alpha=1e3),
    Dirichlet(alpha=0.1, minimum=3),
    Dirichlet(alpha=0.1, minimum=0),
    Shards(),
    Shards(per_client=1),
    Shards(per_client=3),
    Quantity(),
    Quantity(exponent=0.0),
    Quantity(exponent=60.0),
]


def shares(rule: Any, labels: Any, clients: int, seed: int = 0) -> list[IntArray]:
    """Returns each client's rows, after checking that the sizes are those of the rows."""
    held = rule.divide(np.asarray(labels, dtype=np.int64), {}, clients, seed)
    rows = [held.rows(client) for client in range(clients)]
    assert held.sizes(np.arange(clients)).tolist() == [len(own) for own in rows]
    return rows


def divide(rule: Any, labels: Any, clients: int, seed: int = 0) -> list[IntArray]:
    """Returns each client's rows, after checking that they are a true division."""
    rows = shares(rule, labels, clients, seed)
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(labels)))
    return rows


def least(rule: Any) -> int:
    """Returns the rows that a rule promises to every client."""
    if isinstance(rule, Dirichlet):
        return rule.minimum
    return rule.per_client if isinstance(rule, Shards) else 1


@pytest.mark.parametrize("rule", RULES, ids=str)
@given(
    rows=st.integers(1, 80),
    clients=st.integers(1, 25),
    classes=st.integers(1, 6),
    seed=st.integers(),
)
def test_any_sizes(rule: Any, rows: int, clients: int, classes: int, seed: int) -> None:
    assume(rows >= clients * least(rule))
    labels = np.arange(rows) * 7 % classes
    shares = divide(rule, labels, clients, seed)
    assert min(map(len, shares)) >= least(rule)
    again = divide(rule, labels, clients, seed)
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_hard_cases_end(rule: Any) -> None:
    n = max(1, least(rule))
    for labels in (
        [0] * (40 * n),  # one class, and as few rows as there may be
        list(range(40 * n)),  # every row a class of its own
        [0] * (40 * n - 1) + [9],
    ):
        shares = divide(rule, labels, 40)
        if least(rule):
            assert [len(share) for share in shares] == [n] * 40
    assert [len(share) for share in divide(rule, [3] * n, 1)] == [n]


@pytest.mark.parametrize("rule", [rule for rule in RULES if least(rule)], ids=str)
def test_too_few_rows_are_refused(rule: Any) -> None:
    words = f"40 clients need at least {40 * least(rule)} examples, but a task has "
    with pytest.raises(ValueError, match=words):
        rule.divide(np.zeros(40 * least(rule) - 1, dtype=np.int64), {}, 40, 0)


@pytest.mark.parametrize("rule", [rule for rule in RULES if not isinstance(rule, Natural)], ids=str)
def test_no_rows_at_all_are_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match="a task has 0"):
        rule.divide(np.zeros(0, dtype=np.int64), {}, 3, 0)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_seeds_change_the_division(rule: Any) -> None:
    labels = np.arange(300) % 5
    a, b = divide(rule, labels, 10, 1), divide(rule, labels, 10, 2)
    assert not all(np.array_equal(np.sort(x), np.sort(y)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("rule", [Dirichlet(alpha=1e-3), Quantity(exponent=8.0)], ids=str)
def test_many_empty_clients_are_filled_in_time(rule: Any) -> None:
    start = time.perf_counter()
    shares = divide(rule, np.arange(30_000) % 3, 10_000)
    assert min(map(len, shares)) == 1
    assert time.perf_counter() - start < 10


def counts(shares: list[IntArray], labels: IntArray, classes: int) -> IntArray:
    return np.stack([np.bincount(labels[share], minlength=classes) for share in shares])


# Iid.


@given(st.integers(1, 300), st.integers(1, 60), st.integers(0, 99))
def test_iid_sizes_differ_by_one_at_most(rows: int, clients: int, seed: int) -> None:
    assume(rows >= clients)
    sizes = [len(share) for share in divide(Iid(), np.zeros(rows), clients, seed)]
    assert max(sizes) - min(sizes) <= 1


def test_iid_shares_have_everybodys_mix() -> None:
    labels = np.arange(20_000) % 4
    mix = counts(divide(Iid(), labels, 10), labels, 4)
    # 2000 draws of chance 1 / 4, without replacement: five standard deviations are 92.
    assert np.abs(mix - 500).max() < 92


# Dirichlet.


def test_a_large_alpha_is_even() -> None:
    labels = np.arange(10_000) % 5
    mix = counts(divide(Dirichlet(alpha=1e6), labels, 10), labels, 5)
    assert np.abs(mix - 200).max() <= 3


def test_a_small_alpha_gives_each_class_to_few() -> None:
    labels = np.arange(10_000) % 5
    mix = counts(divide(Dirichlet(alpha=1e-3), labels, 10), labels, 5)
    # What others hold are the rows that keep them from being empty.
    assert np.all(np.sort(mix, axis=0)[-1] > 1700)
    assert np.all((mix > 1).sum(0) <= 2)
    assert (mix.sum(1) == 1).sum() >= 4


def test_shares_of_a_class_follow_the_distribution() -> None:
    """Of k clients, a share has mean 1 / k and variance (k - 1) / (k^2 (k alpha + 1))."""
    alpha, clients, rows = 0.5, 4, 4000
    labels = np.zeros(rows, dtype=np.int64)
    found = np.array(
        [
            [len(s) / rows for s in divide(Dirichlet(alpha), labels, clients, seed)]
            for seed in range(800)
        ]
    )
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert np.allclose(found.mean(0), 1 / clients, atol=0.045)
    assert np.allclose(found.var(0), variance, atol=0.008)


def test_classes_are_drawn_independently() -> None:
    labels = np.arange(4000) % 2
    first = []
    for seed in range(400):
        share = divide(Dirichlet(0.5), labels, 2, seed)[0]
        first.append([(labels[share] == c).mean() * len(share) / 2000 for c in (0, 1)])
    assert abs(np.corrcoef(np.array(first).T)[0, 1]) < 0.2


def test_without_a_minimum_somebody_may_stay_empty() -> None:
    sizes = [len(s) for s in divide(Dirichlet(alpha=1e-3, minimum=0), np.zeros(500), 20)]
    assert sorted(sizes)[:-1] == [0] * 19


def test_filling_takes_no_more_than_needed_and_from_the_largest() -> None:
    labels = np.arange(1000) % 2
    bare = divide(Dirichlet(alpha=0.02, minimum=0), labels, 12, 3)
    filled = divide(Dirichlet(alpha=0.02, minimum=4), labels, 12, 3)
    before, after = [len(s) for s in bare], [len(s) for s in filled]
    needed = sum(max(0, 4 - size) for size in before)
    assert needed > 0
    assert all(new == 4 for old, new in zip(before, after, strict=True) if old < 4)
    given_away = sum(old - new for old, new in zip(before, after, strict=True) if old > new)
    assert given_away == needed
    # Level filling: nobody gave while somebody else had more.
    givers = [new for old, new in zip(before, after, strict=True) if old > new]
    others = [new for old, new in zip(before, after, strict=True) if old == new]
    assert max(others, default=0) <= min(givers) + 1


# Shards.


@pytest.mark.parametrize("per_client", [1, 2, 3])
def test_shards_bound_the_labels_of_a_client(per_client: int) -> None:
    labels = np.random.default_rng(0).permutation(np.arange(2000) % 10)
    shares = divide(Shards(per_client), labels, 20)
    mix = counts(shares, labels, 10)
    # A shard is no larger than a class, so that it spans two labels at most.
    assert (mix > 0).sum(1).max() <= 2 * per_client
    assert {len(share) for share in shares} == {100} if 2000 % (20 * per_client) == 0 else True
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= per_client


def test_shards_that_are_classes_give_whole_classes() -> None:
    labels = np.arange(1000) % 10
    shares = divide(Shards(2), labels, 5)
    mix = counts(shares, labels, 10)
    assert sorted(mix.flatten().tolist()) == [0] * 40 + [100] * 10


def test_a_clients_shards_are_drawn_at_random() -> None:
    """Each of 20 clients draws 2 of 40 shards of 10 labels: the same label twice in 3 of 39."""
    labels = np.arange(400) % 10
    twice = apart = 0
    for seed in range(50):
        for share in divide(Shards(2), labels, 20, seed):
            held = np.unique(labels[share])
            twice += len(held) == 1
            apart += len(held) == 2 and held[1] - held[0] > 1
    # Of 1000 clients: 77, and 72 of 90 of the others, as so many pairs of labels are no neighbours.
    assert abs(twice - 77) < 36
    assert abs(apart - 738) < 60


def test_rows_of_one_label_are_shuffled_before_they_are_cut() -> None:
    labels = np.zeros(400, dtype=np.int64)
    shares = divide(Shards(1), labels, 4)
    spread = [np.ptp(share) for share in shares]
    assert min(spread) > 300


# Quantity.


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_sizes_follow_the_exponent(exponent: float) -> None:
    sizes = sorted((len(s) for s in divide(Quantity(exponent), np.zeros(6000), 12)), reverse=True)
    weights = np.arange(1, 13, dtype=float) ** -exponent
    assert np.abs(np.array(sizes) - 6000 * weights / weights.sum()).max() <= 1


def test_ranks_are_in_random_order_and_labels_even() -> None:
    labels = np.arange(12_000) % 3
    largest = {
        int(np.argmax([len(s) for s in divide(Quantity(1.0), labels, 6, seed)]))
        for seed in range(60)
    }
    assert largest == set(range(6))
    mix = counts(divide(Quantity(1.0), labels, 6), labels, 3)
    assert np.abs(mix / mix.sum(1, keepdims=True) - 1 / 3).max() < 0.06


# Natural.


def test_natural_owners_keep_their_rows_in_order() -> None:
    owner = np.array([2, 0, 2, 4, 0, 2])
    held = Natural("who").divide(np.zeros(6, dtype=np.int64), {"who": owner}, 5, 0)
    # 1 and 3 are missing in this task.
    assert [held.rows(i).tolist() for i in range(5)] == [[1, 4], [], [0, 2, 5], [], [3]]
    assert held.sizes(np.arange(5)).tolist() == [2, 0, 3, 0, 1]


# Options.


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dirichlet(alpha=0.0), "alpha must be above 0, not 0"),
        (lambda: Dirichlet(minimum=-1), "minimum must be at least 0, not -1"),
        (lambda: Shards(per_client=0), "per_client must be at least 1, not 0"),
        (lambda: Quantity(exponent=-1.0), "exponent must be at least 0, not -1"),
    ],
)
def test_options_are_checked(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_configs_find_every_rule_by_name() -> None:
    assert sorted(PARTITIONS) == [
        "dirichlet",
        "iid",
        "natural",
        "overlapping",
        "quantity",
        "shards",
    ]
    assert all(isinstance(kind(), kind) for kind in PARTITIONS.values())
