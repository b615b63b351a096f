"""What a budget keeps: equal shares, samples by key and herding, against slow versions."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.replay.selection import by_class, by_key, herd, herded, room, share_equally
from fedcl.core.task import Examples, join

ROW = 4 + 8 + 8 + 8  # an input, a label, a stage and a key


def rows(labels: list[int], stages: list[int], keys: list[float] | None = None) -> Examples:
    """Returns rows whose inputs are their numbers."""
    n = len(labels)
    key = torch.tensor(keys if keys is not None else [0.0] * n, dtype=torch.float64)
    extra = {"stage": torch.tensor(stages, dtype=torch.int64), "key": key}
    x = torch.arange(n, dtype=torch.float32)[:, None]
    return Examples(x, torch.tensor(labels, dtype=torch.int64), extra)


def shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def test_room_counts_every_column() -> None:
    example = rows([0, 1], [0, 0])
    assert [room(example, b) for b in (0, ROW - 1, ROW, 3 * ROW - 1, 3 * ROW)] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("sizes", "places", "expected"),
    [
        ([], 4, []),
        ([5, 5], 0, [0, 0]),
        ([9, 9, 9], 9, [3, 3, 3]),
        ([1, 9, 9], 9, [1, 4, 4]),
        ([9, 1, 2], 9, [6, 1, 2]),
        ([5, 5], 3, [1, 2]),
        ([2, 2], 100, [2, 2]),
        ([0, 3], 2, [0, 2]),
    ],
)
def test_shares_by_hand(sizes: list[int], places: int, expected: list[int]) -> None:
    assert share_equally(sizes, places) == expected


@given(st.lists(st.integers(0, 12), max_size=5), st.integers(0, 70))
def test_shares_are_those_of_dealing_one_place_after_the_other(
    sizes: list[int], places: int
) -> None:
    dealt = [0] * len(sizes)
    for _ in range(min(places, sum(sizes))):
        hungry = [k for k in range(len(sizes)) if dealt[k] < sizes[k]]
        dealt[min(hungry, key=dealt.__getitem__)] += 1
    # Who gets what cannot be divided is a choice; how much there is of what, is not.
    assert sorted(share_equally(sizes, places)) == sorted(dealt)


# --- Equally many of each class. ---


def test_classes_share_the_budget_and_their_stages_share_the_class() -> None:
    """17 of class 0 at stages 0, 1 and 2, and 2 of class 1: of 14 places class 1 needs 2."""
    labels = [0] * 17 + [1] * 2
    stages = [0] * 10 + [1] * 2 + [2] * 5 + [2] * 2
    given_rows = rows(labels, stages)
    chosen = given_rows.take(by_class(given_rows, 14 * ROW, shuffled(19, 0)))
    found = Counter(zip(chosen.y.tolist(), chosen.extra["stage"].tolist(), strict=True))
    assert found == {(0, 0): 5, (0, 1): 2, (0, 2): 5, (1, 2): 2}
    assert chosen.nbytes == 14 * ROW


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40),
    st.integers(0, 45 * ROW),
    st.integers(0, 10**6),
)
def test_a_budget_is_used_up_never_exceeded_and_even_over_classes(
    kinds: list[tuple[int, int]], budget: int, seed: int
) -> None:
    given_rows = rows([y for y, _ in kinds], [s for _, s in kinds])
    chosen = given_rows.take(by_class(given_rows, budget, shuffled(len(kinds), seed)))
    assert chosen.nbytes <= budget
    assert len(chosen) == min(len(kinds), budget // ROW)
    assert chosen.x.flatten().tolist() == sorted(set(chosen.x.flatten().tolist()))
    there, kept = Counter(y for y, _ in kinds), Counter(chosen.y.tolist())
    for label in there:
        # Who has fewer than the others by more than the rounding has nothing left to give.
        assert kept[label] == there[label] or kept[label] >= max(kept.values(), default=0) - 1
    both = Counter(kinds)
    held = Counter(zip(chosen.y.tolist(), chosen.extra["stage"].tolist(), strict=True))
    for label, stage in both:
        most = max(count for (y, _), count in held.items() if y == label) if kept[label] else 0
        assert held[label, stage] == both[label, stage] or held[label, stage] >= most - 1


def test_rows_early_in_the_order_stay() -> None:
    given_rows = rows([0, 0, 0, 1, 1, 1], [0] * 6)
    order = torch.tensor([5, 2, 0, 3, 1, 4])
    assert by_class(given_rows, 4 * ROW, order).tolist() == [0, 2, 3, 5]


# --- The smallest keys. ---


def test_the_smallest_keys_stay_in_their_places() -> None:
    given_rows = rows([0] * 5, [0] * 5, [0.5, 0.1, 0.9, 0.2, 0.3])
    assert by_key(given_rows, 3 * ROW).tolist() == [1, 3, 4]
    assert by_key(given_rows, 3 * ROW - 1).tolist() == [1, 3]
    assert by_key(given_rows, 0).tolist() == []
    assert by_key(given_rows.take(torch.zeros(0, dtype=torch.int64)), 99).tolist() == []


def test_in_whichever_order_parts_come_the_sample_is_that_of_all() -> None:
    keys = torch.rand(20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    everything = rows([0] * 20, [0] * 20, keys.tolist())
    expected = set(keys.argsort()[:6].tolist())
    parts = [everything.part(0, 3), everything.part(3, 14), everything.part(14, 20)]
    for order in itertools.permutations(parts):
        held = order[0].take(by_key(order[0], 6 * ROW))
        for part in order[1:]:
            both = join([held, part])
            held = both.take(by_key(both, 6 * ROW))
        assert set(held.x.flatten().tolist()) == expected


# --- Herding. ---


def slow_herd(features: Tensor, count: int) -> list[int]:
    """Returns the greedy choice, each running mean computed anew."""
    unit = [f / f.norm() for f in features]
    mean = sum(unit[1:], unit[0]) / len(unit)
    taken: list[int] = []
    for _ in range(count):
        free = [k for k in range(len(unit)) if k not in taken]
        distances = {
            k: float((torch.stack([unit[j] for j in [*taken, k]]).mean(0) - mean).norm())
            for k in free
        }
        taken.append(min(free, key=distances.__getitem__))
    return taken


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("n", "d"), [(1, 3), (6, 2), (9, 5), (25, 4)])
def test_herding_is_the_greedy_choice(n: int, d: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=generator, dtype=torch.float64)
    assert herd(features, n).tolist() == slow_herd(features, n)
    for count in range(n):
        assert herd(features, count).tolist() == herd(features, n)[:count].tolist(), "a prefix"


def test_herding_by_hand() -> None:
    """Directions 0, 90 and 100 degrees: the mean points to 66 degrees, 90 is nearest."""
    degrees = torch.tensor([0.0, 90.0, 100.0], dtype=torch.float64).deg2rad()
    directions = torch.stack([degrees.cos(), degrees.sin()], 1)
    assert herd(directions, 3).tolist() == [1, 0, 2]
    # Lengths say nothing.
    assert herd(directions * torch.tensor([[50.0], [0.1], [3.0]]), 3).tolist() == [1, 0, 2]


def test_herding_keeps_the_class_mean_better_than_chance() -> None:
    """The point of it: 10 of 200 whose mean is nearer to that of all than any of 200 draws."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(200, 30, generator=generator, dtype=torch.float64)
    unit = F.normalize(features, dim=1)

    def error(chosen: Tensor) -> float:
        return float((unit[chosen].mean(0) - unit.mean(0)).norm())

    best = min(error(shuffled(200, seed)[:10]) for seed in range(200))
    assert error(herd(features, 10)) < 0.7 * best


def test_of_equal_rows_the_first_is_taken() -> None:
    """Whatever their last digit says: engines differ in it."""
    assert herd(torch.zeros(3, 2), 3).tolist() == [0, 1, 2], "no direction"
    generator = torch.Generator().manual_seed(9)
    for _ in range(50):
        pair = torch.randn(2, 7, generator=generator, dtype=torch.float64)
        assert herd(pair, 2).tolist() == [0, 1], "the mean is halfway"


def test_each_class_has_an_order_of_its_own() -> None:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([2, 0, 2, 2, 0, 5, 2, 0, 2, 2, 2, 0])
    ranks = herded(features, labels, 4)
    assert ranks.dtype == torch.int64
    for label in (0, 2, 5):
        own = torch.nonzero(labels == label).flatten()
        order = own[slow_herd(features[own], len(own))]
        expected = {int(row): min(rank, 4) for rank, row in enumerate(order)}
        assert {int(row): int(ranks[row]) for row in own} == expected
