"""A run's folder: the checkpoint commits all or nothing, and files appear whole or not at all."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fedcl.core.errors import ConfigError, ResumeError
from fedcl.record import (
    COSTS,
    EVALUATIONS,
    PRIVACY,
    Record,
    Row,
    Store,
    check_same,
    export,
    finish,
    open_folder,
    write_rows,
    write_text,
)
from tests.tiny import read_csv

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


# --- The checkpoint. ---


def test_a_new_checkpoint_is_empty(store: Store) -> None:
    assert store.saved() is None and store.meta("version") is None
    assert store.rows("evaluations", EVALUATIONS) == []


def test_a_commit_is_read_as_it_was_written(store: Store, tmp_path: Path) -> None:
    store.commit(META, b"state", {3: b"three", 1: b"one"}, [EVALUATION], [COST])
    again = reopened(store, tmp_path)
    saved = again.saved()
    assert saved is not None
    assert (saved.stage, saved.round, saved.rounds, saved.seconds) == (0, 1, 1, 0.5)
    assert saved.state == b"state" and saved.events == []
    assert dict(saved.memories) == {1: b"one", 3: b"three"} and list(saved.memories) == [1, 3]
    assert again.rows("evaluations", EVALUATIONS) == [EVALUATION]
    assert again.rows("costs", COSTS) == [COST]
    again.close()


def test_a_commit_replaces_the_state_forgets_memories_and_adds_rows(store: Store) -> None:
    store.commit(META, b"old", {1: b"one", 2: b"two"}, [EVALUATION], [])
    later = {**EVALUATION, "round": 2}
    store.commit({**META, "round": 2}, b"new", {1: None, 2: b"2"}, [later], [])
    saved = store.saved()
    assert saved is not None
    assert saved.state == b"new" and saved.round == 2 and dict(saved.memories) == {2: b"2"}
    assert [row["round"] for row in store.rows("evaluations", EVALUATIONS)] == [1, 2]


def test_a_commit_that_fails_changes_nothing(store: Store) -> None:
    store.commit(META, b"old", {1: b"one"}, [EVALUATION], [])
    broken = [EVALUATION, {"round": 3}]
    with pytest.raises(KeyError):
        store.commit({**META, "round": 9}, b"new", {1: None}, broken, [])
    saved = store.saved()
    assert saved is not None
    assert saved.state == b"old" and saved.round == 1 and dict(saved.memories) == {1: b"one"}
    assert store.rows("evaluations", EVALUATIONS) == [EVALUATION]
    store.commit({**META, "round": 2}, b"new", {}, [], [])


def test_a_reader_sees_the_last_commit_while_the_next_is_written(
    store: Store, tmp_path: Path
) -> None:
    store.commit(META, b"old", {}, [EVALUATION], [])

    def slow() -> Iterator[Row]:
        reader = Store(tmp_path / "run" / "checkpoint")
        assert reader.rows("evaluations", EVALUATIONS) == [EVALUATION]
        reader.close()
        yield {**EVALUATION, "round": 2}

    store.commit(META, b"new", {}, slow(), [])
    assert len(store.rows("evaluations", EVALUATIONS)) == 2


def test_a_checkpoint_that_another_run_writes_is_not_written_at_the_same_time(
    store: Store, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "run" / "checkpoint" / "state.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._db.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(ResumeError, match=r"cannot be used: database is locked.* no other run"):
        store.commit(META, b"state", {}, [], [])
    other.execute("ROLLBACK")
    other.close()
    store.commit(META, b"state", {}, [], [])


@pytest.mark.parametrize("content", [b"no database " * 99, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").write_bytes(content)
    with pytest.raises(ResumeError, match=r"state.sqlite is damaged: .*remove the folder"):
        Store(tmp_path)
    assert (tmp_path / "state.sqlite").read_bytes() == content


def test_the_same_config_and_version_may_go_on(store: Store) -> None:
    check_same(store, {"anything": 1}, "9.9")  # nothing is committed yet
    store.commit(META, b"", {}, [], [])
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
    store.commit(META, b"", {}, [], [])
    with pytest.raises(ResumeError, match=re.escape(f"{difference}; undo the change")):
        check_same(store, config, "1.0")


def test_what_changes_no_result_may_differ(store: Store) -> None:
    before = {"engine": {"name": "ray", "workers": 1}, "checkpoint": {"seconds": 10.0}}
    after = {"engine": {"name": "ray", "workers": 4}, "checkpoint": {"seconds": 0.0}}
    store.commit({**META, "config": before}, b"", {}, [], [])
    check_same(store, after, "1.0")
    with pytest.raises(ResumeError, match=r"engine\.name was 'ray' and is 'serial'"):
        check_same(store, {**after, "engine": {"name": "serial", "workers": 1}}, "1.0")


def test_another_version_may_not(store: Store) -> None:
    store.commit(META, b"", {}, [], [])
    with pytest.raises(ResumeError, match=r"made by fedcl 1\.0, this is 2\.0: resume with that"):
        check_same(store, META["config"], "2.0")


# --- The folder. ---


def test_a_folder_is_made_with_its_parents_or_taken_when_empty(tmp_path: Path) -> None:
    open_folder(tmp_path / "a" / "b", resume=False)
    open_folder(tmp_path / "a" / "b", resume=False)
    open_folder(tmp_path / "a" / "b", resume=True)
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_in_use_needs_resume_and_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    with pytest.raises(ConfigError, match="is not empty: add --resume"):
        open_folder(tmp_path, resume=False)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        open_folder(tmp_path, resume=True)
    (tmp_path / "checkpoint").mkdir()
    open_folder(tmp_path, resume=True)


def test_text_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text(path, "eins\nzwei Größen\n")
    assert path.read_bytes().decode("utf-8").splitlines() == ["eins", "zwei Größen"]

    def broken(self: Path, target: Path) -> Path:
        raise OSError("no room")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="no room"):
        write_text(path, "other")
    assert path.read_text(encoding="utf-8").startswith("eins")


def test_rows_are_csv_with_empty_cells_for_what_is_missing(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"a": None, "b": 0.1 + 0.2, "c": 'say "x", y'},
        {"a": 0, "b": 1e-300, "c": ""},
    ]
    write_rows(tmp_path / "t.csv", ("a", "b", "c"), rows)
    text = (tmp_path / "t.csv").read_bytes()
    assert text == b'a,b,c\n,0.30000000000000004,"say ""x"", y"\n0,1e-300,\n'
    assert float(read_csv(tmp_path / "t.csv")[0]["b"]) == 0.1 + 0.2


def test_a_finished_record_leaves_its_files_and_nothing_else(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    record = Record([EVALUATION], [COST], {"method": "x"}, {"w": weight}, tmp_path)
    privacy = [dict.fromkeys(PRIVACY) | {"epsilon": "inf"}]
    export(record, privacy)
    finish(record)
    names = {"evaluations.csv", "costs.csv", "privacy.csv", "model.safetensors", "summary.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert read_csv(tmp_path / "costs.csv")[0]["bytes"] == str(2**40)
    assert read_csv(tmp_path / "privacy.csv")[0]["epsilon"] == "inf"
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == {"method": "x"}
    assert torch.equal(safetensors.torch.load_file(tmp_path / "model.safetensors")["w"], weight)


def test_a_summary_never_holds_what_json_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        finish(Record(summary={"accuracy": float("nan")}, folder=tmp_path))
    assert not (tmp_path / "summary.json").exists(), "an unfinished run has no summary"
