"""The command line: what `run`, `show`, `list` and `report` do and print, and Ctrl-C."""

from __future__ import annotations

import io
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fedcl
from fedcl import __main__ as command_line
from fedcl.plugins import KINDS, available
from tests.commands import ROOT, assert_refused, call, contents, spawn, write_config
from tests.tiny import tiny

FILES = {
    "config.toml",
    "costs.csv",
    "evaluations.csv",
    "model.safetensors",
    "privacy.csv",
    "report.html",
    "summary.json",
}


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares runs the time of drawing figures, by taking the extra away."""
    monkeypatch.setitem(sys.modules, "fedcl.report", None)


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


# --- run ---


def test_run_writes_its_folder_and_prints_the_result(tmp_path: Path) -> None:
    config, out = write_config(tmp_path), tmp_path / "some where" / "out"
    called = call("run", config, "--set", "seed=3", "--out", out)
    assert called.status == 0
    assert {path.name for path in out.iterdir()} == FILES | {"checkpoint", "figures"}
    found = summary(out)
    assert f"{100 * found['average_accuracy']:.2f} %" in called.out
    assert "fedavg on domain_incremental (domain-incremental), seed 3" in called.out
    assert "engine: serial" in called.out
    assert f"files: {out / 'report.html'}" in called.out
    # Without a terminal there is no moving bar, but a line a stage.
    lines = called.err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "stage 1/2: 2 of 4 rounds",
        "stage 2/2: 4 of 4 rounds",
    ]
    assert found["command"] == ["fedcl", "run", str(config), "--set", "seed=3", "--out", str(out)]


@pytest.mark.usefixtures("no_report")
def test_run_has_a_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, {"seed": 7, "method.name": "joint"})
    called = call("run", config, "--quiet", "--set", "training.rounds=1")
    assert called.status == 0 and called.err == ""
    assert (tmp_path / "runs" / "tiny-joint-7" / "summary.json").is_file()
    again = call("run", config, "--quiet", "--set", "training.rounds=1")
    assert_refused(again, "runs/tiny-joint-7 is not empty", "--resume", "--out")


@pytest.mark.usefixtures("no_report")
def test_settings_are_toml_or_else_text(tmp_path: Path) -> None:
    words = {
        "method.name=fot": "fot",
        "method.energy=0.9": 0.9,
        "model.hidden=[6, 7]": [6, 7],
        'stream.partition={name = "shards", per_client = 1}': {"name": "shards", "per_client": 1},
        "evaluation.splits = [ 'test' ]": ["test"],
        "method.biases=true": True,
    }
    settings = [word for setting in words for word in ("--set", setting)]
    out = tmp_path / "out"
    assert call("run", write_config(tmp_path), "--out", out, "--quiet", *settings).status == 0
    resolved = tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))
    for setting, value in words.items():
        table, key = setting.partition("=")[0].strip().split(".")
        assert resolved[table][key] == value


@pytest.mark.usefixtures("no_report")
def test_a_run_of_its_own_config_gives_the_same_bits(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"checkpoint.seconds": 10.0})
    first, second = tmp_path / "first", tmp_path / "second"
    assert call("run", config, "--out", first, "--quiet").status == 0
    assert call("run", first / "config.toml", "--out", second, "--quiet").status == 0
    for name in ("config.toml", "evaluations.csv", "model.safetensors", "privacy.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.usefixtures("no_report")
def test_a_finished_run_may_be_resumed_and_changes_nothing(tmp_path: Path) -> None:
    config, out = write_config(tmp_path), tmp_path / "out"
    assert call("run", config, "--out", out, "--quiet").status == 0
    before = contents(out)
    assert call("run", config, "--out", out, "--quiet", "--resume").status == 0
    assert contents(out)["evaluations.csv"] == before["evaluations.csv"]
    assert contents(out)["model.safetensors"] == before["model.safetensors"]


@pytest.mark.usefixtures("no_report")
def test_resume_without_a_commit_starts_anew(tmp_path: Path) -> None:
    config, out = write_config(tmp_path), tmp_path / "out"
    assert call("run", config, "--out", out, "--quiet", "--resume").status == 0
    assert summary(out)["rounds"] == 4


@pytest.mark.usefixtures("no_report")
def test_in_a_terminal_a_bar_moves_and_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(command_line, "error_console", screen)
    assert call("run", write_config(tmp_path), "--out", tmp_path / "out").status == 0
    assert isinstance(screen.file, io.StringIO)
    drawn = screen.file.getvalue()
    assert "stage 2/2" in drawn and "4/4" in drawn and "accuracy" in drawn
    assert drawn.endswith("\x1b[2K"), "the bar's line is erased"


# --- show ---


def test_show_tells_tasks_shares_sizes_and_every_option(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"stream.partition": {"name": "iid"}, "stream.public": 0.25})
    called = call("show", config)
    assert called.status == 0 and called.err == ""
    lines = [line.rstrip() for line in called.out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("domain_incremental (domain-incremental): 2 tasks, 2 stages, 5 clie")
    assert lines[lines.index("tasks") + 1].split() == [
        *("task", "name", "classes", "train", "test", "public", "a", "client", "has")
    ]
    assert "   0  original       0-3        120    48      40      24 to 24" in lines
    assert "   1  permutation 1  0-3        120    48      40      24 to 24" in lines
    shares = lines.index("who holds what")
    assert lines[shares + 1] == "client  stage 0  stage 1"
    rows = [line.split() for line in lines[shares + 2 : shares + 7]]
    assert [row[0] for row in rows] == list("01234")
    assert all(row[2] == row[4] == "24" and len(row[1]) == 4 for row in rows)
    size = next(line.split() for line in lines if line.startswith("model  "))
    assert size == ["model", "1.02", "kB"], "256 numbers of 4 bytes"
    shown = tomllib.loads("\n".join(lines[lines.index("seed = 0") :]))
    assert shown == fedcl.load_config(config).resolved


def test_show_has_bars_as_high_as_the_largest_holding(tmp_path: Path) -> None:
    changes = {
        "stream.partition": {"name": "natural", "column": "domain"},
        "stream.clients": 0,
        "stream.tasks": 1,
        "dataset.domains": 2,
        "dataset.train": 12,  # rows 0 to 3 and 8 to 11 of the first domain, the others not
    }
    called = call("show", write_config(tmp_path, changes))
    assert "     0  ████ 8" in called.out
    assert "     1  ▄▄▄▄ 4" in called.out
    assert "A bar a class, the highest is 2 examples; then all examples." in called.out


def test_show_draws_what_fits_and_says_what_is_left(tmp_path: Path) -> None:
    changes = {"stream.tasks": 20, "stream.clients": 40, "stream.order": {"name": "staggered"}}
    called = call("show", write_config(tmp_path, changes))
    assert max(map(len, called.out.splitlines())) <= 80
    said = " ".join(called.out.split())
    assert "then all examples of which task. Not shown: 16 more clients and 17 stages." in said
    assert " - " in called.out, "some clients join late"
    assert " of 1" in called.out


def test_a_screen_without_bars_gets_other_signs(tmp_path: Path) -> None:
    called = spawn("show", write_config(tmp_path), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert called.status == 0 and called.err == ""
    assert "who holds what" in called.out and "???" in called.out


# --- list, report, version ---


@pytest.mark.parametrize("kind", KINDS)
def test_list_has_one_line_for_each_plug_in(kind: str) -> None:
    called = call("list", kind)
    assert called.status == 0
    first, *lines = called.out.splitlines()
    assert first == kind
    if kind == "methods":
        assert lines.pop(0).split()[:3] == ["name", "family", "sees"]
    assert [line.split()[0] for line in lines] == available(kind)
    assert all(line.startswith("  ") and len(line.split()) > 2 for line in lines)


def test_list_has_all_kinds() -> None:
    called = call("list")
    assert [line for line in called.out.splitlines() if not line.startswith(" ")] == list(KINDS)


def test_a_narrow_terminal_shows_the_beginning_of_each_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(command_line, "out_console", screen)
    assert call("list").status == 0
    assert isinstance(screen.file, io.StringIO)
    lines = screen.file.getvalue().splitlines()
    headings = len(KINDS) + 1
    assert len(lines) == headings + sum(len(available(kind)) for kind in KINDS)
    assert max(map(len, lines)) == 80, "one line is cut"
    assert all(len(line) == 80 for line in lines if line.endswith("…"))


def test_version() -> None:
    called = call("--version")
    assert (called.status, called.out, called.err) == (0, f"{fedcl.__version__}\n", "")


def test_without_a_command_there_is_help() -> None:
    for words in ((), ("--help",)):
        called = call(*words)
        assert called.status == 0 and called.err == ""
        for command in ("run", "show", "list", "report"):
            assert f" {command} " in called.out


def test_report_draws_one_run_or_compares_several(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for seed, folder in enumerate(folders):
        fedcl.run(tiny({"seed": seed}), folder)
    assert call("report", folders[0]).out.strip() == str(folders[0] / "report.html")
    called = call("report", *folders, "--out", tmp_path / "both")
    assert called.status == 0
    assert called.out.splitlines()[-1] == str(tmp_path / "both" / "comparison.html")
    assert "fedavg" in called.out


@pytest.mark.usefixtures("no_report")
def test_without_the_extra_a_run_ends_without_a_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    called = call("run", write_config(tmp_path), "--out", out, "--quiet")
    assert called.status == 0 and "no report: pip install 'fedcl[report]'" in called.out
    assert_refused(call("report", out), "no report without", "pip install 'fedcl[report]'")


def test_a_config_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"dataset.train": 10**16})
    called = call("run", config, "--out", tmp_path / "out")
    assert_refused(called, "out of memory", "fedcl show", status=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_report")
def test_a_plug_in_may_lie_in_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "fedcl" / "methods" / "fedavg.py").read_text(encoding="utf-8")
    (tmp_path / "lying_here.py").write_text(text, encoding="utf-8")
    config = write_config(tmp_path, {"method": {"name": "lying_here:FedAvg"}})
    assert call("run", config, "--quiet").status == 0
    assert (tmp_path / "runs" / "tiny-FedAvg-0" / "summary.json").is_file()
