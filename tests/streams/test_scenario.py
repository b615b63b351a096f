"""What all scenarios share, and the two that cut by class: tasks, hold-outs, clients, errors."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.stream import Stream
from fedcl.core.errors import ConfigError
from fedcl.streams._order import Shuffled, Staggered
from fedcl.streams._partition import Dirichlet, Iid, Natural, Quantity, Shards
from fedcl.streams._scenario import Scenario
from fedcl.streams.class_incremental import ClassIncremental
from fedcl.streams.domain_incremental import DomainIncremental
from fedcl.streams.task_incremental import TaskIncremental
from fedcl.streams.temporal import Temporal
from tests.core import toys


def data(rows: int = 200, classes: int = 10, **options: Any) -> Dataset:
    """Returns rows whose class is their number modulo the classes, half as many for testing."""
    return toys.dataset(
        np.arange(rows) % classes, test=np.arange(rows // 2) % classes, shape=(1, 4, 4), **options
    )


def build(scenario: Scenario, dataset: Dataset | None = None, seed: int = 1) -> Stream:
    return scenario.build(dataset or data(), seed, "toy")


def everyone(stream: Stream, stage: int) -> Iterator[list[int]]:
    """Yields the rows of each member's examples, by their number in the data set."""
    for client in stream.members(stage):
        task = stream.task_at(client, stage)
        assert task is not None
        yield stream.rows(client, task).tolist()


# Cutting by class.


@pytest.mark.parametrize("kind", [ClassIncremental, TaskIncremental])
@pytest.mark.parametrize(
    ("tasks", "sizes"), [(5, [2] * 5), (3, [4, 3, 3]), (1, [10]), (0, [1] * 10)]
)
def test_tasks_are_groups_of_classes_in_order(
    kind: Callable[..., Scenario], tasks: int, sizes: list[int]
) -> None:
    stream = build(kind(tasks=tasks, clients=2))
    assert [len(task.classes) for task in stream.tasks] == sizes
    assert [c for task in stream.tasks for c in task.classes] == list(range(10))
    for task in stream.tasks:
        for rows, table in ((task.train, stream.dataset.train), (task.test, stream.dataset.test)):
            assert np.array_equal(rows, np.flatnonzero(np.isin(table.labels, task.classes)))
    assert sum(len(task.train) for task in stream.tasks) == 200
    assert [task.index for task in stream.tasks] == list(range(len(sizes)))


def test_the_two_differ_in_what_is_known_when_predicting() -> None:
    assert build(ClassIncremental()).scenario == "class"
    assert build(TaskIncremental()).scenario == "task"
    assert build(ClassIncremental()).info(2).scenario == "class"


def test_classes_may_be_shuffled() -> None:
    shuffled = build(ClassIncremental(shuffle_classes=True))
    classes = [c for task in shuffled.tasks for c in task.classes]
    assert sorted(classes) == list(range(10))
    assert classes != list(range(10))
    again = build(ClassIncremental(shuffle_classes=True))
    other = build(ClassIncremental(shuffle_classes=True), seed=2)
    assert [t.classes for t in again.tasks] == [t.classes for t in shuffled.tasks]
    assert [t.classes for t in other.tasks] != [t.classes for t in shuffled.tasks]


def test_names_are_for_plots() -> None:
    assert [t.name for t in build(ClassIncremental(tasks=3)).tasks] == [
        "classes 0-3",
        "classes 4-6",
        "classes 7-9",
    ]
    assert build(ClassIncremental(tasks=0)).tasks[4].name == "class 4"


def test_more_tasks_than_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"11 tasks need at least as many classes.*'toy' has 10"):
        build(ClassIncremental(tasks=11))


def test_a_task_without_examples_is_refused() -> None:
    missing = data(classes=5)
    with pytest.raises(ConfigError, match=r"task 3 \(classes 6-7\) has 0 training and 0 test"):
        build(ClassIncremental(), replace(missing, classes=10))
    untested = toys.dataset([0, 1] * 10, test=[0] * 4)
    with pytest.raises(ConfigError, match=r"task 1 \(class 1\) has 10 training and 0 test"):
        build(ClassIncremental(tasks=2, clients=2), untested)


# Holding out.

SCENARIOS = [
    ClassIncremental(),
    TaskIncremental(shuffle_classes=True),
    DomainIncremental(),
    DomainIncremental(transform="rotate"),
    DomainIncremental(transform="column", tasks=0),
    Temporal(),
]


def timed() -> Dataset:
    """Returns data with a domain and a time for every row."""
    rows = np.arange(200)
    columns = {"domain": rows // 10 % 4, "position": rows}
    tests = {key: value[:100] for key, value in columns.items()}
    tests["position"] = tests["position"] * 2
    return data(columns=columns, test_columns=tests)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("validation", "public"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.1), (0.2, 0.3)])
def test_held_out_rows_are_nobodys(scenario: Any, validation: float, public: float) -> None:
    chosen = replace(scenario, clients=4, validation=validation, public=public)
    stream = build(chosen, timed())
    held, open_, trained = set(), set(), set()
    for task in stream.tasks:
        parts = [set(part.tolist()) for part in (task.train, task.validation, task.public)]
        assert sum(map(len, parts)) == len(parts[0] | parts[1] | parts[2])
        trained |= parts[0]
        held |= parts[1]
        open_ |= parts[2]
        owned = [row for share in everyone(stream, task.index) for row in share]
        assert sorted(owned) == sorted(parts[0])
    # Not only within a task: a row held out once is never trained on.
    assert not (held & trained or open_ & trained or held & open_)
    assert held | open_ | trained == set(range(200))
    assert len(held) == pytest.approx(200 * validation, abs=4)
    assert len(open_) == pytest.approx(200 * public, abs=4)


@pytest.mark.parametrize("transform", ["permute", "rotate"])
def test_the_same_rows_are_held_out_of_every_domain(transform: Any) -> None:
    scenario = DomainIncremental(transform=transform, validation=0.1, public=0.2, tasks=4)
    stream = build(scenario)
    for name in ("train", "validation", "public", "test"):
        assert len({tuple(getattr(task, name).tolist()) for task in stream.tasks}) == 1
    assert [len(stream.tasks[0].validation), len(stream.tasks[0].public)] == [20, 40]


def test_held_out_rows_are_functions_of_the_seed_alone() -> None:
    chosen = DomainIncremental(validation=0.2)
    first = build(chosen).tasks[0].validation.tolist()
    other = replace(chosen, clients=7, partition=Dirichlet(0.1), order=Shuffled())
    assert build(other).tasks[0].validation.tolist() == first
    assert build(chosen, seed=2).tasks[0].validation.tolist() != first


def test_a_task_without_validation_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"validation = 0.01 holds out no example of task 0"):
        build(ClassIncremental(tasks=5, clients=2, validation=0.01))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": -1}, "tasks must be at least 1, not -1"),
        ({"clients": -2}, "clients must be at least 1, not -2"),
        ({"validation": 0.5, "public": 0.5}, r"validation \(0.5\) and public \(0.5\) are shares"),
        ({"validation": -0.1}, r"validation \(-0.1\)"),
        ({"public": 1.0}, r"public \(1.0\)"),
        ({"validation": float("nan")}, r"validation \(nan\)"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassIncremental(**options)


# Clients.


def test_twenty_clients_unless_told_otherwise() -> None:
    assert build(ClassIncremental(tasks=2)).clients == 20
    assert build(ClassIncremental(tasks=2, clients=3)).clients == 3


@given(
    tasks=st.integers(1, 5),
    clients=st.integers(1, 12),
    partition=st.sampled_from([Iid(), Dirichlet(0.05), Shards(2), Quantity(2.0)]),
    seed=st.integers(0, 1000),
)
def test_nobody_is_without_data_in_any_task(
    tasks: int, clients: int, partition: Any, seed: int
) -> None:
    scenario = ClassIncremental(tasks=tasks, clients=clients, partition=partition)
    stream = build(scenario, seed=seed)
    for stage in range(stream.stages):
        assert list(stream.members(stage)) == list(range(clients))
        assert min(map(len, everyone(stream, stage))) >= 1


def test_more_clients_than_examples_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[stream.partition\] 41 clients need at least 41"):
        build(ClassIncremental(tasks=5, clients=41))


def natural(owner: list[int], **options: Any) -> Stream:
    labels = np.arange(len(owner)) % 2
    columns = {"subject": owner, "domain": [0] * 4 + [1] * (len(owner) - 4)}
    dataset = toys.dataset(labels, columns=columns, test_columns=columns, shape=(1, 4, 4))
    scenario = DomainIncremental(transform="column", tasks=0, partition=Natural(), **options)
    return scenario.build(dataset, 1, "toy")


def test_natural_clients_are_counted_and_may_miss_tasks() -> None:
    stream = natural([7, 7, 3, 3, 7, 9, 9, 9])
    assert stream.clients == 3
    assert [list(stream.members(stage)) for stage in range(2)] == [[0, 1], [1, 2]]
    assert natural([7, 7, 3, 3, 7, 9, 9, 9], clients=3).clients == 3
    with pytest.raises(
        ConfigError, match="'subject' names 3 clients, but clients = 4: set it to 3"
    ):
        natural([7, 7, 3, 3, 7, 9, 9, 9], clients=4)


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"column 'writer' is not in data set 'toy'.*columns: none"
    ):
        build(ClassIncremental(partition=Natural("writer")))


# Stages at which nobody has data.


def test_a_stage_in_the_middle_without_anybody_is_refused() -> None:
    everyone_late = Staggered(delay=2, late=1.0)
    with pytest.raises(ConfigError, match=r"no client has data at stage 0: change stream\.order"):
        build(ClassIncremental(tasks=2, clients=3, order=everyone_late))


def test_empty_stages_at_the_end_are_left_out() -> None:
    stream = build(ClassIncremental(tasks=2, clients=3, order=Staggered(delay=9, late=0.0)))
    assert stream.stages == 2


# Fixed shares.


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(0.1), Shards(2)], ids=str)
def test_fixed_shares_of_permuted_data_are_the_same_rows_in_every_task(partition: Any) -> None:
    scenario = DomainIncremental(tasks=3, clients=4, partition=partition, fixed_shares=True)
    stream = build(scenario)
    shares = [list(everyone(stream, stage)) for stage in range(3)]
    assert shares[0] == shares[1] == shares[2]
    anew = build(replace(scenario, fixed_shares=False))
    again = [list(everyone(anew, stage)) for stage in range(3)]
    assert again[0] != again[1] != again[2]


def test_streams_repeat_and_differ_by_seed() -> None:
    scenario = ClassIncremental(clients=4, partition=Dirichlet(0.3))
    first, again, other = build(scenario), build(scenario), build(scenario, seed=2)
    for stage in range(5):
        assert list(everyone(first, stage)) == list(everyone(again, stage))
        assert list(everyone(first, stage)) != list(everyone(other, stage))
