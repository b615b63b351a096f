"""Contexts last from one sitting to the next, as they were when replies were last handed over."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedcl.core.errors import ConfigError, ResumeError
from fedcl.flower.grid.app import run_app
from fedcl.flower.grid.contexts import FILE, Contexts
from fedcl.flower.grid.letters import FIRST_NODE, Kept
from fedcl.flower.grid.node import read_state, write_state
from tests.commands import ROOT
from tests.flower.grid_apps import ask, asking, odd, values


def sit(folder: Path | None, body: Callable[[Grid, Context], Any], **options: Any) -> Any:
    """Runs one sitting and returns what `body` returns."""
    found = []
    server = asking(lambda grid, context: found.append(body(grid, context)))
    run_app(server, odd, **{"clients": 3, "state": folder, **options})
    return found[0]


def counts(grid: Grid, context: Context) -> list[int]:
    return values(ask(grid, "count"), "count")


def test_nodes_and_server_go_on_where_they_were(tmp_path: Path) -> None:
    def body(grid: Grid, context: Context) -> tuple[list[int], int, int]:
        before = context.state.metric_records.get("rounds", MetricRecord({"done": 0}))
        context.state = RecordDict({"rounds": MetricRecord({"done": int(before["done"]) + 1})})  # type: ignore[arg-type]
        return counts(grid, context), int(before["done"]), context.run_id  # type: ignore[arg-type]

    folder = tmp_path / "a" / "b"
    first = sit(folder, body)
    second = sit(folder, body, resume=True)
    assert (first[0], first[1]) == ([1, 1, 1], 0)
    assert (second[0], second[1]) == ([2, 2, 2], 1)
    assert first[2] == second[2], "a run keeps its id"
    assert sit(None, body)[0] == [1, 1, 1] and sit(None, body)[2] != first[2]


def test_draws_go_on_too(tmp_path: Path) -> None:
    def draw(grid: Grid, context: Context) -> list[Any]:
        return values(ask(grid, "draw"), "drawn")

    whole = sit(None, lambda grid, context: [draw(grid, context) for _ in range(2)])
    assert [sit(tmp_path, draw), sit(tmp_path, draw, resume=True)] == whole


def test_an_interrupted_round_leaves_no_context(tmp_path: Path) -> None:
    def body(grid: Grid, context: Context) -> None:
        ask(grid, "count")
        ask(grid, "interrupt", client=2)

    with pytest.raises(KeyboardInterrupt):
        sit(tmp_path, body)
    assert sit(tmp_path, counts, resume=True) == [2, 2, 2]


def test_a_killed_process_leaves_the_last_round(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from fedcl.flower.grid.app import run_app
from tests.flower.grid_apps import ask, asking, odd
def main(grid, context):
    ask(grid, "count")
    ask(grid, "die", client=1, always=True, mark={str(tmp_path / "mark")!r})
run_app(asking(main), odd, clients=3, state=Path({str(tmp_path / "state")!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == 1 and (tmp_path / "mark").exists()
    assert sit(tmp_path / "state", counts, resume=True) == [2, 2, 2]


def test_only_nodes_that_were_asked_occupy_space(tmp_path: Path) -> None:
    def body(grid: Grid, context: Context) -> None:
        assert len(list(grid.get_node_ids())) == 1_000_000
        assert ask(grid, "count", [FIRST_NODE + 999_999]) == [{"count": 1}]

    sit(tmp_path, body, clients=1_000_000)
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        rows = database.execute("SELECT node, answered FROM contexts").fetchall()
    assert rows == [(FIRST_NODE + 999_999, 1)]


def test_a_state_is_written_and_read_as_it_is() -> None:
    state = RecordDict(
        {
            "arrays": ArrayRecord([np.arange(6.0).reshape(2, 3), np.array([], dtype=np.int8)]),
            "metrics": MetricRecord({"a": 1, "b": 1.0, "c": [1, 2]}),
            "config": ConfigRecord({"a": True, "b": b"\x00", "c": "ä", "d": ["x", ""]}),
        }
    )
    assert read_state(write_state(state)) == state
    assert write_state(read_state(write_state(state))) == write_state(state)
    assert write_state(RecordDict()) == b"" and read_state(b"") == RecordDict()


# --- Refusals. ---


def test_a_used_folder_is_refused_without_resume(tmp_path: Path) -> None:
    sit(tmp_path, counts)
    with pytest.raises(ConfigError, match="holds the contexts of an earlier run: add --resume"):
        sit(tmp_path, counts)
    assert sit(tmp_path, counts, resume=True) == [2, 2, 2]


def test_resume_in_an_empty_folder_starts_anew(tmp_path: Path) -> None:
    assert sit(tmp_path, counts, resume=True) == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clients": 4}, "have clients = 3, this run has 4"),
        ({"seed": 1}, "have seed = 0, this run has 1"),
        ({"name": "other/app"}, "have app = , this run has other/app"),
    ],
)
def test_contexts_of_another_run_are_refused(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    sit(tmp_path, counts)
    with pytest.raises(ResumeError, match=said):
        sit(tmp_path, counts, resume=True, **options)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with closing(Contexts(tmp_path, False, clients=3)) as contexts:
        contexts.change({FIRST_NODE: Kept(1)})
        contexts.commit()
        with pytest.raises(ConfigError, match="another run may use them"):
            sit(tmp_path, counts, resume=True)


@pytest.mark.parametrize("spoil", ["file", "database"])
def test_what_is_no_folder_of_contexts_is_refused(spoil: str, tmp_path: Path) -> None:
    place = tmp_path / "state"
    if spoil == "file":
        place.write_text("mine", encoding="utf-8")
    else:
        place.mkdir()
        (place / FILE).write_bytes(b"mine" * 1000)
    with pytest.raises(ConfigError, match="name another --state"):
        sit(place, counts, resume=True)
    assert b"mine" in (place if spoil == "file" else place / FILE).read_bytes()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_nobody_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        sit(tmp_path / "closed" / "state", counts)
