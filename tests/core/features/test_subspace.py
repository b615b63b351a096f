"""Bases, Gram matrices and projections against the slow way; orthonormality where it is hard."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedcl.core.features.subspace import (
    extend,
    needed_rank,
    pack,
    project_layers,
    project_out,
    residual,
    unpack,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def orthonormal(d: int, k: int, seed: int = 0) -> Tensor:
    q: Tensor = torch.linalg.qr(normal(d, k, seed=seed)).Q
    return q


def off(basis: Tensor) -> float:
    """Returns how far the columns are from orthonormal."""
    if not basis.shape[1]:
        return 0.0
    return float((basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype)).abs().max())


def outside(columns: Tensor, basis: Tensor) -> float:
    """Returns how much of the columns lies outside the span of an orthonormal basis."""
    return float((columns - basis @ (basis.T @ columns)).norm())


# Packing.


def test_packing_takes_the_upper_triangle_row_by_row() -> None:
    packed = pack(torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]]))
    assert packed.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@given(st.integers(1, 40), st.sampled_from([torch.float32, torch.float64]))
def test_unpacking_is_the_inverse(d: int, dtype: torch.dtype) -> None:
    x = normal(d, d, seed=d).to(dtype)
    gram = x @ x.T
    gram = (gram + gram.T) / 2
    packed = pack(gram)
    assert len(packed) == d * (d + 1) // 2
    assert unpack(packed).dtype == dtype
    assert torch.equal(unpack(packed), gram)


@pytest.mark.parametrize("d", [784, 2048, 4609])
def test_the_size_is_found_exactly_for_wide_layers(d: int) -> None:
    assert unpack(torch.empty(d * (d + 1) // 2)).shape == (d, d)


# Rank by energy.


@pytest.mark.parametrize(
    ("energies", "share", "rank"),
    [
        ([4.0, 3.0, 2.0, 1.0], 0.4, 1),
        ([4.0, 3.0, 2.0, 1.0], 0.41, 2),
        ([4.0, 3.0, 2.0, 1.0], 0.7, 2),
        ([4.0, 3.0, 2.0, 1.0], 0.9, 3),
        ([4.0, 3.0, 2.0, 1.0], 1.0, 4),
        ([4.0, 3.0, 2.0, 1.0], 0.0, 0),
        ([4.0, 3.0, 2.0, 1.0], -3.0, 0),
        ([4.0, 3.0, 2.0, 1.0], 1e-9, 1),
        ([1.0, 0.0, 0.0], 1.0, 1),
        ([0.0, 0.0], 0.9, 0),
        ([0.1] * 10, 0.3, 3),
        ([0.1] * 10, 1.0, 10),
        ([0.7] * 4, 0.75, 3),  # 2.0999999999999996 / 2.8 falls short of 0.75 by rounding
        ([5.0], 0.99, 1),
        ([], 0.5, 0),
    ],
)
def test_needed_rank_by_hand(energies: list[float], share: float, rank: int) -> None:
    assert needed_rank(torch.tensor(energies, dtype=torch.float64), share) == rank


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=12),
    st.integers(1, 99),
)
def test_needed_rank_is_the_smallest_that_is_enough(numbers: list[int], percent: int) -> None:
    energies = sorted(numbers, reverse=True)
    found = needed_rank(torch.tensor(energies, dtype=torch.float64), percent / 100)
    # In whole numbers, so that the slow way knows no rounding.
    total = sum(energies)
    enough = [k for k in range(len(energies) + 1) if 100 * sum(energies[:k]) >= percent * total]
    assert found == (enough[0] if total else 0)


# Extending a basis.


def test_a_first_basis_spans_the_directions() -> None:
    directions = normal(7, 3)
    for nothing in (None, directions[:, :0]):
        basis = extend(nothing, directions)
        assert basis.shape == (7, 3)
        assert off(basis) < 1e-14
        assert outside(directions, basis) < 1e-13


def test_the_old_columns_stay_the_first_ones() -> None:
    old = orthonormal(9, 4)
    new = extend(old, normal(9, 2, seed=5))
    assert torch.equal(new[:, :4], old)
    assert new.shape == (9, 6)
    assert new.dtype == torch.float64


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-8])
def test_nearly_dependent_directions_stay_orthonormal(size: float) -> None:
    old = orthonormal(30, 10)
    inside = old @ normal(10, 3, seed=1)
    directions = inside + size * normal(30, 3, seed=2)
    new = extend(old, directions)
    assert new.shape == (30, 13)
    assert off(new) < 1e-10
    # What they add is found, not only something orthogonal.
    assert outside(directions, new) < 1e-13 * float(directions.norm())


def test_directions_within_the_span_add_nothing() -> None:
    old = orthonormal(30, 10)
    assert torch.equal(extend(old, old @ normal(10, 4, seed=1)), old)
    assert torch.equal(extend(old, torch.zeros(30, 2, dtype=torch.float64)), old)
    assert torch.equal(extend(old, old[:, :0]), old)


def test_directions_that_depend_on_each_other_add_one_column() -> None:
    old, direction = orthonormal(12, 3), normal(12, 1, seed=4)
    for directions in (
        torch.cat([direction, direction], 1),
        torch.cat([direction, -2.0 * direction, old[:, :1]], 1),
        torch.cat([old[:, :1], direction], 1),
    ):
        new = extend(old, directions)
        assert new.shape == (12, 4)
        assert off(new) < 1e-13
        assert outside(direction, new) < 1e-13
        assert extend(None, directions).shape[1] == torch.linalg.matrix_rank(directions)


def test_a_full_basis_has_no_room() -> None:
    full = orthonormal(6, 6)
    assert torch.equal(extend(full, normal(6, 3, seed=1)), full)
    almost = extend(full[:, :5], normal(6, 4, seed=1))
    assert almost.shape == (6, 6)
    assert off(almost) < 1e-13


@given(
    d=st.integers(1, 12),
    data=st.data(),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([0.0, 1e-14, 1e-11, 1e-7, 1.0]),
)
def test_any_basis_and_directions_give_an_orthonormal_basis_of_both(
    d: int, data: st.DataObject, seed: int, size: float
) -> None:
    k, m = data.draw(st.integers(0, d)), data.draw(st.integers(0, 2 * d))
    old = orthonormal(d, k, seed)
    directions = old @ normal(k, m, seed=seed + 1) + size * normal(d, m, seed=seed + 2)
    new = extend(old, directions)
    assert k <= new.shape[1] <= min(d, k + m)
    assert off(new) < 1e-12
    assert outside(directions, new) <= 2e-10 * float(directions.norm()) + 1e-12
    assert torch.equal(new[:, :k], old)


def test_many_tasks_keep_a_basis_orthonormal() -> None:
    basis = None
    for task in range(20):
        basis = extend(basis, normal(40, 3, seed=task))
    assert basis is not None
    assert basis.shape == (40, 40)
    assert off(basis) < 1e-10


# Projecting.


def test_residual_is_the_part_outside() -> None:
    x, basis = normal(5, 8), orthonormal(8, 3)
    rest = residual(x, basis)
    assert float((rest @ basis).abs().max()) < 1e-14
    assert torch.allclose(rest + x @ basis @ basis.T, x, atol=1e-14)
    assert residual(x, None) is x
    assert residual(x, basis[:, :0]) is x


def test_projecting_by_hand() -> None:
    """Along u = (3, 4) / 5, the row (5, 0) keeps (5, 0) - 3 (3, 4) / 5 = (3.2, -2.4)."""
    basis = torch.tensor([[0.6], [0.8]], dtype=torch.float64)
    change = torch.tensor([[5.0, 0.0], [0.6, 0.8]])
    projected = project_out(change, basis)
    assert torch.allclose(
        projected, torch.tensor([[3.2, -2.4], [0.0, 0.0]], dtype=torch.float64), atol=1e-7
    )
    assert projected.dtype == torch.float64


def test_a_convolution_is_projected_as_a_matrix() -> None:
    change, basis = normal(4, 2, 3, 3), orthonormal(18, 7)
    projected = project_out(change, basis)
    slow = torch.stack(
        [(row.flatten() - basis @ (basis.T @ row.flatten())).reshape(2, 3, 3) for row in change]
    )
    assert torch.allclose(projected, slow, atol=1e-14)
    assert float((projected.flatten(1) @ basis).abs().max()) < 1e-14
    # A second projection finds nothing more.
    assert torch.allclose(project_out(projected, basis), projected, atol=1e-15)


def test_without_a_basis_nothing_is_projected() -> None:
    change = normal(2, 3)
    assert project_out(change, None) is change
    assert project_out(change, change.T[:, :0]) is change


def test_layers_are_projected_by_name_and_the_rest_is_kept() -> None:
    step = {"a.weight": normal(3, 4), "a.bias": normal(3, seed=1), "head.weight": normal(2, 3)}
    basis = {"a.weight": orthonormal(4, 2)}
    projected = project_layers(step, basis, biases=False)
    assert list(projected) == list(step)
    assert torch.equal(projected["a.weight"], project_out(step["a.weight"], basis["a.weight"]))
    assert projected["a.bias"] is step["a.bias"]
    assert projected["head.weight"] is step["head.weight"]


def test_a_bias_counts_as_the_weight_of_a_constant_input() -> None:
    step = {"a.weight": normal(3, 2, 2), "a.bias": normal(3, seed=1), "b.weight": normal(2, 5)}
    basis = {"a.weight": orthonormal(5, 2), "b.weight": orthonormal(5, 1)}
    projected = project_layers(step, basis, biases=True)
    inputs = torch.cat([normal(6, 4, seed=3), torch.ones(6, 1, dtype=torch.float64)], 1)
    protected = inputs @ basis["a.weight"] @ basis["a.weight"].T
    # Inputs along the basis, the one of the bias included, give the same output as before.
    moved = protected[:, :4] @ projected["a.weight"].flatten(1).T + torch.outer(
        protected[:, 4], projected["a.bias"]
    )
    assert float(moved.abs().max()) < 1e-14
    assert projected["a.weight"].shape == (3, 2, 2)
    assert float((projected["b.weight"] @ basis["b.weight"]).abs().max()) < 1e-14
