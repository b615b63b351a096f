"""A client's diary: decisions are made once and outlive everything but their file."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedcl.core.data.arrival import Arrival
from fedcl.core.data.diary import FILE, Diary, decided_at, read_diary
from fedcl.core.data.table import ArrayTable
from fedcl.core.errors import ConfigError, ResumeError


@dataclass
class Shelf:
    """Arrivals by name, each a stamp; those named in `bad` cannot be used."""

    stamps: dict[str, str] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    planned: str | None = None
    here: bool = True

    def missing(self, clients: int) -> list[int]:
        return []

    def names(self, client: int) -> list[str]:
        return sorted(self.stamps)

    def stamp(self, client: int, name: str) -> str:
        return self.stamps[name]

    def load(self, client: int, name: str) -> Arrival:
        if name in self.bad:
            raise ConfigError(f"{name} is damaged")
        labels = np.array([2, 0, 2])
        table = ArrayTable(np.zeros((3, 1)), labels)
        return Arrival(name, f"digest of {name}", table, table)

    def plan(self, client: int) -> str | None:
        return self.planned


def taken(folder: Path, shelf: Shelf, *places: tuple[int, int]) -> list[list[str]]:
    return [[entry.name for entry in decided_at(folder, shelf, 0, place)] for place in places]


def test_arrivals_are_taken_one_after_the_other_in_the_order_of_their_names(tmp_path: Path) -> None:
    shelf = Shelf({"c": "1", "a": "1", "b": "1"})
    assert taken(tmp_path, shelf, (0, 0), (0, 0), (1, 0)) == [["a"], ["a"], ["a", "b"]]
    entry = read_diary(tmp_path, shelf, 0).entries[1]
    assert (entry.place, entry.classes, entry.rows) == ((1, 0), (0, 2), 3)
    assert entry.digest == "digest of b"


def test_a_place_that_was_decided_stays_as_it_was(tmp_path: Path) -> None:
    shelf = Shelf({"b": "1"})
    places = ((0, 0), (0, 1), (0, 2))
    assert taken(tmp_path, shelf, *places) == [["b"]] * 3  # with nothing new it goes on
    shelf.stamps |= {"a": "1", "c": "1"}
    assert taken(tmp_path, shelf, (0, 3), (1, 0)) == [["b", "a"], ["b", "a", "c"]]
    # The server rolled back: it asks again for what was decided before these came.
    assert taken(tmp_path, shelf, *places, (0, 3)) == [["b"]] * 3 + [["b", "a"]]
    assert taken(tmp_path, shelf, (1, 0)) == [["b", "a", "c"]]


def test_a_client_without_data_has_decided_that_too(tmp_path: Path) -> None:
    shelf = Shelf()
    assert taken(tmp_path, shelf, (0, 0)) == [[]]
    shelf.stamps["a"] = "1"
    assert taken(tmp_path, shelf, (0, 0), (0, 1), (0, 0)) == [[], ["a"], []]


def test_places_that_were_left_out_take_nothing(tmp_path: Path) -> None:
    shelf = Shelf({"a": "1", "b": "1", "c": "1"})
    assert taken(tmp_path, shelf, (0, 0), (4, 0), (2, 0)) == [["a"], ["a", "b"], ["a"]]


def test_what_cannot_be_used_is_named_and_skipped_until_it_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf({"a": "1", "b": "1"}, bad={"a"})
    with caplog.at_level(logging.WARNING):
        assert taken(tmp_path, shelf, (0, 0), (1, 0)) == [["b"], ["b"]]
    assert caplog.messages == ["client 0 skips arrival 'a': a is damaged"]
    assert read_diary(tmp_path, shelf, 0).refused == (("a", "1", "a is damaged"),)
    shelf.bad.clear()
    assert taken(tmp_path, shelf, (2, 0)) == [["b"]]  # nothing tells that it is another one
    shelf.stamps["a"] = "2"
    assert taken(tmp_path, shelf, (3, 0)) == [["b", "a"]]


def test_fresh_is_what_was_neither_taken_nor_refused(tmp_path: Path) -> None:
    shelf = Shelf({"a": "1", "b": "1", "c": "1"}, bad={"a"})
    taken(tmp_path, shelf, (0, 0))
    assert read_diary(tmp_path, shelf, 0).fresh(shelf, 0) == ["c"]
    shelf.stamps["a"] = "2"
    assert read_diary(tmp_path, shelf, 0).fresh(shelf, 0) == ["a", "c"]


def test_a_diary_among_the_data_is_repeated(tmp_path: Path) -> None:
    shelf = Shelf({"a": "1"})
    taken(tmp_path / "run", shelf, (0, 0), (0, 1))
    shelf.stamps["b"] = "1"
    first = taken(tmp_path / "run", shelf, (0, 2), (1, 0))
    again = Shelf({"a": "1", "b": "1"}, planned=(tmp_path / "run" / FILE).read_text())
    assert taken(tmp_path / "again", again, (0, 0), (0, 1)) == [["a"], ["a"]]
    assert taken(tmp_path / "again", again, (0, 2), (1, 0)) == first
    again.stamps["c"] = "1"
    assert taken(tmp_path / "again", again, (1, 1)) == [["a", "b", "c"]]  # then it is its own


@pytest.mark.parametrize("text", ["", "[]", '{"decided": [0, 0]}', '{"decided": 1, "entries": []}'])
def test_a_damaged_diary_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ResumeError, match=r"diary of arrivals .*arrivals.json is damaged"):
        taken(tmp_path, Shelf({"a": "1"}), (0, 0))


def test_a_diary_reads_as_it_was_written(tmp_path: Path) -> None:
    shelf = Shelf({"a": "1", "b": "1"}, bad={"a"})
    taken(tmp_path, shelf, (0, 0))
    found = read_diary(tmp_path, shelf, 0)
    assert Diary.of(found.text(), "here") == found
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
