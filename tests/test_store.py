"""The checkpoint: a commit is there as a whole or not at all, and refuses what does not fit."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedcl.core.errors import ResumeError
from fedcl.record import COSTS, EVALUATIONS, Row
from fedcl.store import Store, check_same, scratch

META: dict[str, Any] = {
    "version": "1.0",
    "config": {"seed": 0, "training": {"rounds": 2}},
    "stage": 0,
    "round": 1,
    "rounds": 1,
    "seconds": 0.5,
    "events": [],
}
EVALUATION: Row = dict.fromkeys(EVALUATIONS) | {"round": 1, "value": 0.1, "model": "global"}
COST: Row = dict.fromkeys(COSTS) | {"round": 1, "bytes": 2**40, "direction": "up"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new checkpoint."""
    made = Store(tmp_path / "run" / "checkpoint")
    yield made
    made.close()


def reopened(store: Store, tmp_path: Path) -> Store:
    store.close()
    return Store(tmp_path / "run" / "checkpoint")


def written(store: Store, table: str) -> list[Row]:
    return list(store.rows(table, {"evaluations": EVALUATIONS, "costs": COSTS}[table]))


# --- What is committed. ---


def test_a_new_checkpoint_is_empty(store: Store) -> None:
    assert store.saved() is None and store.meta("version") is None
    assert written(store, "evaluations") == [] and store.memories.read(0) is None


def test_a_commit_is_read_as_it_was_written(store: Store, tmp_path: Path) -> None:
    store.memories.write(3, b"three")
    store.commit(META, b"state", [EVALUATION], [COST])
    again = reopened(store, tmp_path)
    saved = again.saved()
    assert saved is not None
    assert (saved.stage, saved.round, saved.rounds, saved.seconds) == (0, 1, 1, 0.5)
    assert saved.state == b"state" and saved.events == []
    assert again.memories.read(3) == b"three" and again.memories.read(1) is None
    assert written(again, "evaluations") == [EVALUATION]
    assert written(again, "costs") == [COST]
    again.close()


def test_a_commit_replaces_the_state_forgets_memories_and_adds_rows(store: Store) -> None:
    store.memories.write(1, b"one")
    store.memories.write(2, b"two")
    store.commit(META, b"old", [EVALUATION], [])
    store.memories.write(1, None)
    store.memories.write(2, b"2")
    store.commit({**META, "round": 2}, b"new", [{**EVALUATION, "round": 2}], [])
    saved = store.saved()
    assert saved is not None
    assert saved.state == b"new" and saved.round == 2
    assert [store.memories.read(client) for client in (1, 2)] == [None, b"2"]
    assert [row["round"] for row in written(store, "evaluations")] == [1, 2]


def test_a_commit_that_fails_changes_nothing(store: Store) -> None:
    store.memories.write(1, b"one")
    store.commit(META, b"old", [EVALUATION], [])
    store.memories.write(1, None)
    with pytest.raises(KeyError):
        store.commit({**META, "round": 9}, b"new", [EVALUATION, {"round": 3}], [])
    saved = store.saved()
    assert saved is not None
    assert saved.state == b"old" and saved.round == 1 and store.memories.read(1) == b"one"
    assert written(store, "evaluations") == [EVALUATION]
    store.commit({**META, "round": 2}, b"new", [], [])


def test_memories_are_a_part_of_the_next_commit(store: Store, tmp_path: Path) -> None:
    """A run reads what it wrote; others, and whoever comes after a crash, what was committed."""
    store.memories.write(1, b"one")
    store.commit(META, b"", [], [])
    store.memories.write(1, b"new")
    store.memories.write(2, b"two")
    assert [store.memories.read(client) for client in (1, 2)] == [b"new", b"two"]
    reader = Store(tmp_path / "run" / "checkpoint")
    assert [reader.memories.read(client) for client in (1, 2)] == [b"one", None]
    reader.close()
    again = reopened(store, tmp_path)
    assert [again.memories.read(client) for client in (1, 2)] == [b"one", None]
    again.close()


@pytest.mark.parametrize("committed", [True, False])
def test_what_was_marked_can_be_undone(store: Store, committed: bool) -> None:
    for table in (store.memories, scratch()):
        table.write(1, b"one")
        if committed and table is store.memories:
            store.commit(META, b"", [], [])
        table.mark()
        table.write(1, b"1")
        table.write(2, b"2")
        table.undo()
        assert [table.read(client) for client in (1, 2)] == [b"one", None]
        table.mark()
        table.write(1, None)
        table.keep()
        assert table.read(1) is None


def test_the_log_of_one_large_round_does_not_stay(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "run" / "checkpoint" / "state.sqlite-wal"
    for client in range(10):
        store.memories.write(client, bytes(10**7))
    assert log.stat().st_size > 9e7
    for _ in range(2):
        store.commit(META, b"", [], [])
    assert log.stat().st_size <= 2**26


def test_a_reader_sees_the_last_commit_while_the_next_is_written(
    store: Store, tmp_path: Path
) -> None:
    store.commit(META, b"old", [EVALUATION], [])

    def slow() -> Iterator[Row]:
        reader = Store(tmp_path / "run" / "checkpoint")
        assert written(reader, "evaluations") == [EVALUATION]
        reader.close()
        yield {**EVALUATION, "round": 2}

    store.commit(META, b"new", slow(), [])
    assert len(written(store, "evaluations")) == 2


def test_a_checkpoint_that_another_run_writes_is_not_written_at_the_same_time(
    store: Store, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "run" / "checkpoint" / "state.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._db.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(ResumeError, match=r"cannot be used: database is locked.* no other run"):
        store.commit(META, b"state", [], [])
    other.execute("ROLLBACK")
    other.close()
    store.commit(META, b"state", [], [])


@pytest.mark.parametrize("content", [b"no database " * 99, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").write_bytes(content)
    with pytest.raises(ResumeError, match=r"state.sqlite is damaged: .*remove the folder"):
        Store(tmp_path)
    assert (tmp_path / "state.sqlite").read_bytes() == content


def test_the_same_config_and_version_may_go_on(store: Store) -> None:
    check_same(store, {"anything": 1}, "9.9")  # nothing is committed yet
    store.commit(META, b"", [], [])
    check_same(store, META["config"], "1.0")


@pytest.mark.parametrize(
    ("config", "difference"),
    [
        ({"seed": 1, "training": {"rounds": 2}}, "seed was 0 and is 1"),
        ({"seed": 0, "training": {"rounds": 3}}, "training.rounds was 2 and is 3"),
        ({"seed": 0, "training": {}}, "training.rounds was 2 and is None"),
        ({"seed": 0, "training": {"rounds": 2, "fold": 4}}, "training.fold was None and is 4"),
        ({"seed": 0}, "training was {'rounds': 2} and is None"),
    ],
)
def test_another_config_may_not(store: Store, config: dict[str, Any], difference: str) -> None:
    store.commit(META, b"", [], [])
    with pytest.raises(ResumeError, match=re.escape(f"{difference}; undo the change")):
        check_same(store, config, "1.0")


def test_what_changes_no_result_may_differ(store: Store) -> None:
    before = {
        "engine": {"name": "ray", "workers": 1},
        "checkpoint": {"seconds": 10.0},
        "memory": {"cache": 0},
    }
    after = {
        "engine": {"name": "ray", "workers": 4},
        "checkpoint": {"seconds": 0.0},
        "memory": {"cache": 100},
    }
    store.commit({**META, "config": before}, b"", [], [])
    check_same(store, after, "1.0")
    with pytest.raises(ResumeError, match=r"engine\.name was 'ray' and is 'serial'"):
        check_same(store, {**after, "engine": {"name": "serial", "workers": 1}}, "1.0")


def test_another_version_may_not(store: Store) -> None:
    store.commit(META, b"", [], [])
    with pytest.raises(ResumeError, match=r"made by fedcl 1\.0, this is 2\.0: resume with that"):
        check_same(store, META["config"], "2.0")
