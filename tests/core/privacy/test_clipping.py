"""A clip that holds for every input whatsoever."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from fedcl.core.privacy.clipping import clipped, clipped_to_send, norm

BOUND = 1.5


@pytest.mark.parametrize(
    "value",
    [
        0.0,
        math.nan,
        math.inf,
        -math.inf,
        1e300,
        -1e300,
        1e-300,
        5e-324,
        1.5,
        math.nextafter(1.5, 2),
    ],
)
@pytest.mark.parametrize("beside", [0.0, 1.0, 1e200])
def test_the_norm_is_never_above_the_bound(value: float, beside: float) -> None:
    tensors = {
        "a": torch.tensor([[value, beside]], dtype=torch.float64),
        "b": torch.full((3,), beside, dtype=torch.float64),
        "none": torch.zeros(0),
    }
    found = clipped(tensors, BOUND)
    assert norm(found) <= BOUND * (1 + 2**-52)
    assert [tensor.shape for tensor in found.values()] == [t.shape for t in tensors.values()]
    size = norm(tensors)
    if size <= BOUND:
        assert all(torch.equal(found[name], tensors[name].double()) for name in tensors)
    elif math.isfinite(size):
        assert norm(found) == pytest.approx(BOUND, rel=1e-12)
    else:
        assert norm(found) == 0.0


def test_a_norm_neither_overflows_nor_vanishes() -> None:
    assert norm({"a": torch.tensor([3e200, 4e200], dtype=torch.float64)}) == pytest.approx(5e200)
    assert norm({"a": torch.tensor([3e-200, 4e-200], dtype=torch.float64)}) == pytest.approx(5e-200)
    assert norm({}) == norm({"a": torch.zeros(0)}) == 0.0
    largest = torch.full((2,), sys.float_info.max, dtype=torch.float64)
    assert float(clipped({"a": largest / 2}, 1.0)["a"].norm()) == pytest.approx(1.0)


def test_what_is_no_floating_number_becomes_zero_and_counts_for_nothing() -> None:
    tensors = {"counter": torch.tensor(10**12), "a": torch.tensor([0.6, 0.8])}
    assert norm(tensors) == pytest.approx(1.0)
    found = clipped(tensors, 0.5)
    assert found["counter"].equal(torch.tensor(0)) and norm(found) == pytest.approx(0.5)


def test_the_order_of_names_changes_nothing_and_the_direction_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(5, generator=generator) for name in "abc"}
    there, back = clipped(tensors, 0.1), clipped(dict(reversed(tensors.items())), 0.1)
    for name, value in tensors.items():
        torch.testing.assert_close(there[name], back[name], rtol=1e-14, atol=0)
        torch.testing.assert_close(there[name] * norm(tensors) / 0.1, value.double())


@pytest.mark.parametrize(
    ("dtype", "number", "bound"),
    [
        (torch.float16, 2.0**-23, 1e-4),  # twice the smallest number of its type
        (torch.float8_e4m3fn, 2.0**-8, 1.0),
        (torch.float16, 6e4, 1e6),
        (torch.float32, 3e-3, 1.0),
        (torch.bfloat16, 3e-3, 1.0),
    ],
)
@pytest.mark.parametrize("excess", [1.0, 1.15, 1.3, 1.33, 2.1])
def test_rounding_to_the_type_of_the_wire_keeps_the_bound(
    dtype: torch.dtype, number: float, bound: float, excess: float
) -> None:
    """Numbers below a type's smallest normal one may round to twice their size."""
    count = min(2_000_000, int((bound * excess / number) ** 2))
    sent = clipped_to_send({"a": torch.full((count,), number).to(dtype)}, bound)
    assert sent["a"].dtype == dtype
    assert norm(sent) <= bound
