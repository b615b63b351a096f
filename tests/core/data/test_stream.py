"""A built stream: shares, members, histories, masks, held-out rows, and what it keeps in mind."""

import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcl.core.data.dataset import Dataset
from fedcl.core.data.scenario import Order, Partition, Task
from fedcl.core.data.stream import Stream
from fedcl.core.data.table import IntArray
from fedcl.core.population import sample
from fedcl.core.task import ScenarioKind
from fedcl.streams._order import Blurred, PowerLaw, Shared, Shuffled, Staggered
from fedcl.streams._partition import Dirichlet, Iid, Natural, Overlapping, Shards
from tests.core import toys


@dataclass(frozen=True)
class Shift:
    """Adds a number to every input."""

    by: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x + np.float32(self.by)


def stream(
    kind: ScenarioKind = "class",
    *,
    order: Order | None = None,
    partition: Partition | None = None,
    clients: int = 4,
    tasks: int = 3,
    public: int = 0,
    seed: int = 3,
    **options: Any,
) -> Stream:
    """Returns tasks of two classes each (0 and 1, 2 and 3, ...), 20 rows a class, rows in turn."""
    classes = 2 * tasks
    labels = np.arange(20 * classes) % classes
    data = toys.dataset(labels)
    made = []
    for t in range(tasks):
        rows = np.flatnonzero(labels // 2 == t)
        made.append(
            Task(
                t,
                f"task {t}",
                (2 * t, 2 * t + 1),
                train=rows[6:],
                test=rows,
                validation=rows[:3],
                public=rows[3 : 3 + public],
                transform=Shift(0.5) if t == 1 else None,
            )
        )
    return Stream(
        "toy",
        kind,
        data,
        tuple(made),
        clients,
        partition or Iid(),
        order or Shared(),
        seed,
        **options,
    )


@dataclass(frozen=True)
class Table:
    """An order that is written down: the task of each client at each stage; it starts anew."""

    shared: ClassVar[bool] = False
    gaps: ClassVar[bool] = True
    blur: ClassVar[float] = 0.0

    rows: tuple[tuple[int | None, ...], ...]

    def stages(self, tasks: int) -> int:
        return len(self.rows[0])

    def paths(self, clients: IntArray, tasks: int, seed: int) -> IntArray:
        return np.array(
            [[-1 if task is None else task for task in self.rows[c]] for c in clients.tolist()]
        )


OWN = Table(((0, 1, 2), (1, None, 1), (None, None, 0), (2, 1, None)))


# Shares.


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(alpha=0.1)], ids=str)
def test_shares_are_a_division_of_the_tasks_rows(partition: Any) -> None:
    own = stream(partition=partition)
    for task in own.tasks:
        held = [own.rows(client, task.index) for client in range(4)]
        assert np.array_equal(np.sort(np.concatenate(held)), task.train)
        assert own.sizes(task.index).tolist() == [len(rows) for rows in held]
        for client in range(4):
            examples = own.train(client, task.index)
            shift = 0.5 if task.index == 1 else 0.0
            found = (examples.x[:, 0] - shift).int().tolist()
            assert found == held[client].tolist()
            assert examples.y.tolist() == own.dataset.train.labels[found].tolist()
            assert (examples.x.dtype, examples.y.dtype) == (torch.float32, torch.int64)
            counts = np.bincount(examples.y.numpy(), minlength=6)
            assert own.label_counts(client, task.index).tolist() == counts.tolist()


def positions(own: Stream, task: int) -> list[int]:
    """Returns where in the task's rows each share's rows stand."""
    rows = np.concatenate([own.rows(client, task) for client in range(own.clients)])
    found: list[int] = np.searchsorted(own.tasks[task].train, rows).tolist()
    return found


def test_each_task_is_divided_anew_unless_shares_are_fixed() -> None:
    anew, fixed = stream(), stream(fixed=True)
    assert positions(anew, 0) != positions(anew, 1)
    assert positions(fixed, 0) == positions(fixed, 1) == positions(fixed, 2)
    assert positions(stream(seed=4, fixed=True), 0) != positions(fixed, 0)


def test_shares_are_functions_of_the_seed() -> None:
    assert positions(stream(), 2) == positions(stream(), 2)
    assert positions(stream(seed=3), 2) != positions(stream(seed=4), 2)


# Who is there when.


def test_with_a_shared_order_everyone_is_a_member() -> None:
    own = stream()
    assert own.stages == 3
    for stage in range(3):
        assert list(own.members(stage)) == [0, 1, 2, 3]
        assert own.present(stage) == (stage,)
        assert own.history(2, stage) == tuple(range(stage + 1))
        assert own.seen_classes(stage) == tuple(range(2 * stage + 2))


def test_members_of_a_large_population_are_a_range() -> None:
    data = toys.dataset(np.zeros(5000, dtype=np.int64))
    rows = toys.ints(range(5000))
    task = Task(0, "all", (0,), rows, rows[:1], rows[:0], rows[:0])
    own = Stream("toy", "domain", data, (task,), 5000, Iid(), Shared(), 0)
    assert own.members(0) == range(5000)


def test_with_orders_of_their_own_clients_come_and_go() -> None:
    own = stream(order=OWN)
    assert [list(own.members(stage)) for stage in range(3)] == [[0, 1, 3], [0, 3], [0, 1, 2]]
    assert [own.present(stage) for stage in range(3)] == [(0, 1, 2), (1,), (0, 1, 2)]
    assert [own.history(client, 2) for client in range(4)] == [(0, 1, 2), (1, 1), (0,), (2, 1)]
    assert own.history(2, 1) == ()
    assert own.task_at(1, 1) is None
    for ask in (own.train, own.client_task):
        with pytest.raises(ValueError, match="client 1 has no data at stage 1"):
            ask(1, 1)


def test_classes_are_seen_once_anybody_has_met_them() -> None:
    late = Table(((0, 0, 1), (0, None, 0)))
    own = stream(order=late, clients=2)
    assert [own.seen_classes(stage) for stage in range(3)] == [(0, 1), (0, 1), (0, 1, 2, 3)]
    assert [own.present(stage) for stage in range(3)] == [(0,), (0,), (0, 1)]


def test_stages_at_whose_end_nobody_has_data_are_left_out() -> None:
    assert stream(order=Table(((0, 1, None, None), (None, 0, None, None))), clients=2).stages == 2
    assert stream(order=Staggered(delay=5, late=0.0)).stages == 3
    late = stream(order=Staggered(delay=4, late=0.5))
    assert None in [late.task_at(client, 0) for client in range(4)]
    assert late.members(late.stages - 1)
    assert all(2 in late.history(client, late.stages - 1) for client in range(4))


@given(st.integers(0, 10**6), st.sampled_from(["shuffled", "staggered"]), st.integers(1, 6))
def test_members_present_and_history_agree(seed: int, name: str, clients: int) -> None:
    order: Order = Shuffled() if name == "shuffled" else Staggered(2, 0.5)
    own = stream(order=order, seed=seed, clients=clients)
    for stage in range(own.stages):
        at = {client: own.task_at(client, stage) for client in range(clients)}
        assert list(own.members(stage)) == [c for c, task in at.items() if task is not None]
        assert set(own.present(stage)) == {task for task in at.values() if task is not None}
        assert own.meets(stage) == bool(own.members(stage))
        for client, task in at.items():
            assert (own.history(client, stage)[-1:] == (task,)) or task is None
    for client in range(clients):
        assert sorted(own.history(client, own.stages - 1)) == [0, 1, 2]


# Masks.


def mask(*classes: int) -> list[bool]:
    return [c in classes for c in range(6)]


@pytest.mark.parametrize(
    ("kind", "head"),
    [("task", mask(2, 3)), ("class", mask(0, 1, 2, 3)), ("domain", [True] * 6)],
)
def test_masks_of_a_shared_stage(kind: ScenarioKind, head: list[bool]) -> None:
    task = stream(kind).client_task(0, 1)
    assert (task.index.item(), task.task.item()) == (1, 1)
    assert (task.index.dtype, task.index.shape) == (torch.int64, ())
    assert task.present.tolist() == mask(2, 3)
    assert task.seen.tolist() == mask(0, 1, 2, 3)
    assert task.head.tolist() == head


@pytest.mark.parametrize(
    ("kind", "head"),
    [("task", mask(2, 3)), ("class", [True] * 6), ("domain", [True] * 6)],
)
def test_masks_of_a_client_with_an_order_of_its_own(kind: ScenarioKind, head: list[bool]) -> None:
    own = stream(kind, order=OWN)
    # Client 3 has met the tasks 2 and 1; the federation has met all of them at once.
    task = own.client_task(3, 1)
    assert (task.index.item(), task.task.item()) == (1, 1)
    assert task.present.tolist() == mask(2, 3)
    assert task.seen.tolist() == mask(2, 3, 4, 5)
    assert task.head.tolist() == head
    # A stage without data does not count: this is client 1's second one.
    assert own.client_task(1, 2).index.item() == 1


def test_what_a_method_may_know() -> None:
    info = stream().info(1)
    assert (info.index, info.classes, info.seen) == (1, (2, 3), (0, 1, 2, 3))
    assert (info.scenario, info.border, info.public) == ("class", True, None)
    own = stream(order=OWN).info(1)
    assert (own.classes, own.seen) == ((2, 3), (0, 1, 2, 3, 4, 5))


def test_public_examples_are_those_of_the_tasks_met_so_far() -> None:
    own = stream(public=2)
    first, second = own.info(0).public, own.info(1).public
    assert first is not None
    assert second is not None
    assert first.x[:, 0].tolist() == [float(row) for row in own.tasks[0].public]
    # Those of task 1 are shifted, as all of its inputs.
    shifted = [row + 0.5 for row in own.tasks[1].public.tolist()]
    assert second.x[:, 0].tolist() == [*first.x[:, 0].tolist(), *shifted]
    assert second.y.tolist() == [
        *own.dataset.train.labels[own.tasks[0].public],
        *own.dataset.train.labels[own.tasks[1].public],
    ]


# Held-out rows and their owners.


def test_held_out_rows_come_from_their_split_and_are_transformed() -> None:
    own = stream()
    test, validation = own.held_out(1, "test"), own.held_out(1, "validation")
    assert test.x[:, 0].tolist() == [toys.TEST_FROM + row + 0.5 for row in own.tasks[1].test]
    assert validation.x[:, 0].tolist() == [row + 0.5 for row in own.tasks[1].validation]
    assert toys.rows_of(own.held_out(2, "validation")) == own.tasks[2].validation.tolist()
    assert test.y.tolist() == own.dataset.test.labels[own.tasks[1].test].tolist()


def test_nobody_owns_held_out_rows_of_an_artificial_partition() -> None:
    assert stream().owners(0, "test") is None


def natural(test_owner: list[int] | None) -> Stream:
    """Returns two tasks of six rows; people 10, 30 and 70, of whom 30 misses the first task."""
    owner = [10, 10, 70, 70, 10, 70, 30, 10, 70, 30, 30, 10]
    data: Dataset = toys.dataset(
        [0, 1] * 6,
        test=[0] * len(test_owner or [1, 2]),
        columns={"who": owner},
        test_columns=None if test_owner is None else {"who": test_owner},
    )
    rows: IntArray = toys.ints(range(12))
    tests = toys.ints(range(len(test_owner or [1, 2])))
    tasks = tuple(
        Task(t, str(t), (0, 1), rows[6 * t + 1 : 6 * t + 6], tests, rows[6 * t :][:1], rows[:0])
        for t in range(2)
    )
    return Stream("toy", "domain", data, tasks, 3, Natural("who"), Shared(), 0, natural="who")


def test_natural_clients_go_by_the_rank_of_their_name() -> None:
    own = natural([30, 70])
    assert own.natural_ids().tolist() == [10, 30, 70]
    assert [list(own.members(stage)) for stage in range(2)] == [[0, 2], [0, 1, 2]]
    assert [toys.rows_of(own.train(client, 1)) for client in range(3)] == [[7, 11], [9, 10], [8]]
    assert own.history(1, 1) == (1,)
    assert own.client_task(1, 1).index.item() == 0
    assert own.client_task(1, 1).task.item() == 1


def test_natural_clients_own_their_test_rows() -> None:
    # 5, 20 and 90 are nobody who trains.
    own = natural([70, 10, 20, 30, 90, 5, 10])
    owners = own.owners(0, "test")
    assert owners is not None
    assert owners.tolist() == [2, 0, -1, 1, -1, -1, 0]
    validation = own.owners(1, "validation")
    assert validation is not None
    assert validation.tolist() == [1]
    assert natural(None).owners(0, "test") is None


# What it keeps in mind.


def test_pickling_drops_what_was_worked_out_and_gives_the_same_shares() -> None:
    own = stream("class", order=Shuffled(), partition=Dirichlet(0.1))
    shares = [[own.rows(client, task) for client in range(4)] for task in range(3)]
    kept = own.shares(0)
    info = own.info(1)
    fresh = len(pickle.dumps(stream("class", order=Shuffled(), partition=Dirichlet(0.1))))
    data = pickle.dumps(own)
    assert abs(len(data) - fresh) < 32
    again: Stream = pickle.loads(data)
    assert again._memo == {}
    for task, held in enumerate(shares):
        for client, rows in enumerate(held):
            assert np.array_equal(again.rows(client, task), rows)
    assert again.info(1) == info
    # The one that was pickled has forgotten nothing.
    assert own.shares(0) is kept


def test_shares_are_worked_out_once() -> None:
    own = stream()
    assert own.shares(1) is own.shares(1)
    assert own.members(0) is own.members(0)


def test_examples_are_fresh_each_time() -> None:
    own = stream()
    own.train(0, 0).x.zero_()
    own.train(0, 0).y.zero_()
    assert own.train(0, 0).x.abs().sum() > 0
    assert set(own.train(0, 0).y.tolist()) == {0, 1}


# Many clients at once.


@pytest.mark.parametrize("order", [Shared(), OWN], ids=["shared", "own"])
@pytest.mark.parametrize("clients", [(0,), (3, 0), (0, 3, 0)])
def test_gathered_examples_are_those_of_each_client_in_turn(
    order: Order, clients: tuple[int, ...]
) -> None:
    own = stream(order=order, partition=Dirichlet(0.3))
    for stage in range(2):
        rows, counts = own.gather(clients, stage)
        together = rows.take()
        alone = [own.train(client, stage) for client in clients]
        assert counts == tuple(map(len, alone))
        assert torch.equal(together.x, torch.cat([one.x for one in alone]))
        assert torch.equal(together.y, torch.cat([one.y for one in alone]))
        assert (together.x.dtype, together.y.dtype) == (torch.float32, torch.int64)
        places = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        assert torch.equal(rows.take(places.numpy()).x, together.x[places])
        assert torch.equal(rows.take(places.numpy()).y, together.y[places])
    with pytest.raises(ValueError, match="client 1 has no data at stage 1"):
        stream(order=OWN).gather((0, 1), 1)


def test_clients_of_the_same_history_share_their_masks() -> None:
    own = stream()
    assert own.client_task(0, 1) is own.client_task(3, 1)
    assert own.client_task(0, 1) is not own.client_task(0, 2)
    apart = stream(order=Table(((0, 1), (0, 1), (1, 0), (0, 0))))
    assert apart.client_task(0, 1) is apart.client_task(1, 1)
    assert len({id(apart.client_task(client, 1)) for client in range(4)}) == 3


# Blurred borders.


def blurred(kind: ScenarioKind = "class", **options: Any) -> Stream:
    return stream(kind, order=Blurred(0.25), clients=2, **options)


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(0.3), Shards(2)], ids=str)
def test_blurred_examples_are_used_once_and_mostly_at_home(partition: Any) -> None:
    own = blurred(partition=partition)
    expected = [[0.75, 0.25, 0.0], [0.25, 0.5, 0.25], [0.0, 0.25, 0.75]]
    for client in range(2):
        used = [own.train(client, stage) for stage in range(3)]
        # Inputs are row numbers, and those of task 1 half a row more.
        rows = [examples.x[:, 0] for examples in used]
        shares = [own.rows(client, task) + (0.5 if task == 1 else 0.0) for task in range(3)]
        assert sorted(torch.cat(rows).tolist()) == sorted(np.concatenate(shares).tolist())
        for stage, found in enumerate(rows):
            of = [np.isin(found, share).sum() for share in shares]
            assert all(
                abs(number - share * len(shares[task])) <= 2
                for task, (number, share) in enumerate(zip(of, expected[stage], strict=True))
            )
            assert used[stage].y.tolist() == own.dataset.train.labels[found.int()].tolist()


def test_blurred_stages_are_gathered_in_one_block() -> None:
    own = blurred()
    rows, counts = own.gather((1, 0), 1)
    together = rows.take()
    alone = [own.train(client, 1) for client in (1, 0)]
    assert counts == tuple(map(len, alone))
    assert torch.equal(together.x, torch.cat([one.x for one in alone]))
    assert torch.equal(together.y, torch.cat([one.y for one in alone]))


@pytest.mark.parametrize(
    ("kind", "head"),
    [("task", (0, 1, 2, 3)), ("class", (0, 1, 2, 3)), ("domain", tuple(range(6)))],
)
def test_blurred_masks_cover_the_neighbours(kind: ScenarioKind, head: tuple[int, ...]) -> None:
    own = blurred(kind)
    first, second = own.client_task(0, 0), own.client_task(0, 1)
    assert first.present.tolist() == first.seen.tolist() == mask(0, 1, 2, 3)
    assert first.head.tolist() == mask(*head)
    assert second.present.tolist() == second.seen.tolist() == mask(*range(6))
    assert (second.index.item(), second.task.item()) == (1, 1)
    assert own.info(0).classes == own.seen_classes(0) == (0, 1, 2, 3)
    # A task is met at its own stage, and predicting on it with its task known is as ever.
    assert [own.present(stage) for stage in range(3)] == [(0,), (1,), (2,)]
    assert own.history(0, 1) == (0, 1)
    if kind == "task":
        assert own.head(0, 0).tolist() == mask(0, 1)


def test_who_misses_a_stage_keeps_what_would_move_there() -> None:
    owner = [10] * 40 + [20] * 40 + [10] * 40
    data = toys.dataset([0] * 120, columns={"who": owner})
    rows = toys.ints(range(120))
    tasks = tuple(
        Task(t, str(t), (0,), rows[40 * t : 40 * t + 40], rows[:1], rows[:0], rows[:0])
        for t in range(3)
    )
    own = Stream("toy", "domain", data, tasks, 2, Natural("who"), Blurred(0.2), 0, natural="who")
    assert [list(own.members(stage)) for stage in range(3)] == [[0], [1], [0]]
    assert [toys.rows_of(own.train(0, stage)) for stage in (0, 2)] == [
        list(range(40)),
        list(range(80, 120)),
    ]
    assert toys.rows_of(own.train(1, 1)) == list(range(40, 80))


# A million clients.


@pytest.mark.parametrize("order", [Shared(), Shuffled(), Staggered(2, 0.5), PowerLaw(length=6)])
def test_a_million_clients_cost_what_their_cohort_costs(order: Order) -> None:
    million = stream(order=order, clients=10**6, partition=Overlapping(5))
    few = stream(order=order, clients=20, partition=Overlapping(5))
    members = million.members(2)
    assert 10**5 < len(members) <= 10**6
    chosen = sample(members, 8, "fixed", seed=1, turn=0)
    assert all(type(client) is int for client in chosen)
    rows, counts = million.gather(chosen, 2)
    examples = rows.take()
    assert (counts, len(examples)) == ((5,) * 8, 40)
    assert len(pickle.dumps(million)) < 20_000
    # Who else is registered changes nothing.
    for client in few.members(2)[:3]:
        assert toys.rows_of(few.train(client, 2)) == toys.rows_of(million.train(client, 2))
        assert few.history(client, 2) == million.history(client, 2)


def test_held_out_examples_are_kept_within_bounds() -> None:
    own = stream()
    first = own.held_out(1, "test")
    assert own.held_out(1, "test") is first
    assert own.held_out(1, "validation") is not first
    own._cache.limit = first.nbytes
    own.held_out(2, "test")
    assert own.held_out(1, "test") is not first
    assert torch.equal(own.held_out(1, "test").x, first.x)
