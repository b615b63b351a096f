"""Arithmetic on named tensors: exact numbers, types kept, nothing shared."""

import math

import pytest
import torch

from fedcl.core import params
from fedcl.core.params import Params

A = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([0.5])}
B = {"w": torch.tensor([[4.0, 3.0], [2.0, 1.0]]), "b": torch.tensor([-0.25])}


def test_add_and_subtract_by_name() -> None:
    total = params.add(A, B)
    assert total["w"].tolist() == [[5.0, 5.0], [5.0, 5.0]]
    assert total["b"].tolist() == [0.25]
    assert params.subtract(total, B)["w"].tolist() == A["w"].tolist()
    assert params.add(A, B, scale=-2.0)["w"].tolist() == [[-7.0, -4.0], [-1.0, 2.0]]


def test_add_ignores_the_order_of_names_and_further_names_in_the_change() -> None:
    change = {"extra": torch.ones(7), "b": B["b"], "w": B["w"]}
    assert list(params.add(A, change)) == ["w", "b"]


def test_add_keeps_the_type_of_the_parameters_and_rounds_the_scaled_change_once() -> None:
    third = {"w": torch.full((1,), 1 / 3, dtype=torch.float64)}
    total = params.add({"w": torch.ones(1)}, third, scale=3.0)
    assert total["w"].dtype == torch.float32
    assert total["w"].item() == 2.0


def test_neither_add_nor_copy_shares_memory() -> None:
    start = {"w": torch.ones(3, requires_grad=True)}
    other = params.copy(start)
    assert not other["w"].requires_grad
    other["w"] += 1
    params.add(start, other)["w"] += 5
    assert start["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_names_the_first_bad_tensor(bad: float) -> None:
    good: Params = {"n": torch.tensor([2]), "w": torch.ones(2), "empty": torch.zeros(0)}
    assert params.not_finite(good) is None
    assert params.not_finite({**good, "v": torch.tensor([0.0, bad]), "z": torch.tensor(bad)}) == "v"
    # Finite numbers whose sum is not.
    assert params.not_finite({"w": torch.full((4,), 3e38)}) is None
