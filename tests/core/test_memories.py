"""Clients' memories: a step's changes stand or go as a whole, and RAM holds no more than it may."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcl.core import wire
from fedcl.core.client import Kept
from fedcl.core.errors import ResumeError
from fedcl.core.memories import Memories
from fedcl.core.task import Examples
from fedcl.core.vocabulary import vocabulary
from fedcl.store import scratch
from tests.tiny import same

STEPS = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 9)), max_size=6),
        st.lists(st.integers(0, 6), max_size=3),
        st.sampled_from(["keep", "drop", "keep and write"]),
    ),
    max_size=8,
)


def value(number: int | None) -> Any:
    """Returns a memory of a size of its own: 2 kB and more."""
    return None if number is None else {"rows": torch.full((number, 100), float(number))}


def test_what_a_step_changes_stands_or_goes_as_a_whole() -> None:
    memories = Memories()
    memories.save({1: "a", 2: "b"})
    assert memories.load([1, 2, 3]) == {1: "a", 2: "b"}
    memories.drop()
    assert memories.load([1, 2, 3]) == {}
    memories.save({1: "a"})
    memories.keep()
    memories.save({1: "later", 3: None})
    assert memories.load([1]) == {1: "later"}
    memories.drop()
    assert memories.load([1]) == {1: "a"}


def test_none_forgets() -> None:
    memories = Memories()
    memories.save({1: "a", 2: "b"})
    memories.keep()
    memories.save({1: None, 9: None})
    assert memories.load([1, 2, 9]) == {2: "b"}
    assert memories.look(1) is None
    memories.keep()
    assert memories.load([1, 2, 9]) == {2: "b"}


@given(STEPS, st.sampled_from([0, 3000, 6000, 9000, 10**6]))
def test_a_bound_changes_nothing_that_is_read(steps: Any, cache: int) -> None:
    """The slow way is a plain dictionary, copied before each step."""
    memories, expected = Memories(scratch(), cache=cache), dict[int, Any]()
    for changes, looked, end in steps:
        before = dict(expected)
        memories.load(looked)
        for id, number in changes.items():
            memories.save({id: value(number)})
            expected[id] = value(number)
            memories.load(looked)
        if end == "drop":
            memories.drop()
            expected = before
        else:
            memories.keep()
        if end == "keep and write":
            memories.write()
        found = {id: kept for id, kept in expected.items() if kept is not None}
        assert same(memories.load(sorted(found)), dict(sorted(found.items())))
        assert set(memories.load(range(7))) == set(found)


def test_ram_holds_no_more_than_it_may() -> None:
    shelf, words = scratch(), vocabulary()
    memories = Memories(shelf, words, cache=50_000)
    rows = Examples(torch.rand(20, 100), torch.arange(20), {"stage": torch.zeros(20)})
    for id in range(20):
        memories.save({id: rows})
    # 8,000 + 160 + 80 bytes of values, and about a kilobyte around each tensor and the whole.
    held = [id for id in range(20) if shelf.read(id) is None]
    assert held == [16, 17, 18, 19], "the first ones made room"
    memories.keep()
    assert all(same(memories.load([id]), {id: rows}) for id in range(20))
    memories.write()
    stored = [shelf.read(id) for id in range(20)]
    assert stored == [wire.dumps(rows, words)] * 20
    assert [shelf.read(id) for id in (20, 21)] == [None, None]


def test_what_is_used_stays_in_ram() -> None:
    shelf = scratch()
    memories = Memories(shelf, cache=3 * 3000)
    memories.save({1: value(2), 2: value(2), 3: value(2)})
    memories.keep()
    first = memories.load([1])[1]
    memories.save({4: value(2)})
    assert memories.load([1])[1] is first
    assert [shelf.read(id) is None for id in (1, 2, 3, 4)] == [True, False, True, True]


def test_nothing_is_read_before_it_is_asked_for() -> None:
    shelf = scratch()
    shelf.write(1, b"no memory")
    shelf.write(2, wire.dumps("two", vocabulary()))
    memories = Memories(shelf)
    assert memories.load([2]) == {2: "two"}
    with pytest.raises(ResumeError, match="the memory of client 1 is damaged"):
        memories.load([1])


def test_a_memory_that_lies_with_its_client_is_fetched_to_be_looked_at() -> None:
    memories = Memories(scratch(), vocabulary(), cache=0)
    kept = Kept((0, 1, 0, 0))
    memories.save({3: kept})
    memories.recall = lambda id, base: (id, base.moment)
    assert memories.look(3) == (3, (0, 1, 0, 0))
    assert memories.look(4) is None
    assert memories.load([3]) == {3: kept}
