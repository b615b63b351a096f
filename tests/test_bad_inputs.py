"""Bad input gives exit status 2, one message with place and remedy, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.bad_configs import TABLES, Bad
from tests.commands import ROOT, assert_refused, call, contents, spawn, write_config

CASES = [
    pytest.param(bad, id=f"{kind}: {bad.name}") for kind, bads in TABLES.items() for bad in bads
]


@pytest.mark.parametrize("bad", CASES)
def test_a_bad_config_is_refused(bad: Bad, tmp_path: Path) -> None:
    config = write_config(tmp_path, bad.changes)
    settings = [word for setting in bad.words for word in ("--set", setting)]
    for command in (("run", config, "--out", tmp_path / "out"), ("show", config)):
        assert_refused(call(*command, *settings), bad.place, bad.remedy)
    assert list(tmp_path.iterdir()) == [config]


def test_the_table_is_long_and_its_names_are_its_own() -> None:
    names = [str(case.id) for case in CASES]
    assert len(names) == len(set(names)) > 100


# --- Files. ---


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (b"seed = 1\nrounds = \n", ("not valid TOML", "line 2", "correct it")),
        (b"[dataset\n", ("not valid TOML", "line 1", "correct it")),
        (b"seed = 1\nseed = 2\n", ("not valid TOML", "line 2")),
        (b"# \xff\xfe\n", ("is no text", "save it as UTF-8")),
        (b"", ("[dataset] is missing", "add it with name", "synthetic")),
        (b'[dataset]\nname = "synthetic"\n', ("[method] is missing", "add it", "fedavg")),
        (b'[dataset]\nseed = 1\n[method]\nname = "fedavg"\n', ("[dataset] name", "add name = ...")),
        (b'[dataset]\nname = "npz"\n[method]\nname = "fedavg"\n', ("[dataset]", "dataset.root")),
        (b'[dataset]\nname = "idx"\n[method]\nname = "fedavg"\n', ("[dataset]", "dataset.root")),
        (b'[dataset]\nname = "folder"\n[method]\nname = "fedavg"\n', ("dataset.root=FOLDER",)),
        (b'[dataset]\nname = "hub"\n[method]\nname = "fedavg"\n', ("dataset.path=FOLDER",)),
    ],
)
def test_a_bad_config_file_is_refused(
    text: bytes, fragments: tuple[str, ...], tmp_path: Path
) -> None:
    config = tmp_path / "bad.toml"
    config.write_bytes(text)
    assert_refused(call("run", config, "--out", tmp_path / "out"), *fragments)
    assert list(tmp_path.iterdir()) == [config]


def test_a_config_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.toml", tmp_path / "missing" / "missing.toml"):
        assert_refused(call("run", path), f"config {path}", "give the path of a TOML file")
    assert_refused(call("show", tmp_path / "missing.toml"), "No such file")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"training.device": "cuda"})
    called = call("run", config, "--out", tmp_path / "out")
    assert_refused(called, 'training.device = "cuda"', 'use "auto" or "cpu"')
    assert not (tmp_path / "out").exists()


# --- Folders. ---


def test_a_folder_that_is_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    config, out = write_config(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    assert_refused(call("run", config, "--out", out), f"folder {out} is not empty", "--resume")
    resumed = call("run", config, "--out", out, "--resume")
    assert_refused(resumed, f"folder {out} holds no checkpoint", "name the folder of a run")
    assert contents(out) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("below", ["", "runs/out"])
def test_a_file_in_the_place_of_a_folder_is_refused(below: str, tmp_path: Path) -> None:
    config, file = write_config(tmp_path), tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    called = call("run", config, "--out", file / below)
    assert_refused(called, f"folder {file / below} cannot be written", "name another --out")
    assert file.read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody may write")
def test_a_folder_that_nobody_may_write_is_refused(tmp_path: Path) -> None:
    called = call("run", write_config(tmp_path), "--out", "/proc/fedcl")
    assert_refused(called, "folder /proc/fedcl cannot be written", "name another --out")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    config, out = write_config(tmp_path), tmp_path / "out"
    out.mkdir(mode=0o500)
    assert_refused(call("run", config, "--out", out), "cannot be written", "name another --out")


# --- Commands. ---


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["list", "nothing"], ("'nothing'", "known: datasets, streams")),
        (["list", "method"], ("'method'", "methods")),
        (["run"], ("Missing argument 'CONFIG'", "see fedcl run --help")),
        (["run", "a.toml", "b.toml"], ("unexpected extra argument (b.toml)", "fedcl run --help")),
        (["run", "a.toml", "--resum"], ("No such option", "--resum", "fedcl run --help")),
        (["run", "a.toml", "--out"], ("'--out' requires an argument", "see fedcl")),
        (["rum"], ("No such command 'rum'. Did you mean 'run'?; see fedcl --help",)),
        (["--verbose"], ("No such option", "see fedcl --help")),
        (["report"], ("Missing argument 'RUNS", "see fedcl report --help")),
        (["report", "nowhere"], ("nowhere is not a run's folder", "fedcl run CONFIG --out FOLDER")),
        (["report", "nowhere", "there"], ("nowhere is not a run's folder", "Name a folder")),
    ],
)
def test_a_bad_command_is_refused(
    words: list[str], fragments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(call(*words), *fragments)
    assert not list(tmp_path.iterdir())


def test_a_report_of_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, name="config.toml")
    assert_refused(call("report", tmp_path), "not finished", "--resume")
    assert list(tmp_path.iterdir()) == [config]


def test_a_process_of_its_own_says_the_same(tmp_path: Path) -> None:
    """No warning, traceback or progress bar joins the message, whatever is loaded by then."""
    out, shown = tmp_path / "out", str(ROOT / "configs" / "fot_digits.toml")
    bad = ("--set", "method.name=fott", "--out", out)
    assert_refused(spawn("run", shown, *bad), "[method] unknown name 'fott'", "mean 'fot'")
    diverging = write_config(tmp_path, {"training.local.lr": 1e9})
    called = spawn("run", diverging, "--out", out)
    assert_refused(called, "stage 0, round 0", "lower training.local.lr", status=1)
    many = write_config(tmp_path, {"stream.clients": 200})
    assert_refused(spawn("show", many), "200 clients", "lower stream.clients")
    assert not out.exists()
