"""A block's parameters and the sum of their changes, in whatever form they are held."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcl.core.client import Unchanged
from fedcl.core.trained import BlockReply, LowRank, TrainedBlock

WIDTH = 2
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}


def made(
    seed: int,
    clients: int,
    steps: int,
    out: int,
    width: int,
    bias: bool,
    decay: bool,
    name: str,
    dtype: torch.dtype,
) -> tuple[TrainedBlock, list[dict[str, Tensor]]]:
    """Returns a block of one layer held as outer products and one held whole, and its parameters.

    The parameters are computed by hand, in float64.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    at = f"{name}." if name else ""
    start = {f"{at}weight": draw(out, width)}
    if bias:
        start[f"{at}bias"] = draw(out)
    start["last.weight"] = draw(3, out)
    scale = 1.0 - draw(clients).abs() / 10 if decay else torch.ones(clients, dtype=dtype)
    # Clients stand in order of falling numbers of steps; those that have finished are left out.
    working = [max(1, clients - step) for step in range(steps)]
    left = draw(clients, steps * WIDTH, out)
    for step, count in enumerate(working):
        left[count:, step * WIDTH : (step + 1) * WIDTH] = 0.0
    low = LowRank(scale, left, tuple(draw(count, WIDTH, width) for count in working))
    stacked = {"last.weight": draw(clients, 3, out)}
    order = torch.randperm(clients, generator=generator).tolist()
    block = TrainedBlock(
        start, stacked, order, [0.0] * clients, [1] * clients, [1] * clients, 0, {name: low}
    )
    by_hand: list[dict[str, Tensor]] = [{} for _ in order]
    for place, k in enumerate(order):
        own = by_hand[k]
        factor = scale[place].double()
        own[f"{at}weight"] = start[f"{at}weight"].double() * factor
        for step, count in enumerate(working):
            for row in range(WIDTH if place < count else 0):
                change = left[place, step * WIDTH + row].double()
                own[f"{at}weight"] += torch.outer(change, low.right[step][place, row].double())
        if bias:
            own[f"{at}bias"] = start[f"{at}bias"].double() * factor + left[place].double().sum(0)
        own["last.weight"] = stacked["last.weight"][place].double()
    return block, by_hand


shapes = settings(max_examples=80)(
    given(
        seed=st.integers(0, 2**30),
        clients=st.integers(1, 5),
        steps=st.integers(0, 4),
        out=st.integers(1, 5),
        width=st.integers(1, 5),
        bias=st.booleans(),
        decay=st.booleans(),
        name=st.sampled_from(["", "a", "body.0.a"]),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        weights=st.lists(st.floats(0, 50), min_size=5, max_size=5),
    )
)


@shapes
def test_parameters_and_sums_are_those_by_hand(
    seed: int,
    clients: int,
    steps: int,
    out: int,
    width: int,
    bias: bool,
    decay: bool,
    name: str,
    dtype: torch.dtype,
    weights: list[float],
) -> None:
    block, by_hand = made(seed, clients, steps, out, width, bias, decay, name, dtype)
    rounding = ROUNDING[dtype]
    for k, own in enumerate(by_hand):
        found = block.params(k)
        assert list(found) == list(block.start)
        assert len(found) == len(own)
        for key, value in found.items():
            assert value.dtype == dtype
            assert torch.allclose(value.double(), own[key], rtol=rounding, atol=10 * rounding)
    own_weights = weights[:clients]
    sums = block.change_sums(own_weights)
    assert list(sums) == list(block.start)
    for key, start in block.start.items():
        expected = torch.zeros_like(start, dtype=torch.float64)
        for weight, own in zip(own_weights, by_hand, strict=True):
            expected += weight * (own[key] - start.double())
        assert sums[key].dtype == torch.float64
        assert sums[key].shape == start.shape
        atol = rounding * (1 + sum(own_weights)) * 10
        assert torch.allclose(sums[key], expected, rtol=0, atol=atol)


def test_one_weight_picks_one_client() -> None:
    block, by_hand = made(3, 4, 5, 3, 2, True, True, "a", torch.float64)
    for k, own in enumerate(by_hand):
        sums = block.change_sums([float(j == k) for j in range(4)])
        for key, value in sums.items():
            assert torch.allclose(value, own[key] - block.start[key], rtol=0, atol=1e-12)


def test_asking_does_not_change_what_is_held() -> None:
    block, _ = made(3, 4, 5, 3, 2, True, True, "a", torch.float64)
    before = {key: value.clone() for key, value in block.params(2).items()}
    block.change_sums([1.0, 2.0, 3.0, 4.0])
    for value in block.params(2).values():
        value.zero_()
    again = block.params(2)
    assert all(torch.equal(before[key], value) for key, value in again.items())
    assert again["a.weight"] is again["a.weight"]
    with pytest.raises(KeyError):
        again["b.weight"]


def test_a_single_clients_parameters_do_not_hold_the_block() -> None:
    block, _ = made(3, 4, 5, 3, 2, True, True, "a", torch.float64)
    for value in block.params(1).values():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_clients_that_remember_nothing_new_are_unchanged() -> None:
    block, _ = made(3, 2, 5, 3, 2, True, True, "a", torch.float64)
    assert isinstance(BlockReply(block, [1.0, 1.0], [{}, {}]).state(1), Unchanged)
    assert BlockReply(block, [1.0, 1.0], [{}, {}], ["x", "y"]).state(1) == "y"
