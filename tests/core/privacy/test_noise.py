"""Noise from a secret: its size and shape, and that no two places or roots share it."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2, kstest, norm

from fedcl.core.privacy.noise import gaussian, hide, key_of, secret_root, seed_below, seeded_root

SIZE = 26_000
ROOT = seeded_root(0)


def tail(scale: float, *place: int | str) -> float:
    drawn = gaussian(ROOT, (SIZE,), scale, *place)
    return float(chi2.sf(float(drawn.square().sum()), SIZE))


def test_noise_is_gaussian_of_the_claimed_size() -> None:
    for number in range(5):
        drawn = gaussian(ROOT, (SIZE,), 3.0, "layer", number) / 3.0
        assert 1e-4 < float(chi2.sf(float(drawn.square().sum()), SIZE)) < 1 - 1e-4
        assert float(kstest(drawn.numpy(), norm.cdf).pvalue) > 1e-4


def test_two_percent_less_noise_are_found_in_nine_of_ten_releases() -> None:
    assert sum(tail(1.0, number) < 1e-3 for number in range(50)) == 0
    assert sum(1 - tail(0.98, number) < 1e-3 for number in range(50)) >= 45


def test_places_and_roots_share_no_noise_and_a_place_repeats_its_own() -> None:
    same = gaussian(ROOT, (SIZE,), 1.0, 0, 1, "a")
    assert torch.equal(same, gaussian(ROOT, (SIZE,), 1.0, 0, 1, "a"))
    others = [
        gaussian(ROOT, (SIZE,), 1.0, 1, 0, "a"),
        gaussian(ROOT, (SIZE,), 1.0, 0, 1, "b"),
        gaussian(ROOT, (SIZE,), 1.0, 0, "1", "a"),
        gaussian(seeded_root(1), (SIZE,), 1.0, 0, 1, "a"),
        gaussian(secret_root(), (SIZE,), 1.0, 0, 1, "a"),
    ]
    table = torch.corrcoef(torch.stack([same, *others])) - torch.eye(6)
    assert float(table.abs().max()) < 5 / math.sqrt(SIZE)


@pytest.mark.parametrize("shape", [(), (0,), (7, 3), (40_000,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hiding_puts_the_same_noise_on_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = (values.double() + gaussian(ROOT, shape, 0.3, "layer", 1)) / 5.5
    hidden, bare = values.clone(), values.clone()
    hide(hidden, ROOT, 0.3, 5.5, "layer", 1)
    assert torch.allclose(
        hidden, expected.to(dtype), rtol=1e-6 if dtype == torch.float32 else 1e-14
    )
    hide(bare, ROOT, 0.0, 5.5, "layer", 1)
    assert torch.allclose(bare, values / 5.5)


def test_keys_of_different_places_differ() -> None:
    places = [("a", "b"), ("ab",), ("a/str:1:b",), (1,), ("1",), (1, 1), (11,), ()]
    assert len({key_of(ROOT, *place) for place in places}) == len(places)
    assert all(len(key_of(ROOT, *place)) == 32 for place in places)
    assert 0 <= seed_below(ROOT, "cohort", 3) < 2**63


def test_a_root_that_is_no_root_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 3"):
        gaussian(b"abc", (1,), 1.0)
