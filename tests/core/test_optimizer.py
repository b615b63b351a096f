"""Server optimizers against numbers worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcl.core.optimizer import Moments, check_server, server_step


def change(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float64)}


def test_mean_adds_the_change_times_the_rate() -> None:
    step, moments = server_step(change(1.0, -2.0), Moments(), "mean", lr=0.5)
    assert step["w"].tolist() == [0.5, -1.0]
    assert moments == Moments()
    given_back, _ = server_step(change(0.1), Moments(), "mean", lr=1.0)
    assert given_back["w"].tolist() == [0.1]


def test_momentum_by_hand() -> None:
    """FedAvgM: v1 = 1, v2 = 0.5 * 1 + 2 = 2.5, v3 = 0.5 * 2.5 - 1 = 0.25; steps are 2 v."""
    moments, steps = Moments(), []
    for value in (1.0, 2.0, -1.0):
        step, moments = server_step(change(value), moments, "momentum", lr=2.0, momentum=0.5)
        steps.append(step["w"].item())
    assert steps == [2.0, 5.0, 0.5]
    assert moments.first["w"].tolist() == [0.25]
    assert moments.second == {}
    assert moments.steps == 3


def test_adam_by_hand() -> None:
    """FedAdam with b1 = 0.5, b2 = 0.75, tau = 1, lr = 8, changes 2 then -4.

    m1 = 0.5 * 2 = 1, v1 = 0.25 * 4 = 1, step 8 * 1 / (1 + 1) = 4;
    m2 = 0.5 * 1 - 0.5 * 4 = -1.5, v2 = 0.75 * 1 + 0.25 * 16 = 4.75, step -12 / (sqrt(4.75) + 1).
    """
    options = {"lr": 8.0, "momentum": 0.5, "second": 0.75, "epsilon": 1.0}
    step, moments = server_step(change(2.0), Moments(), "adam", **options)
    assert step["w"].tolist() == [4.0]
    step, moments = server_step(change(-4.0), moments, "adam", **options)
    assert moments.first["w"].tolist() == [-1.5]
    assert moments.second["w"].tolist() == [4.75]
    assert moments.steps == 2
    assert step["w"].item() == pytest.approx(-12.0 / (4.75**0.5 + 1.0), rel=1e-15)


def test_momentum_zero_is_the_mean() -> None:
    moments = Moments()
    for value in (1.0, -3.0):
        step, moments = server_step(change(value), moments, "momentum", lr=0.3, momentum=0.0)
        plain, _ = server_step(change(value), Moments(), "mean", lr=0.3)
        assert torch.equal(step["w"], plain["w"])


@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6),
    scale=st.sampled_from([0.25, 4.0, 1024.0]),
)
def test_adam_does_not_see_the_scale_of_changes_without_tau(
    values: list[float], scale: float
) -> None:
    plain, scaled = Moments(), Moments()
    for value in values:
        a, plain = server_step(change(value + 0.5), plain, "adam", lr=1.0, epsilon=0.0)
        b, scaled = server_step(change(scale * (value + 0.5)), scaled, "adam", lr=1.0, epsilon=0.0)
        assert torch.allclose(a["w"], b["w"], rtol=1e-12, atol=0.0, equal_nan=True)


def test_steps_leave_the_old_moments_as_they_are() -> None:
    _, old = server_step(change(1.0), Moments(), "adam", lr=1.0)
    before = old.first["w"].clone(), old.second["w"].clone()
    server_step(change(5.0), old, "adam", lr=1.0)
    assert torch.equal(old.first["w"], before[0])
    assert torch.equal(old.second["w"], before[1])


def test_options_are_checked() -> None:
    check_server("mean", 1.0, 0.0)
    with pytest.raises(ValueError, match="server_lr must be above 0, not 0"):
        check_server("mean", 0.0, 0.5)
    with pytest.raises(ValueError, match=r"server_momentum must lie in \[0, 1\), not 1"):
        check_server("momentum", 1.0, 1.0)
