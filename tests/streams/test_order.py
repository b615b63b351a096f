"""When each client meets what."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl.streams._order import ORDERS, Shared, Shuffled, Staggered

SEEDS = st.integers(0, 2**40)


@given(st.integers(1, 12), st.integers(0, 100), SEEDS)
def test_shared_means_task_t_at_stage_t(tasks: int, client: int, seed: int) -> None:
    order = Shared()
    assert order.shared
    assert order.stages(tasks) == tasks
    assert [order.task_at(client, t, tasks, seed) for t in range(tasks)] == list(range(tasks))


@given(st.integers(1, 12), st.integers(0, 100), SEEDS)
def test_shuffled_is_a_permutation_for_each_client(tasks: int, client: int, seed: int) -> None:
    order = Shuffled()
    assert not order.shared
    met = [order.task_at(client, stage, tasks, seed) for stage in range(order.stages(tasks))]
    assert sorted(task for task in met if task is not None) == list(range(tasks))
    assert met == [order.task_at(client, stage, tasks, seed) for stage in range(tasks)]


def test_shuffled_orders_are_uniform_and_independent() -> None:
    order = Shuffled()
    met = Counter(
        tuple(order.task_at(client, stage, 3, seed) for stage in range(3))
        for client in range(60)
        for seed in range(20)
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
    met = [order.task_at(client, stage, tasks, seed) for stage in range(stages)]
    start = next(stage for stage, task in enumerate(met) if task is not None)
    assert met == [None] * start + list(range(tasks)) + [None] * (delay - start)


def test_late_joiners_are_as_many_and_as_late_as_asked() -> None:
    order = Staggered(delay=3, late=0.4)
    starts = Counter(
        next(s for s in range(4) if order.task_at(client, s, 2, 1) is not None)
        for client in range(3000)
    )
    assert sorted(starts) == [0, 1, 2, 3]
    # 1800 are in time (standard deviation 27), and 400 each come 1, 2 and 3 stages later (19).
    assert abs(starts[0] - 1800) < 108
    assert all(abs(starts[k] - 400) < 76 for k in (1, 2, 3))


def test_nobody_or_everybody_may_be_late() -> None:
    never, always = Staggered(2, 0.0), Staggered(2, 1.0)
    assert all(never.task_at(client, 0, 3, 5) == 0 for client in range(50))
    assert all(always.task_at(client, 0, 3, 5) is None for client in range(50))


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="delay must be at least 1 stage, not 0"):
        Staggered(delay=0)
    with pytest.raises(ValueError, match=r"late must lie in \[0, 1\], not 1.5"):
        Staggered(late=1.5)


def test_configs_find_every_order_by_name() -> None:
    kinds: dict[str, Any] = dict(ORDERS)
    assert {name: kind().shared for name, kind in kinds.items()} == {
        "shared": True,
        "shuffled": False,
        "staggered": False,
    }
