"""Remembered examples: which logits they are compared over, and which a budget keeps."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedcl.core import wire
from fedcl.core.client import Client
from fedcl.core.model import Net
from fedcl.core.replay.memory import (
    Reservoir,
    RowwiseCrossEntropy,
    draw,
    earlier_rows,
    present_rows,
    share_budget,
    with_present,
)
from fedcl.core.seeds import seed_of
from fedcl.core.task import ClientTask, Examples
from fedcl.core.vocabulary import vocabulary
from tests.core import toys
from tests.tiny import same


def client(stage: int, head: list[int], rows: int = 3) -> Client:
    task = toys.client_task(4, head, index=stage)
    x = torch.full((rows, 2), float(stage))
    return Client(0, nn.Identity(), Examples(x, torch.tensor([head[0]] * rows)), task, None, 0)


def remembered(sizes: dict[int, int]) -> Examples:
    """Returns so many rows of each stage, in the order of the stages; inputs are row numbers."""
    stages = [stage for stage, count in sizes.items() for _ in range(count)]
    n = len(stages)
    head = torch.zeros(n, 4, dtype=torch.bool)
    head[torch.arange(n), torch.tensor(stages, dtype=torch.int64)] = True
    return Examples(
        torch.arange(float(n))[:, None].expand(n, 2).clone(),
        torch.tensor(stages, dtype=torch.int64),
        {"stage": torch.tensor(stages, dtype=torch.int64), "head": head},
    )


def heads(rows: Examples) -> list[list[int]]:
    return [torch.nonzero(row).flatten().tolist() for row in rows.extra["head"]]


def test_present_rows_carry_their_stage_and_head() -> None:
    rows = present_rows(client(2, [1, 3]))
    assert rows.extra["stage"].tolist() == [2, 2, 2]
    assert heads(rows) == [[1, 3]] * 3
    assert rows.extra["head"].is_contiguous()


def test_without_memories_only_the_present_is_trained_on() -> None:
    alone = with_present(client(0, [0, 1]), None, separate=True)
    assert alone.extra["stage"].tolist() == [0, 0, 0]


def test_in_the_task_scenario_each_row_keeps_its_own_head() -> None:
    rows = with_present(client(2, [2, 3]), remembered({0: 1, 1: 2}), separate=True)
    assert rows.extra["stage"].tolist() == [2, 2, 2, 0, 1, 1]
    assert heads(rows) == [[2, 3]] * 3 + [[0], [1], [1]]


def test_in_other_scenarios_all_rows_are_compared_over_the_present_head() -> None:
    rows = with_present(client(2, [0, 1, 2]), remembered({0: 1, 1: 2}), separate=False)
    assert heads(rows) == [[0, 1, 2]] * 6
    assert rows.y.tolist() == [0, 0, 0, 0, 1, 1]


def test_remembered_rows_of_the_present_stage_are_not_used_twice() -> None:
    rows = with_present(client(1, [1]), remembered({0: 2, 1: 5}), separate=True)
    assert rows.extra["stage"].tolist() == [1, 1, 1, 0, 0]


def test_rowwise_cross_entropy_is_cross_entropy_over_the_rows_own_head() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head = torch.tensor([[True, True, False, False], [False, False, True, True]])[[0, 1, 0, 1, 0]]
    labels = torch.tensor([0, 3, 1, 2, 0])
    batch = Examples(logits, labels, {"head": head})
    task: ClientTask = toys.client_task(4)
    found = RowwiseCrossEntropy()(Net(nn.Identity()), batch, task, None)
    for k in range(5):
        own = torch.nonzero(head[k]).flatten()
        place = int(torch.nonzero(own == labels[k]))
        slow = F.cross_entropy(logits[k, own][None], torch.tensor([place]))
        assert found[k].item() == pytest.approx(slow.item(), abs=1e-12)


# Budgets. One row here has 2 * 4 + 8 + 8 + 4 = 28 bytes.


def kept(sizes: dict[int, int], budget: int, seed: int = 0) -> dict[int, int]:
    rows = remembered(sizes)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    chosen = share_budget(rows, budget, order)
    assert chosen.nbytes <= budget
    stages, counts = torch.unique(chosen.extra["stage"], return_counts=True)
    return dict(zip(stages.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize(
    ("sizes", "room", "expected"),
    [
        ({0: 9, 1: 9, 2: 9}, 9, {0: 3, 1: 3, 2: 3}),
        ({0: 1, 1: 9, 2: 9}, 9, {0: 1, 1: 4, 2: 4}),
        ({0: 9, 1: 1, 2: 2}, 9, {0: 6, 1: 1, 2: 2}),
        ({0: 2, 1: 2}, 100, {0: 2, 1: 2}),
        ({0: 5, 1: 5}, 1, {1: 1}),
        ({0: 5, 1: 5}, 0, {}),
        ({0: 5, 1: 5, 2: 5}, 10, {0: 3, 1: 3, 2: 4}),
    ],
)
def test_budgets_by_hand(sizes: dict[int, int], room: int, expected: dict[int, int]) -> None:
    assert kept(sizes, 28 * room) == expected
    assert kept(sizes, 28 * room + 27) == expected


@given(
    st.dictionaries(st.integers(0, 3), st.integers(1, 12), max_size=4),
    st.integers(0, 1500),
    st.integers(0, 10**6),
)
def test_a_budget_is_used_up_never_exceeded_and_balanced(
    sizes: dict[int, int], budget: int, seed: int
) -> None:
    found = kept(sizes, budget, seed)
    total, room = sum(sizes.values()), budget // 28
    assert sum(found.values()) == min(total, room)
    most = max(found.values(), default=0)
    for stage, count in sizes.items():
        # Who has fewer than the others by more than the rounding has nothing left to give.
        assert found.get(stage, 0) == count or found.get(stage, 0) >= most - 1


def test_the_order_says_who_stays_and_rows_keep_their_place() -> None:
    rows = remembered({0: 4, 1: 4})
    order = torch.tensor([3, 7, 1, 5, 0, 2, 4, 6])
    chosen = share_budget(rows, 4 * 28, order)
    assert chosen.x[:, 0].tolist() == [1.0, 3.0, 5.0, 7.0]
    assert share_budget(rows, 4 * 28, order).x.tolist() == chosen.x.tolist()
    assert share_budget(rows.take(order[:0]), 4 * 28, order[:0]).y.tolist() == []


# Reservoirs. One row here has 8 bytes more, for its key.


def visit(
    reservoir: Reservoir | None, stage: int, rows: int, room: int, seed: int
) -> Reservoir | None:
    """Returns the reservoir after a visit to a stage, as a method's `keep` does it."""
    own = replace(client(stage, [stage % 4], rows), seed=seed, state=reservoir)
    numbered = torch.arange(rows)[:, None].expand(rows, 2) + 100.0 * stage
    own = replace(own, data=Examples(numbered.clone(), own.data.y))
    return draw(own, reservoir, present_rows(own), room * 36)


def numbers(reservoir: Reservoir | None) -> list[int]:
    return [] if reservoir is None else [int(x) for x in reservoir.rows.x[:, 0]]


@pytest.mark.parametrize("sizes", [(2, 9, 5), (9, 5, 2), (5, 2, 9)])
def test_every_example_has_the_same_chance_to_be_kept(sizes: tuple[int, ...]) -> None:
    """6 of 16 rows in 800 reservoirs: single rows and pairs as often as in a uniform sample.

    The seeds are fixed, so that it always gives the same number; 37.7 is the 0.999 quantile.
    """
    trials, room, total = 800, 6, sum(sizes)
    places = {
        100 * stage + row: number
        for number, (stage, row) in enumerate(
            (stage, row) for stage, size in enumerate(sizes) for row in range(size)
        )
    }
    counts, pairs = torch.zeros(total), torch.zeros(total, total)
    for trial in range(trials):
        reservoir: Reservoir | None = None
        for stage, size in enumerate(sizes):
            for again in range(2):
                seed = seed_of(trial, stage, again, *sizes)
                reservoir = visit(reservoir, stage, size, room, seed)
        kept = torch.zeros(total)
        kept[[places[number] for number in numbers(reservoir)]] = 1.0
        assert kept.sum() == room
        counts += kept
        pairs += torch.outer(kept, kept)
    share = room / total
    # The counts have covariance c (I - 11'/n), c = T p q n / (n - 1): n - 1 degrees of freedom.
    variance = trials * share * (1 - share) * total / (total - 1)
    assert float(((counts - trials * share) ** 2).sum() / variance) < 37.7  # 15 degrees
    both = share * (room - 1) / (total - 1)
    upper = pairs[torch.triu(torch.ones(total, total), 1).bool()]
    deviation = (trials * both * (1 - both)) ** 0.5
    assert float((upper - trials * both).abs().max()) < 4.5 * deviation  # 120 pairs


def test_later_rounds_of_a_stage_change_nothing() -> None:
    """Also where none of the stage's rows was kept, or the client remembers nothing else."""
    nothing_kept = 0
    for seed in range(30):
        first = visit(visit(None, 0, 20, 2, seed), 1, 3, 2, seed + 100)
        assert first is not None
        nothing_kept += 1 not in first.rows.extra["stage"].tolist()
        again = visit(first, 1, 3, 2, seed + 200)
        assert again is first
    assert nothing_kept > 5, "the case is there"


def test_a_reservoir_keeps_to_its_budget_with_every_column() -> None:
    for room in (1, 4, 7):
        reservoir: Reservoir | None = None
        for stage in range(4):
            reservoir = visit(reservoir, stage, 3, room, stage)
            assert reservoir is not None
            assert reservoir.stage == stage
            assert reservoir.rows.nbytes == 36 * min(room, 3 * (stage + 1))
    assert visit(None, 0, 3, 0, 0) is None


def test_what_is_drawn_comes_from_the_stage_with_its_label_and_head() -> None:
    reservoir = visit(visit(None, 0, 3, 5, 0), 1, 8, 5, 1)
    assert reservoir is not None
    rows = reservoir.rows
    assert len(set(numbers(reservoir))) == 5
    assert [n // 100 for n in numbers(reservoir)] == rows.extra["stage"].tolist() == rows.y.tolist()
    assert heads(rows) == [[stage] for stage in rows.extra["stage"].tolist()]
    assert ((rows.extra["key"] >= 0) & (rows.extra["key"] < 1)).all()


def test_earlier_rows_are_those_of_other_stages() -> None:
    assert earlier_rows(client(1, [1]), None) is None
    found = earlier_rows(client(1, [1]), remembered({0: 2, 1: 5, 2: 1}))
    assert found is not None
    assert found.extra["stage"].tolist() == [0, 0, 2]


def test_a_reservoir_travels() -> None:
    reservoir = visit(None, 2, 3, 2, 0)
    words = vocabulary()
    assert same(wire.loads(wire.dumps(reservoir, words), words), reservoir)
