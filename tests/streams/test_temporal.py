"""Streams in time: each client's own rows, in order, cut into parts."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl.core.data.stream import Stream
from fedcl.core.errors import ConfigError
from fedcl.streams._partition import Iid, Natural
from fedcl.streams.temporal import Temporal
from tests.core import toys

# Two people, 4 and 8, whose rows and times are mixed.
WHO = [8, 4, 4, 8, 4, 8, 4, 4, 8, 4, 8, 8]
WHEN = [50, 10, 40, 20, 30, 60, 20, 60, 10, 50, 40, 30]


def build(
    who: Any = None,
    when: Any = None,
    test_who: Any = (4, 8, 4, 8),
    test_when: Any = (5, 35, 30, 99),
    **options: Any,
) -> Stream:
    who, when = WHO if who is None else who, WHEN if when is None else when
    columns = {"subject": who, "position": when}
    tests = {"subject": test_who, "position": test_when}
    if test_who is None:
        del tests["subject"]
    dataset = toys.dataset(np.arange(len(who)) % 2, np.arange(len(test_when)) % 2, columns, tests)
    scenario = Temporal(**{"tasks": 2, "partition": Natural(), **options})
    return scenario.build(dataset, 1, "toy")


def times(stream: Stream, client: int, stage: int) -> list[int]:
    """Returns the times of a client's training rows."""
    rows = toys.rows_of(stream.train(client, stage))
    found: list[int] = stream.dataset.train.columns["position"][rows].tolist()
    return found


def test_everyone_goes_through_their_own_time() -> None:
    stream = build()
    for client in (0, 1):
        assert sorted(times(stream, client, 0)) == [10, 20, 30]
        assert sorted(times(stream, client, 1)) == [40, 50, 60]
        rows = [row for stage in (0, 1) for row in toys.rows_of(stream.train(client, stage))]
        assert {WHO[row] for row in rows} == {(4, 8)[client]}
    assert [task.name for task in stream.tasks] == ["part 0", "part 1"]
    assert stream.scenario == "domain"


def test_test_rows_fall_into_the_part_in_whose_time_they_lie() -> None:
    # Both second parts begin at 40.
    stream = build(test_who=(4, 8, 4, 8, 4, 4), test_when=(5, 35, 39, 99, 40, 41))
    assert stream.tasks[0].test.tolist() == [0, 1, 2]
    assert stream.tasks[1].test.tolist() == [3, 4, 5]
    owners = stream.owners(1, "test")
    assert owners is not None
    assert owners.tolist() == [1, 0, 0]


def test_borders_are_each_clients_own() -> None:
    stream = build(
        who=[0] * 4 + [1] * 4,
        when=[1, 2, 3, 4, 101, 102, 103, 104],
        test_who=(0, 0, 1, 1),
        test_when=(2, 3, 102, 103),
    )
    assert stream.tasks[0].test.tolist() == [0, 2]
    assert stream.tasks[1].test.tolist() == [1, 3]


def test_test_rows_of_strangers_belong_to_no_part() -> None:
    stream = build(test_who=(4, 5, 8, 8), test_when=(5, 5, 99, 5))
    assert sorted([*stream.tasks[0].test, *stream.tasks[1].test]) == [0, 2, 3]


def test_without_natural_clients_the_time_of_all_is_cut() -> None:
    stream = build(partition=Iid(), clients=3, test_who=None, test_when=(35, 15, 45, 60))
    early = {row for row, when in enumerate(WHEN) if when <= 30}
    assert set(stream.tasks[0].train.tolist()) == early
    assert stream.tasks[0].test.tolist() == [0, 1]
    assert stream.tasks[1].test.tolist() == [2, 3]
    assert list(stream.members(1)) == [0, 1, 2]


def test_rows_at_one_time_are_cut_in_the_order_of_the_file() -> None:
    stream = build([0] * 6, [1, 1, 1, 1, 2, 2], (0, 0), (0, 1))
    assert [task.train.tolist() for task in stream.tasks] == [[0, 1, 2], [3, 4, 5]]
    # A test row at the border belongs to the later part.
    assert [task.test.tolist() for task in stream.tasks] == [[0], [1]]


@given(
    sizes=st.lists(st.integers(3, 14), min_size=1, max_size=4),
    tasks=st.integers(1, 3),
    seed=st.integers(0, 999),
    validation=st.sampled_from([0.0, 0.2]),
    public=st.sampled_from([0.0, 0.3]),
)
def test_parts_are_consecutive_and_hold_outs_come_last(
    sizes: list[int], tasks: int, seed: int, validation: float, public: float
) -> None:
    generator = np.random.default_rng(seed)
    who = np.repeat(np.arange(len(sizes)) * 3 + 1, np.multiply(sizes, 5))
    when = generator.permutation(len(who))
    order = generator.permutation(len(who))
    who = who[order]
    stream = build(who, when, who, when, tasks=tasks, validation=validation, public=public)
    for client in range(len(sizes)):
        own = who == client * 3 + 1
        before = -1
        for task in stream.tasks:
            train, validated, opened = (
                np.sort(when[rows[own[rows]]])
                for rows in (task.train, task.validation, task.public)
            )
            whole = np.concatenate([train, opened, validated])
            # Training, then public, then validation rows, and all of them after the part before.
            assert np.array_equal(whole, np.sort(whole))
            assert whole[0] > before
            before = whole[-1]
            assert len(validated) == round(validation * len(whole))
            assert len(opened) == round(public * len(whole))
            # The test split has the same times: each row falls into its own part.
            tested = task.test[own[task.test]]
            assert np.array_equal(np.sort(when[tested]), whole)
        parts = [len(np.flatnonzero(own[t.train])) for t in stream.tasks]
        assert validation or public or max(parts) - min(parts) <= 1
        assert sum(parts) <= own.sum()


def test_too_few_rows_for_the_parts_are_refused() -> None:
    with pytest.raises(ConfigError, match="client 4 has 6 examples, too few for 7 parts"):
        build(tasks=7)


def test_missing_columns_are_named() -> None:
    with pytest.raises(ConfigError, match="'clock', the time of a row, is not in data set 'toy'"):
        build(column="clock")
    with pytest.raises(ConfigError, match="'subject' names the clients, but the test split"):
        build(test_who=None)
    with pytest.raises(ConfigError, match="temporal needs tasks, at least 1"):
        build(tasks=0)
