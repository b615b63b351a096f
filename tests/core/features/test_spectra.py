"""What is seen above noise: edges and energies against drawn noise, and nothing without noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedcl.core.consolidation.elastic import grown_importance
from fedcl.core.consolidation.kronecker import extended
from fedcl.core.features.analytic import ridge
from fedcl.core.features.moments import extended_basis, grown_basis
from fedcl.core.features.spectra import (
    above_noise,
    above_noise_singular,
    cleaned,
    noise_edge,
    seen_rank,
    significant,
)
from fedcl.core.features.subspace import pack, unpack
from tests.tiny import same

D, SIGMA = 200, 0.3


def noise_of(seed: int, numbers: int = D * (D + 1) // 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(numbers, generator=generator, dtype=torch.float64)
    return drawn * SIGMA


def line(seed: int) -> Tensor:
    drawn = torch.randn(D, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found: Tensor = drawn / drawn.norm()
    return found


def test_the_edge_is_where_packed_noise_ends() -> None:
    """Off the diagonal an entry stands twice: it has the deviation of a packed one all the same."""
    tops = [float(torch.linalg.eigvalsh(unpack(noise_of(seed)))[-1]) for seed in range(10)]
    edge = noise_edge(SIGMA, D)
    assert edge == pytest.approx(2 * 0.3 * 200**0.5)
    assert sum(tops) / 10 == pytest.approx(edge, rel=0.03)
    sketch = noise_of(0, D * 50).view(D, 50)
    top = float(torch.linalg.svdvals(sketch)[0])
    assert top == pytest.approx(SIGMA * (D**0.5 + 50**0.5), rel=0.08)
    assert int((above_noise_singular(torch.linalg.svdvals(sketch), SIGMA, D, 50) > 0).sum()) <= 1


def test_energies_above_the_edge_are_what_they_were() -> None:
    true = 4 * SIGMA * D**0.5
    found = []
    for seed in range(10):
        u = line(1000 + seed)
        values = torch.linalg.eigvalsh(unpack(noise_of(seed) + pack(true * u @ u.T)))
        assert float(values[-1]) == pytest.approx(true * (1 + 1 / 16), rel=0.1), "the shift"
        kept = above_noise(values, SIGMA)
        found.append(float(kept[-1]))
        assert int((kept > 0).sum()) <= 2
    assert sum(found) / 10 == pytest.approx(true, rel=0.02)


def test_a_cleaned_matrix_is_the_direction_that_was_there() -> None:
    u, true = line(3), 10 * SIGMA * D**0.5
    matrix = cleaned(noise_of(4) + pack(true * u @ u.T), SIGMA)
    assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-9
    assert float(u.T @ matrix @ u) == pytest.approx(true, rel=0.05)
    assert torch.equal(cleaned(noise_of(4), 0.0), unpack(noise_of(4)))
    assert torch.equal(above_noise(noise_of(4), 0.0), noise_of(4))


def test_rank_counts_what_is_seen_and_knows_what_is_not() -> None:
    energies = torch.tensor([6.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    assert seen_rank(energies, 10.0, 10.0, 0.9) == 2
    assert seen_rank(energies, 0.0, 0.0, 0.9) == 2, "where sums are drowned, what is seen counts"
    assert seen_rank(energies, 20.0, 20.0, 0.9) == 3, "there is more within the noise"
    assert seen_rank(energies, 10.0, 40.0, 0.9) == 1, "the basis holds the most already"
    assert seen_rank(energies, -5.0, -7.0, 0.9) == 2
    assert seen_rank(energies * 0, 5.0, 5.0, 0.9) == 0


def sums_of(gram: Tensor, noise: float, seed: int = 9) -> dict[str, Tensor]:
    trace = float(gram.trace())
    norms = torch.tensor([50.0, trace, trace, 50.0], dtype=torch.float64)
    drawn = noise_of(seed, D * (D + 1) // 2 + 4) * (noise / SIGMA)
    return {"gram/w": pack(gram) + drawn[4:], "norms/w": norms + drawn[:4]}


def test_a_basis_holds_old_inputs_and_no_noise() -> None:
    u = torch.linalg.qr(torch.cat([line(seed) for seed in (71, 72, 73)], dim=1))[0]
    gram = 40.0 * u @ u.T
    for noise in (0.1, 0.3):
        basis = extended_basis(sums_of(gram, noise), "w", None, 0.95, "energy", 1e-7, noise)
        assert basis.shape[1] == 3 and float((u.T @ basis).square().sum()) > 2.5
        # Who does not know of the noise takes it for inputs.
        assert extended_basis(sums_of(gram, noise), "w", None, 0.95, "energy", 1e-7).shape[1] > 20
    drowned = extended_basis(sums_of(gram, 9.0), "w", None, 0.95, "energy", 1e-7, 9.0)
    assert drowned.shape[1] <= 1
    clean = {k: v for k, v in sums_of(gram, 0.0).items()}
    plain = extended_basis(clean, "w", None, 0.95, "energy", 1e-7)
    assert same(plain, extended_basis(clean, "w", None, 0.95, "energy", 1e-7, 0.0))
    grown = grown_basis(gram + unpack(noise_of(1)), None, 0.95, 1e-7, SIGMA)
    assert grown.shape[1] == 3


@pytest.mark.parametrize("noise", [0.1, 3.0, 100.0])
def test_ridge_regression_stays_small_under_noise(noise: float) -> None:
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(500, 30, generator=generator, dtype=torch.float64)
    y = torch.nn.functional.one_hot(torch.arange(500) % 4).double()
    true = {"gram/head": pack(h.T @ h), "cross/head": h.T @ y}
    for seed in range(20):
        drawn = noise_of(seed, 465 + 120) * (noise / SIGMA)
        sums = {
            "gram/head": true["gram/head"] + drawn[:465],
            "cross/head": true["cross/head"] + drawn[465:].view(30, 4),
        }
        weights = ridge(sums, 1e-3, noise)
        bound = float(sums["cross/head"].norm()) / noise_edge(noise, 30)
        assert float(weights.norm()) <= bound * (1 + 1e-9)
    assert same(ridge(true, 1.0), ridge(true, 1.0, 0.0))


def test_importance_and_moments_that_noise_made_up_are_none() -> None:
    value = torch.tensor([-4.0, 0.5, 2.9, 3.1, 50.0])
    assert significant(value, 1.0).tolist() == [0.0, 0.0, 0.0, pytest.approx(3.1), 50.0]
    sums = {"count/n": torch.tensor(-7.0), "fisher/w": value}
    new = grown_importance({}, sums, "fisher", noise=1.0)["w"]
    assert float(new.min()) == 0.0 and float(new.max()) == pytest.approx(50.0 / 3)
    packed = {"count/n": torch.tensor(-1.0), "input_moments/w": noise_of(2) / SIGMA}
    fisher = extended(None, packed, "w", 1.0)
    assert int((fisher.inputs.values > 0).sum()) <= 1
    assert bool(fisher.inputs.values.isfinite().all())
