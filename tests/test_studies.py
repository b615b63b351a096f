"""The queue that the studies share: every cell once, from where it stopped; choices; one table."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from choices import best, candidates, tuned
from fot_pmnist import STUDY
from fot_table import Row, Study, main, run
from runner import CONFIGS, Cell, part, standing_of, summary_of, work

import fedcl
from tests.tiny import Interrupted, assert_same_folders, interrupt_after

ROOT = Path(__file__).parent.parent
TINY: dict[str, Any] = {
    "dataset": {"name": "synthetic", "features": 6, "classes": 4, "train": 80, "test": 40},
    "stream.tasks": 3,
    "stream.clients": 4,
    "model.hidden": [8],
    "training.rounds": 2,
    "training.cohort": 2,
}


def cell(name: str, **changes: Any) -> Cell:
    return Cell(name, "fot_digits.toml", {**TINY, **changes})


def finished(cells: list[Cell], out: Path) -> list[str]:
    return [one.name for one in cells if summary_of(one, out) is not None]


def test_a_queue_runs_each_cell_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell("a"), cell("b", seed=1)]
    work(cells, tmp_path)
    assert finished(cells, tmp_path) == ["a", "b"]
    assert "a: begins" in capsys.readouterr().out
    work(cells, tmp_path)
    assert "begins" not in capsys.readouterr().out


@pytest.mark.parametrize("lock", ["locks/a", "a/checkpoint/lock"])
def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path: Path, lock: str) -> None:
    """The second lock is a run's own: it may have been started without the queue."""
    cells = [cell("a"), cell("b", seed=1)]
    (tmp_path / lock).parent.mkdir(parents=True)
    with (tmp_path / lock).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        work(cells, tmp_path)
        assert finished(cells, tmp_path) == ["b"]
    work(cells, tmp_path)
    assert finished(cells, tmp_path) == ["a", "b"]


def test_a_stopped_cell_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    one = cell("a")
    experiment = fedcl.load_config(CONFIGS / one.config, one.changes)
    with pytest.raises(Interrupted):
        fedcl.run(experiment, tmp_path / "stopped" / "a", watch=interrupt_after(3))
    at = standing_of(one, tmp_path / "stopped")
    assert at is not None and (at.stage, at.stages) == (1, 3)
    assert summary_of(one, tmp_path / "stopped") is None
    work([one], tmp_path / "stopped")
    work([one], tmp_path / "whole")
    assert_same_folders(tmp_path / "stopped" / "a", tmp_path / "whole" / "a")
    whole = summary_of(one, tmp_path / "whole")
    assert whole is not None and at.accuracy == whole["average_accuracy_by_stage"][0]


@pytest.mark.slow
def test_a_process_that_is_killed_lets_go_of_its_cell(tmp_path: Path) -> None:
    words = json.dumps({**TINY, "training.rounds": 200, "checkpoint.seconds": 0})
    program = (
        "import json, pathlib, sys; from runner import Cell, work; "
        f"work([Cell('a', 'fot_digits.toml', json.loads({words!r}))], pathlib.Path(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "simulations")]),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "stage 1/3" not in (line := process.stdout.readline()):
        assert line, "it ended before it could be killed"
    one = cell("a", **{"training.rounds": 200, "checkpoint.seconds": 0})
    work([one], tmp_path)
    assert finished([one], tmp_path) == [], "it is the other's"
    process.kill()
    process.wait()
    process.stdout.close()
    work([one], tmp_path)
    assert finished([one], tmp_path) == ["a"]


def test_a_cell_that_fails_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell("bad", **{"method.name": "no_such"}), cell("good")]
    with pytest.raises(SystemExit, match="1 of 2 runs failed: bad"):
        work(cells, tmp_path)
    assert finished(cells, tmp_path) == ["good"]
    assert "no_such" in capsys.readouterr().err


def test_a_folder_with_another_experiment_is_refused(tmp_path: Path) -> None:
    work([cell("a")], tmp_path)
    with pytest.raises(SystemExit, match=r"another experiment: training\.rounds is 2 there"):
        summary_of(cell("a", **{"training.rounds": 3}), tmp_path)
    with pytest.raises(SystemExit, match=r"model.hidden\[0\] is 8 there and 9"):
        standing_of(cell("a", **{"model.hidden": [9]}), tmp_path)
    moved = cell("a", **{"engine": {"name": "serial"}, "checkpoint.seconds": 1})
    assert summary_of(moved, tmp_path) is not None


def test_choices_are_made_on_validation_data(tmp_path: Path) -> None:
    start = cell("a", **{"method.name": "fedavg"})
    options = {"training.local.lr": (1e-6, 0.2)}
    tried = candidates(start, options)
    assert [one.name for one in tried] == ["tune-a-lr=1e-06", "tune-a-lr=0.2"]
    with pytest.raises(ValueError, match="tune-a-lr=1e-06 is not finished"):
        best(tried, tmp_path)
    chosen = tuned(start, options, tmp_path)
    assert chosen.name == "a" and dict(chosen.changes) == {
        **start.changes,
        "training.local.lr": 0.2,
    }
    assert best(tried, tmp_path) == tried[1]
    assert {summary_of(one, tmp_path)["split"] for one in tried} == {"validation"}  # type: ignore[index]
    work([start], tmp_path)
    with pytest.raises(ValueError, match="measured on 'test'"):
        best([start], tmp_path)


def test_parts_divide_a_study() -> None:
    assert part("2/3") == (2, 3)
    for words in ("0/2", "3/2", "1", "a/b", "1/-2"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not k/n"):
            part(words)


def small_study(published: float) -> Study:
    rows = {"fedavg": Row({"method.name": "fedavg"}, published={"IID": ((published, 1), (0, 1))})}
    return Study("title", "name", {"IID": "fot_digits.toml"}, rows, 2, 1, {}, {})


def table(study: Study, out: Path, **options: Any) -> list[list[str]]:
    args = argparse.Namespace(
        rows=list(study.rows),
        splits=list(study.configs),
        seeds=[0],
        part=(1, 1),
        table=False,
        compare=True,
    )
    vars(args).update(options)
    run(study, args, TINY, out, "title")
    lines = (out / "table.md").read_text(encoding="utf-8").splitlines()
    return [[word.strip() for word in line.strip("|").split("|")] for line in lines[2:]]


def test_a_table_has_the_published_numbers_beside_ours(tmp_path: Path) -> None:
    study = small_study(50.0)
    ((*_, nothing, _, _, _, _, _, _, _),) = table(study, tmp_path, table=True)
    assert nothing == "no stage yet" and not (tmp_path / "IID-fedavg-0").exists()
    ((split, row, accuracy, published, difference, *rest),) = table(study, tmp_path)
    found = summary_of(study.cell("IID", "fedavg", 0, TINY), tmp_path)
    assert found is not None
    ours = 100 * found["average_accuracy"]
    assert (split, row, published) == ("IID", "fedavg", "50.00 ± 1.00")
    assert accuracy == f"{ours:.2f} (n=1)" and difference == f"{ours - 50:+.2f}"
    forgetting = 100 * found["forgetting_first_last"]
    assert rest[:3] == [f"{forgetting:.2f} (n=1)", "0.00 ± 1.00", f"{forgetting:+.2f}"]
    near = abs(ours - 50) <= 1.0 and abs(forgetting) <= 0.7
    assert rest[3] == ("yes" if near else "no")


def test_a_run_begun_at_the_command_line_is_a_cell_of_the_table(tmp_path: Path) -> None:
    """Overrides of the long runs that were started by hand: they are read and resumed."""
    by_hand = {
        "dataset.root": "elsewhere",
        "engine": {"name": "vectorized"},
        "evaluation.every": 0,
        "checkpoint.seconds": 60,
    }
    changes = {"dataset.root": "elsewhere", "training.rounds": 200}
    for split, config in STUDY.configs.items():
        for row, more in (("fot_paper", {}), ("fedavg", {"method.name": "fedavg"})):
            ours = STUDY.cell(split, row, 0, changes)
            assert ours.name == f"{split}-{row}-0"
            mine = fedcl.load_config(CONFIGS / config, ours.changes).resolved
            assert mine == fedcl.load_config(CONFIGS / config, {**by_hand, **more}).resolved


def test_values_to_try_need_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(STUDY, "", ["--values", "0.9"])
    assert "--values needs --tune and one row" in capsys.readouterr().err
