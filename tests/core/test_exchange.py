"""Blocks of an exchange are added as they come: same bits, and no more room for more of them."""

from __future__ import annotations

import pytest
import torch

from fedcl.core.channel import Aggregate, combine
from fedcl.core.client import Reply
from fedcl.core.errors import ClientError
from fedcl.core.exchange import add_block
from fedcl.core.request import BlockResult, Position, Request
from tests.tiny import same

REQUEST = Request(Position(0, 1, 0), lambda client, message: Reply({}), None)


def block(ids: tuple[int, ...], total: Aggregate | None, *replies: Reply) -> BlockResult:
    return BlockResult(ids, total, replies or None, {id: "kept" for id in ids}, {"model": 4})


def test_sums_are_added_in_the_order_of_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    totals = [
        Aggregate({"w": torch.randn(50, generator=generator).double()}, 0.1 * k, 2, {"loss": k / 3})
        for k in range(9)
    ]
    totals[0] = Aggregate({}, 0.0, 0)  # nobody of the first block answered
    results: list[BlockResult] = []
    for k, total in enumerate(totals):
        add_block(REQUEST, results, block((2 * k, 2 * k + 1) if k else (), total))
    assert results[0].total is not None and same(results[0].total, combine(totals))
    assert all(result.total is None for result in results[1:])
    assert all(not result.memories for result in results)
    assert [id for result in results for id in result.ids] == list(range(2, 18))


def test_blocks_that_cannot_be_added_are_refused() -> None:
    def total(size: int) -> Aggregate:
        return Aggregate({"w": torch.zeros(size).double()}, 1.0, 1)

    results: list[BlockResult] = []
    add_block(REQUEST, results, block((), Aggregate({}, 0.0, 0)))
    add_block(REQUEST, results, block((3,), total(2)))
    with pytest.raises(ClientError, match=r"client 5 .*names or shapes from client 3's"):
        add_block(REQUEST, results, block((5,), total(3)))


def test_revealed_replies_stay() -> None:
    first, other = Reply({"w": torch.zeros(2)}), Reply({"v": torch.zeros(2)})
    results: list[BlockResult] = []
    add_block(REQUEST, results, block((), None))
    add_block(REQUEST, results, block((1,), None, first))
    add_block(REQUEST, results, block((2,), None, first))
    assert [result.replies for result in results] == [None, (first,), (first,)]
    with pytest.raises(ClientError, match=r"client 4 .*names or shapes from client 1's"):
        add_block(REQUEST, results, block((4,), None, other))
