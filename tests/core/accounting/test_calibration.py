"""The noise that an epsilon needs: the inverse of accounting."""

import math

import pytest

from fedcl.auditing.gaussians import gdp_epsilon
from fedcl.core.accounting.calibration import multiplier
from fedcl.core.accounting.composition import Charge, epsilon


def test_without_sampling_it_is_the_gaussian_mechanism_of_that_mu() -> None:
    z = multiplier(lambda z: [Charge(z, 1.0, 16)], 3.0, 1e-5)
    assert gdp_epsilon(math.sqrt(16) / z, 1e-5) == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("target", [1.0, 3.0, 8.0])
def test_it_keeps_to_the_target_and_wastes_little(target: float) -> None:
    def charges(z: float) -> list[Charge]:
        return [Charge(z, 0.1, 45), Charge(2 * z)]

    z = multiplier(charges, target, 1e-4)
    assert 0.998 * target <= epsilon(charges(z), 1e-4) <= target
    assert epsilon(charges(0.99 * z), 1e-4) > target


def test_what_cannot_be_reached_is_said() -> None:
    with pytest.raises(ValueError, match="above 0, not 0"):
        multiplier(lambda z: [Charge(z)], 0.0, 1e-5)
    with pytest.raises(ValueError, match="release less often"):
        multiplier(lambda z: [Charge(z), Charge(1.0)], 0.1, 1e-5)
