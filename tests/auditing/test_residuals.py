"""The tests of noise accept what is claimed, and each of them sees what the others cannot."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedcl.auditing.residuals import Verdict, dependences, judged, residual
from fedcl.core.privacy.noise import gaussian, seeded_root

SHAPES = {"one.weight": (100, 200), "one.bias": (200,), "two.weight": (200, 29)}  # 26,000 numbers
ROOT = seeded_root(7)
SCALE = 0.37
CLEAN = {name: gaussian(ROOT, shape, 5.0, "clean", name) for name, shape in SHAPES.items()}


def release(seed: int, **factors: float) -> dict[str, Tensor]:
    """Returns a sum with noise of the claimed scale, or of a part of it in some layers."""
    return {
        name: value + gaussian(ROOT, value.shape, SCALE * factors.get(name[:3], 1.0), seed, name)
        for name, value in CLEAN.items()
    }


def verdicts(released: dict[str, Tensor]) -> tuple[Verdict, ...]:
    return judged(residual(released, CLEAN, SCALE))


def test_the_noise_that_is_claimed_passes() -> None:
    found = [verdicts(release(seed)) for seed in range(50)]
    assert [verdict.layer for verdict in found[0]] == ["total", *SHAPES]
    assert found[0][0].numbers == 26_000
    assert sum(bool(verdict.faults) for run in found for verdict in run) == 0
    assert all(abs(run[0].spread - 1) < 0.015 for run in found)


@pytest.mark.parametrize("deficit", [0.02, 0.1])
def test_a_little_less_noise_is_rejected_in_nine_of_ten_releases(deficit: float) -> None:
    part = 1.0 - deficit
    found = [verdicts(release(seed, one=part, two=part))[0] for seed in range(50)]
    assert sum("too little noise" in verdict.faults for verdict in found) >= 45


def test_more_noise_than_claimed_is_named_too() -> None:
    assert "too much noise" in verdicts(release(0, one=1.1, two=1.1))[0].faults


def test_noise_on_some_layers_only_is_laid_to_the_others() -> None:
    found = {verdict.layer: verdict.faults for verdict in verdicts(release(0, two=0.0))}
    assert found["one.weight"] == found["one.bias"] == ()
    assert "too little noise" in found["two.weight"] and "too little noise" in found["total"]


def test_uniform_noise_of_the_same_variance_is_seen_by_its_shape_alone() -> None:
    for seed in range(10):
        drawn = np.random.default_rng(seed).uniform(-math.sqrt(3), math.sqrt(3), 26_000)
        (total, _) = judged({"all": torch.from_numpy(drawn)})
        assert total.faults == ("not the claimed Gaussian noise",)


def test_the_same_noise_in_each_round_is_seen_by_its_correlation_alone() -> None:
    rounds = {str(seed): residual(release(seed), CLEAN, SCALE) for seed in range(10)}
    found = dependences(rounds)
    assert len(found) == 45 and all(pair.independent for pair in found)
    assert found[0].bound == pytest.approx(5 / math.sqrt(26_000))
    assert not judged(rounds["3"])[0].faults
    pairs = dependences(rounds | {"again": rounds["3"]})
    assert [(p.first, p.second) for p in pairs if not p.independent] == [("3", "again")]


def test_half_of_the_noise_in_common_is_seen_too() -> None:
    one, other, common = (residual(release(seed), CLEAN, SCALE) for seed in (1, 2, 3))
    mixed = [{k: (own[k] + common[k]) / math.sqrt(2) for k in own} for own in (one, other)]
    (pair,) = dependences({"one": mixed[0], "other": mixed[1]})
    assert pair.correlation == pytest.approx(0.5, abs=0.05) and not pair.independent


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_no_noise(bad: float) -> None:
    released = release(0)
    released["one.bias"][3] = bad
    assert verdicts(released)[0].faults and not verdicts(released)[1].faults


def test_no_noise_is_rejected_and_depends_on_nothing() -> None:
    assert "too little noise" in verdicts(dict(CLEAN))[0].faults
    nothing = residual(CLEAN, CLEAN, SCALE)
    (pair,) = dependences({"none": nothing, "some": residual(release(0), CLEAN, SCALE)})
    assert pair.correlation == 0.0


def test_claims_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        residual(CLEAN, CLEAN, 0.0)
    with pytest.raises(ValueError, match=r"one\.bias"):
        residual(CLEAN, {k: v for k, v in CLEAN.items() if k != "one.bias"}, 1.0)
    with pytest.raises(ValueError, match="shapes"):
        residual(CLEAN, CLEAN | {"one.bias": torch.zeros(3)}, 1.0)
    with pytest.raises(ValueError, match="without numbers"):
        judged({})
    with pytest.raises(ValueError, match="sizes"):
        dependences({"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(3)}})
