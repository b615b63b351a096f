"""Folding replies is a plain sum in float64, in the order of ids, block by block."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedcl.channels.head_owners import HeadOwners
from fedcl.channels.secure_aggregation import SecureAggregation
from fedcl.core.channel import Aggregate, Sending, combine, fold, hides_replies
from fedcl.core.client import Client, Reply
from fedcl.core.task import ClientTask, Examples

NUMBERS = st.floats(-1e6, 1e6, width=32)
REPLIES = st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 50)), min_size=1, max_size=9)


def some_client(labels: list[int]) -> Client:
    everything = torch.ones(3, dtype=torch.bool)
    now = torch.tensor(0)
    task = ClientTask(now, now, everything, everything, everything)
    data = Examples(torch.zeros(len(labels), 2), torch.tensor(labels))
    return Client(0, nn.Linear(2, 3), data, task, None, 0)


def reply(a: float, b: float, weight: float = 1.0, **metrics: float) -> Reply:
    return Reply({"a": torch.tensor([a]), "b": torch.tensor([[b]])}, weight, metrics)


def test_a_weighted_sum_by_hand() -> None:
    total = fold([reply(1.0, 2.0, 3.0, loss=1.0), reply(-1.0, 0.5, 1.0, loss=2.0)], equal=False)
    assert total.sum["a"].tolist() == [2.0]
    assert total.sum["b"].tolist() == [[6.5]]
    assert (total.weight, total.count) == (4.0, 2)
    assert total.mean["a"].tolist() == [0.5]
    assert total.mean["b"].tolist() == [[1.625]]
    assert total.metrics == {"loss": 5.0}


def test_equal_weights_count_everyone_once() -> None:
    replies = [reply(1.0, 2.0, 300.0, loss=1.0), reply(3.0, 4.0, 1.0, loss=2.0)]
    total = fold(replies, equal=True)
    assert (total.weight, total.mean["a"].tolist(), total.metrics) == (2.0, [2.0], {"loss": 3.0})


def test_sums_are_made_in_float64() -> None:
    total = fold([reply(1e8, 0.0), reply(1.0, 0.0), reply(-1e8, 0.0)], equal=False)
    assert total.total["a"].dtype == torch.float64
    assert total.sum["a"].tolist() == [1.0]


def test_sums_do_not_touch_the_replies() -> None:
    first = Reply({"a": torch.ones(2, dtype=torch.float64)})
    fold([first, first], equal=False)
    assert first.tensors["a"].tolist() == [1.0, 1.0]
    block = fold([first], equal=False)
    combine([block, block])
    assert block.total["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.bfloat16])
def test_other_types_are_summed_too(dtype: torch.dtype) -> None:
    replies = [Reply({"n": torch.tensor([1, 0]).to(dtype)}, weight=2.5) for _ in range(3)]
    assert fold(replies, equal=False).sum["n"].tolist() == [7.5, 0.0]


def test_nobody_gives_nothing() -> None:
    nobody = fold([], equal=False)
    assert (nobody.sum, nobody.mean, nobody.weight, nobody.count) == ({}, {}, 0.0, 0)
    assert combine([]) == Aggregate({}, 0, 0, {})


def test_weights_of_zero_give_a_mean_of_zero_and_keep_bad_metrics_out() -> None:
    empty = Reply({"a": torch.tensor([7.0])}, 0.0, {"loss": math.nan})
    total = fold([empty], equal=False)
    assert total.mean["a"].tolist() == [0.0]
    assert total.metrics == {}
    both = fold([empty, Reply({"a": torch.tensor([2.0])}, 4.0, {"loss": 0.5})], equal=False)
    assert (both.mean["a"].tolist(), both.metrics, both.count) == ([2.0], {"loss": 2.0}, 2)


@given(REPLIES, st.integers(1, 4), st.booleans())
def test_blocks_add_up_to_the_exact_sum(
    numbers: list[tuple[float, float, int]], size: int, equal: bool
) -> None:
    replies = [reply(a, b, w) for a, b, w in numbers]
    blocks = [fold(replies[k : k + size], equal) for k in range(0, len(replies), size)]
    total = combine(blocks)
    weights = [1 if equal else w for _, _, w in numbers]
    exact = sum(Fraction(a) * w for (a, _, _), w in zip(numbers, weights, strict=True))
    scale = sum(abs(a) * w for (a, _, _), w in zip(numbers, weights, strict=True))
    assert abs(Fraction(total.sum["a"].item()) - exact) <= Fraction(scale) / 2**48
    assert (total.weight, total.count) == (sum(weights), len(replies))


@given(REPLIES, st.integers(1, 4))
def test_order_and_blocks_decide_the_bits_and_nothing_else(
    numbers: list[tuple[float, float, int]], size: int
) -> None:
    replies = [reply(a, b, w) for a, b, w in numbers]
    blocks = [replies[k : k + size] for k in range(0, len(replies), size)]
    total = combine([fold(block, equal=False) for block in blocks])
    slow = 0.0
    for block in blocks:
        inner: float | None = None
        for item in block:
            # A product of a float32 and a small whole number is exact in float64.
            value = item.tensors["b"].double().item() * item.weight
            inner = value if inner is None else inner + value
        assert inner is not None
        slow = inner if block is blocks[0] else slow + inner
    assert total.sum["b"].item() == slow


def test_metrics_are_summed_by_name() -> None:
    blocks = [
        fold([reply(0, 0, 2.0, loss=1.0)], equal=False),
        fold([reply(0, 0, 1.0, loss=4.0, noise=3.0)], equal=False),
    ]
    assert combine(blocks).metrics == {"loss": 6.0, "noise": 3.0}


def test_secure_aggregation_hides_replies_and_drops_metrics() -> None:
    step = SecureAggregation()
    assert hides_replies([step])
    assert not hides_replies([])
    whole = Reply({"a": torch.ones(1)}, 3.0, {"loss": 1.0}, "mine", 4, 5)
    sent = step.upload(whole, some_client([0]), Sending())
    assert (sent.weight, sent.metrics, sent.steps, sent.examples) == (3.0, {}, 4, 5)
    assert sent.state == "mine"
    total = Aggregate({"a": torch.ones(1)}, 3.0, 1)
    assert step.receive(total, step.init(), seed=1) == (total, None)  # type: ignore[func-returns-value]


def test_a_head_row_is_the_mean_over_the_clients_that_hold_its_class() -> None:
    """Row 0 is held by a (weight 1) and b (weight 3), row 1 by b alone, row 2 by nobody.

    By hand: row 0 is (1 * 4 + 3 * 8) / 4 = 7, row 1 is 10, row 2 does not move; the body is the
    plain mean (1 * 2 + 3 * 6) / 4 = 5.
    """
    step = HeadOwners()

    def sent(body: float, rows: list[float], labels: list[int], weight: float) -> Reply:
        tensors = {
            "body": torch.tensor([body]),
            "head.weight": torch.tensor(rows)[:, None],
            "head.bias": torch.tensor(rows),
        }
        return step.upload(Reply(tensors, weight), some_client(labels), Sending())

    a = sent(2.0, [4.0, 100.0, 100.0], [0, 0], 1.0)
    b = sent(6.0, [8.0, 10.0, 100.0], [0, 1], 3.0)
    mean = step.receive(fold([a, b], equal=False), None, seed=1)[0].mean
    assert mean["head.weight"].flatten().tolist() == [7.0, 10.0, 0.0]
    assert mean["head.bias"].tolist() == [7.0, 10.0, 0.0]
    assert mean["body"].tolist() == [5.0]
    assert set(mean) == {"body", "head.weight", "head.bias"}


def test_head_owners_leave_other_programs_alone() -> None:
    step = HeadOwners()
    other = Reply({"gram/a": torch.ones(2)})
    assert step.upload(other, some_client([0]), Sending()) is other
    total = fold([other], equal=False)
    assert step.receive(total, None, seed=1) == (total, None)
