"""When each client meets what."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl.core.data.scenario import Order
from fedcl.core.data.table import IntArray
from fedcl.streams._order import ORDERS, Blurred, PowerLaw, Shared, Shuffled, Staggered

SEEDS = st.integers(0, 2**40)


def path(order: Order, client: int, tasks: int, seed: int) -> list[int]:
    """Returns what one client meets at each stage."""
    found: list[int] = order.paths(np.array([client]), tasks, seed)[0].tolist()
    return found


@given(st.integers(1, 12), st.integers(0, 100), SEEDS)
def test_shared_means_task_t_at_stage_t(tasks: int, client: int, seed: int) -> None:
    order = Shared()
    assert order.shared
    assert order.stages(tasks) == tasks
    assert path(order, client, tasks, seed) == list(range(tasks))


@given(st.integers(1, 12), st.integers(0, 100), SEEDS)
def test_shuffled_is_a_permutation_for_each_client(tasks: int, client: int, seed: int) -> None:
    order = Shuffled()
    assert not order.shared
    met = path(order, client, tasks, seed)
    assert order.stages(tasks) == tasks
    assert sorted(met) == list(range(tasks))
    assert met == path(order, client, tasks, seed)


def test_shuffled_orders_are_uniform_and_independent() -> None:
    order = Shuffled()
    met = Counter(
        tuple(met) for seed in range(20) for met in order.paths(np.arange(60), 3, seed).tolist()
    )
    # 1200 draws of six orders: 200 each, of standard deviation 13.
    assert len(met) == 6
    assert all(abs(count - 200) < 60 for count in met.values())


@given(st.integers(1, 6), st.integers(1, 4), st.floats(0, 1), st.integers(0, 50), SEEDS)
def test_staggered_clients_meet_all_tasks_in_the_common_order(
    tasks: int, delay: int, late: float, client: int, seed: int
) -> None:
    order = Staggered(delay, late)
    assert not order.shared
    stages = order.stages(tasks)
    assert stages == tasks + delay
    met = path(order, client, tasks, seed)
    start = next(stage for stage, task in enumerate(met) if task >= 0)
    assert met == [-1] * start + list(range(tasks)) + [-1] * (delay - start)


def test_late_joiners_are_as_many_and_as_late_as_asked() -> None:
    order = Staggered(delay=3, late=0.4)
    starts = Counter((order.paths(np.arange(3000), 2, 1) >= 0).argmax(axis=1).tolist())
    assert sorted(starts) == [0, 1, 2, 3]
    # 1800 are in time (standard deviation 27), and 400 each come 1, 2 and 3 stages later (19).
    assert abs(starts[0] - 1800) < 108
    assert all(abs(starts[k] - 400) < 76 for k in (1, 2, 3))


def test_nobody_or_everybody_may_be_late() -> None:
    never, always = Staggered(2, 0.0), Staggered(2, 1.0)
    assert (never.paths(np.arange(50), 3, 5)[:, 0] == 0).all()
    assert (always.paths(np.arange(50), 3, 5)[:, 0] == -1).all()


@pytest.mark.parametrize("order", [Shuffled(), Staggered(3, 0.5), PowerLaw(length=9)], ids=str)
def test_a_clients_path_needs_nobody_elses(order: Order) -> None:
    everyone = order.paths(np.arange(200), 4, 7)
    assert np.array_equal(order.paths(np.array([150, 3]), 4, 7), everyone[[150, 3]])
    assert not np.array_equal(order.paths(np.arange(200), 4, 8), everyone)


# Blurred borders: what moves is tested with the calendar and the stream.


def test_blurred_clients_meet_task_t_at_stage_t() -> None:
    order = Blurred(0.2)
    assert (order.shared, order.gaps, order.blur, order.stages(4)) == (True, False, 0.2, 4)
    assert path(order, 3, 4, 0) == [0, 1, 2, 3]


# Tasks that return.


@given(st.integers(1, 8), st.floats(0, 60), st.integers(0, 40), st.integers(0, 99), SEEDS)
def test_every_client_has_a_task_at_every_stage(
    tasks: int, exponent: float, length: int, client: int, seed: int
) -> None:
    order = PowerLaw(exponent, length)
    assert order.stages(tasks) == (length or 4 * tasks)
    met = path(order, client, tasks, seed)
    assert len(met) == order.stages(tasks)
    assert set(met) <= set(range(tasks))


def returns(order: PowerLaw, tasks: int, clients: int) -> tuple[IntArray, IntArray]:
    """Returns how often a task could return after l stages away, and how often it did.

    Counted the slow way, a task at a time; first meetings and staying do not count.
    """
    paths = order.paths(np.arange(clients), tasks, 11)
    chances, came = np.zeros((2, order.stages(tasks)), dtype=np.int64)
    for task in range(tasks):
        last = np.full(clients, -1)
        for stage, present in enumerate(paths.T):
            since = np.where(last >= 0, stage - last, 0)
            chances += np.bincount(since, minlength=len(chances))
            came += np.bincount(since[present == task], minlength=len(chances))
            last[present == task] = stage
    return chances[2:], came[2:]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 2.5])
def test_the_probability_of_a_return_falls_as_a_power(exponent: float) -> None:
    tasks, order = 6, PowerLaw(exponent, length=40)
    chances, came = returns(order, tasks, 30_000)
    since = np.arange(2, 40)
    expected = since**-exponent / (np.arange(2.0, tasks + 1) ** -exponent).sum()
    deviation = np.sqrt(expected * (1 - expected) / np.maximum(chances, 1))
    assert np.all(np.abs(came / np.maximum(chances, 1) - expected) < 5 * deviation + 1e-12)
    # The fitted slope, each point weighted by how well it is known.
    seen = came > 0
    weights = np.sqrt(came[seen])
    slope = np.polyfit(np.log(since[seen]), np.log(came[seen] / chances[seen]), 1, w=weights)[0]
    assert slope == pytest.approx(-exponent, abs=0.03)


def test_first_tasks_are_even_and_first_meetings_follow_the_same_law() -> None:
    paths = PowerLaw(1.0, length=2).paths(np.arange(20_000), 4, 3)
    # 5000 each, of standard deviation 61.
    assert np.abs(np.bincount(paths[:, 0]) - 5000).max() < 305
    # The task of stage 0 was the l-th last before (chance c / l, l = 2, 3, 4); then the others are
    # l - 1 fewer and more stages away: the chance of staying is 1 - c times the sum over them.
    c = 1 / (1 / 2 + 1 / 3 + 1 / 4)
    others = {2: (1 + 1, 3 + 1, 4 + 1), 3: (1 + 1, 2 + 1, 4 + 1), 4: (1 + 1, 2 + 1, 3 + 1)}
    stays = sum(
        c / first * (1 - c * sum(1 / stages for stages in away)) for first, away in others.items()
    )
    found = (paths[:, 0] == paths[:, 1]).mean()
    assert abs(found - stays) < 5 * np.sqrt(stays * (1 - stays) / 20_000)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="delay must be at least 1 stage, not 0"):
        Staggered(delay=0)
    with pytest.raises(ValueError, match=r"late must lie in \[0, 1\], not 1.5"):
        Staggered(late=1.5)
    with pytest.raises(ValueError, match=r"share must lie in \[0, 0.5\), not 0.5"):
        Blurred(share=0.5)
    with pytest.raises(ValueError, match="exponent must be finite and at least 0, not -1"):
        PowerLaw(exponent=-1.0)
    with pytest.raises(ValueError, match="length must be at least 1 stage, not -2"):
        PowerLaw(length=-2)


def test_configs_find_every_order_by_name() -> None:
    kinds: dict[str, Any] = dict(ORDERS)
    assert {name: kind().shared for name, kind in kinds.items()} == {
        "shared": True,
        "blurred": True,
        "shuffled": False,
        "staggered": False,
        "power_law": False,
    }
