"""Cohorts are pure functions of their arguments, of the right size and distribution."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, overload

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedcl.core.data.scenario import Task
from fedcl.core.data.stream import Stream
from fedcl.core.population import Simulated, sample
from fedcl.streams._order import Shared
from fedcl.streams._partition import Iid
from tests.core import toys

HOW = ("fixed", "poisson", "round_robin")


class Counted(Sequence[int]):
    """A million members that know how often one of them was looked up."""

    def __init__(self) -> None:
        self.looked = 0

    def __len__(self) -> int:
        return 10**6

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        assert isinstance(index, int)
        self.looked += 1
        return 3 * index


@pytest.mark.parametrize("how", HOW)
def test_a_large_population_is_never_listed(how: str) -> None:
    members = Counted()
    cohort = sample(members, 10, how, seed=1, turn=2)
    assert members.looked == len(cohort) <= 40
    assert all(id % 3 == 0 for id in cohort)
    sample(range(10**12), 10, how, seed=1, turn=2)


@given(
    st.lists(st.integers(0, 1000), unique=True, max_size=30),
    st.integers(0, 40),
    st.sampled_from(HOW),
    st.integers(0, 2**63 - 1),
    st.integers(0, 100),
)
def test_cohorts_are_ascending_members_and_pure(
    members: list[int], size: int, how: str, seed: int, turn: int
) -> None:
    members.sort()
    cohort = sample(members, size, how, seed, turn)
    assert list(cohort) == sorted(set(cohort))
    assert set(cohort) <= set(members)
    assert cohort == sample(tuple(members), size, how, seed, turn)
    if how != "poisson":
        assert len(cohort) == min(size or len(members), len(members))
    elif size == 0 or size >= len(members):
        assert list(cohort) == members


def test_nobody_gives_an_empty_cohort() -> None:
    assert [sample((), 5, how, 0, 0) for how in HOW] == [(), (), ()]


def test_zero_means_everyone() -> None:
    assert all(sample(range(4), 0, how, 0, 7) == (0, 1, 2, 3) for how in HOW)


def test_fixed_cohorts_draw_every_member_as_often() -> None:
    drawn = Counter(id for seed in range(3000) for id in sample(range(10), 3, "fixed", seed, 0))
    # 900 each, of variance 3000 * 0.3 * 0.7: four standard deviations are 100.
    assert set(drawn) == set(range(10))
    assert all(abs(count - 900) < 100 for count in drawn.values())


def test_poisson_cohorts_have_binomial_sizes_and_independent_members() -> None:
    rounds, chance = 4000, 0.3
    cohorts = [set(sample(range(20), 6, "poisson", seed, 0)) for seed in range(rounds)]
    sizes = torch.tensor([float(len(cohort)) for cohort in cohorts])
    variance = 20 * chance * (1 - chance)
    assert abs(float(sizes.mean()) - 6) < 4 * (variance / rounds) ** 0.5
    assert abs(float(sizes.var()) - variance) < 0.4
    both = sum(3 in cohort and 11 in cohort for cohort in cohorts)
    assert abs(both / rounds - chance**2) < 4 * (0.09 * 0.91 / rounds) ** 0.5
    assert min(map(len, (sample(range(20), 1, "poisson", seed, 0) for seed in range(50)))) == 0


@pytest.mark.parametrize(("members", "size"), [(10, 3), (7, 7), (12, 4), (5, 1)])
def test_round_robin_takes_everyone_in_turn(members: int, size: int) -> None:
    turns = -(-members // size)
    met = Counter(
        id for turn in range(turns) for id in sample(range(members), size, "round_robin", 5, turn)
    )
    assert set(met) == set(range(members))
    assert max(met.values()) - min(met.values()) <= 1
    # After as many turns as there are members, everyone had the same number.
    even = Counter(
        id for turn in range(members) for id in sample(range(members), size, "round_robin", 5, turn)
    )
    assert set(even.values()) == {size}


def test_seeds_change_drawn_cohorts_and_turns_do_not() -> None:
    cohorts = {sample(range(1000), 20, "fixed", seed, 0) for seed in range(20)}
    assert len(cohorts) == 20
    assert sample(range(1000), 20, "fixed", 3, 0) == sample(range(1000), 20, "fixed", 3, 9)
    robin = {sample(range(1000), 20, "round_robin", seed, 4) for seed in range(20)}
    assert len(robin) == 1


# Simulated clients.


def simulated(dtype: torch.dtype) -> Simulated:
    data = toys.dataset([0, 1] * 6)
    rows = toys.ints(range(12))
    none = rows[:0]
    task = Task(0, "all", (0, 1), rows, rows, none, none)
    stream = Stream("toy", "domain", data, (task,), 3, Iid(), Shared(), seed=4)
    return Simulated(stream, dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_client_is_built_from_its_share(dtype: torch.dtype) -> None:
    population, model = simulated(dtype), nn.Linear(2, 2)
    state: Any = {"kept": torch.ones(2)}
    clients = [population.client(id, 0, model, state, seed=40 + id) for id in range(3)]
    assert sorted(row for client in clients for row in toys.rows_of(client.data)) == list(range(12))
    for id, client in enumerate(clients):
        assert (client.id, client.seed, client.model) == (id, 40 + id, model)
        assert (client.data.x.dtype, client.data.y.dtype) == (dtype, torch.int64)
        assert client.data.y.tolist() == [row % 2 for row in toys.rows_of(client.data)]
        assert client.task.head.tolist() == [True, True]
        # The same object, so that a program that returns it has changed nothing.
        assert client.state is state
