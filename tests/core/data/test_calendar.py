"""Who meets what at which stage: for one client, for a block, and for a million."""

import pickle
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl.core.data import calendar
from fedcl.core.data.calendar import Calendar, Ids, used_at
from fedcl.core.data.table import IntArray
from fedcl.streams._division import by_sizes
from fedcl.streams._order import PowerLaw, Shared, Shuffled, Staggered
from tests.core import toys


@dataclass(frozen=True)
class Watched:
    """Another order, which counts the clients whose paths were worked out."""

    gaps: ClassVar[bool] = True
    shared: ClassVar[bool] = False
    blur: ClassVar[float] = 0.0

    inner: Any
    asked: list[int] = field(default_factory=list)

    def stages(self, tasks: int) -> int:
        return int(self.inner.stages(tasks))

    def paths(self, clients: IntArray, tasks: int, seed: int) -> IntArray:
        self.asked.append(len(clients))
        found: IntArray = self.inner.paths(clients, tasks, seed)
        return found


def make(order: Any, clients: int, tasks: int = 3, empty: Any = (), seed: int = 5) -> Calendar:
    """Returns a calendar in which everybody has data but the (client, task) that are `empty`."""
    sizes = np.ones((tasks, clients), dtype=np.int64)
    for client, task in empty:
        sizes[task, client] = 0
    return Calendar(
        order, tasks, clients, seed, lambda t: by_sizes(np.arange(sizes[t].sum()), sizes[t])
    )


ORDERS = [Shared(), Shuffled(), Staggered(2, 0.5), PowerLaw()]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@given(
    clients=st.integers(1, 9),
    tasks=st.integers(1, 4),
    empty=st.sets(st.tuples(st.integers(0, 8), st.integers(0, 3)), max_size=5),
    seed=st.integers(0, 2**62),
)
def test_everything_agrees_with_the_paths(
    order: Any, clients: int, tasks: int, empty: set[tuple[int, int]], seed: int
) -> None:
    empty = {(client, task) for client, task in empty if client < clients and task < tasks}
    found = make(order, clients, tasks, empty, seed)
    plain = order.paths(np.arange(clients), tasks, seed).tolist()
    paths = [
        tuple(-1 if (client, task) in empty else task for task in path)
        for client, path in enumerate(plain)
    ]
    assert found.paths(range(clients)) == paths
    assert found.paths([clients - 1, 0]) == [paths[-1], paths[0]]
    for stage in range(order.stages(tasks)):
        here = [path[stage] for path in paths]
        assert list(found.members(stage)) == [c for c, task in enumerate(here) if task >= 0]
        assert np.flatnonzero(found.met[stage]).tolist() == sorted(set(here) - {-1})
    whole = all(task >= 0 for path in paths for task in path)
    assert whole or not found.full
    # By a power law some tasks are met by nobody, and it takes a look at all paths to know which.
    assert found.full == whole or order.gaps or isinstance(order, PowerLaw)


def test_large_populations_are_looked_at_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendar, "_MOST", 5 * 1000)
    clients = 3500
    order = Watched(Staggered(delay=2, late=0.5))
    found = make(order, clients)
    for stage in range(5):
        members = found.members(stage)
        expected = order.inner.paths(np.arange(clients), 3, 5)[:, stage]
        assert np.array_equal(members, np.flatnonzero(expected >= 0))
        # At stage 2 everybody has come and nobody gone.
        assert isinstance(members, range if stage == 2 else Ids)
    # Five stages of a thousand clients, after small first parts.
    assert order.asked[:4] == [256, 512, 1000, 1000]
    assert max(order.asked) == 1000


def test_a_question_that_is_soon_answered_looks_at_few() -> None:
    order = Watched(Shuffled())
    found = make(order, 100_000)
    assert found.met.all()
    assert sum(order.asked) < 1000


def test_nobody_is_looked_at_where_everybody_is_there() -> None:
    found = make(Shuffled(), 100_000)
    assert found.members(2) == range(100_000)
    assert make(Shared(), 100_000).paths([7, 99_999]) == [(0, 1, 2)] * 2


def test_paths_are_kept_but_not_without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendar, "_KEPT", 3 * 10)
    order = Watched(Shuffled())
    found = make(order, 50)
    first = found.paths(range(8))
    assert found.paths([0, 7]) == [first[0], first[7]]
    assert order.asked == [8]
    second = found.paths(range(6, 14))  # there is no room for 14
    assert second[:2] == first[6:]
    assert found.paths(range(14)) == first[:6] + second
    assert found.paths(range(20)) == found.paths(range(20))
    assert len(found._paths) == 20  # one block is always kept whole


# Blurred borders.


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.floats(0, 0.499),
)
def test_each_example_is_used_once_and_no_stage_is_left_empty(
    sizes: list[int], blur: float
) -> None:
    path = tuple(task if size else -1 for task, size in enumerate(sizes))
    at = [used_at(path, home, size, blur) for home, size in enumerate(sizes)]
    for home, stages in enumerate(at):
        assert len(stages) == sizes[home]
        assert set(stages.tolist()) <= {home - 1, home, home + 1} & set(range(len(path)))
        assert all(path[stage] >= 0 for stage in stages)
        assert home in stages or not sizes[home]


@pytest.mark.parametrize("blur", [0.0, 0.1, 0.25, 0.49])
def test_as_many_move_as_asked_from_everywhere_in_the_share(blur: float) -> None:
    for stages in (used_at((0, 1, 2), 1, 1000, blur), used_at((0, 1, 2), 1, 1300, blur)[300:]):
        early, late = (np.flatnonzero(stages == stage) for stage in (0, 2))
        for moved in (early, late):
            assert abs(len(moved) - 1000 * blur) <= 3
            # In each quarter as many.
            assert np.ptp(np.histogram(moved, 4, (0, 1000))[0]) <= 4
    first, last = used_at((0, 1), 0, 1000, blur), used_at((0, 1), 1, 1000, blur)
    assert first.min() == 0
    assert last.max() == 1


# Ids.


def test_ids_are_pythons_integers() -> None:
    ids = Ids(np.array([2, 5, 9], dtype=np.int32))
    assert [type(id) for id in (*ids, ids[0], ids[-1])] == [int] * 5
    assert (len(ids), list(ids), list(ids[1:]), ids[-1]) == (3, [2, 5, 9], [5, 9], 9)
    assert [id in ids for id in (2, 9, 1, 6, 10, "2")] == [True, True, False, False, False, False]
    assert list(pickle.loads(pickle.dumps(ids))) == [2, 5, 9]
    assert not Ids(toys.ints([]).astype(np.int32))
    with pytest.raises(IndexError):
        ids[3]
