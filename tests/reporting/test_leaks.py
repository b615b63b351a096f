"""The leak matrix in a report: read by stage and task, drawn where an audit made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcl.core.errors import ConfigError
from fedcl.report import write_report
from fedcl.reporting.leaks import read_leaks
from tests.fake_runs import write_run
from tests.report_pages import assert_self_contained, figure_names

HEAD = "stage,task,statistic,auc,tpr_1,negatives"
ROWS = ("0,0,lira,0.53,0.02,1500", "1,0,lira,0.51,,900", "1,1,lira,0.62,0.04,1600")


def write_table(run: Path, *rows: str, folder: str = "audit") -> Path:
    path = run / folder / "membership.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((HEAD, *rows)) + "\n", encoding="utf-8")
    return path


def test_cells_are_read_by_stage_and_task(tmp_path: Path) -> None:
    assert read_leaks(tmp_path) is None
    write_table(tmp_path, *ROWS, *(row.replace("lira", "loss") for row in ROWS[:2]))
    found = read_leaks(tmp_path)
    assert found is not None
    assert found.areas == {
        "lira": [[0.53, None], [0.51, 0.62]],
        "loss": [[0.53, None], [0.51, None]],
    }
    assert found.rates["lira"] == [[0.02, None], [None, 0.04]]
    assert found.negatives == (900, 1600)
    assert [(leak.task, leak.attack, leak.area, leak.rate) for leak in found.last] == [
        (0, "LiRA", 0.51, None),
        (0, "confidence alone", 0.51, None),
        (1, "LiRA", 0.62, 0.04),
    ]
    assert {leak.interval for leak in found.last} == {None}


def test_intervals_and_low_rates_are_told_with_the_negatives(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=1)
    path = write_table(run)
    path.write_text(
        "stage,task,statistic,auc,auc_low,auc_high,tpr_01,tpr_1,negatives\n"
        "0,0,lira,0.531,0.512,0.551,0.0042,0.0213,12345\n",
        encoding="utf-8",
    )
    page = write_report(run).read_text(encoding="utf-8")
    for words in ("0.512 to 0.551", "2.13 %", "0.42 %", "12\N{NARROW NO-BREAK SPACE}345"):
        assert words in page


def test_a_report_shows_the_matrix_with_what_stands_behind_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    without = write_report(run).read_text(encoding="utf-8")
    assert "leak_matrix" not in figure_names(run) and "Leak matrix" not in without
    table = write_table(run, *ROWS, folder="audited/audit")
    page = write_report(run).read_text(encoding="utf-8")
    assert "leak_matrix" in figure_names(run)
    assert "Leak matrix" in page and "900 to 1600 records" in page and "1 % of false" in page
    assert_self_contained(page)
    table.unlink()
    write_report(run)
    assert "leak_matrix" not in figure_names(run)


def test_wide_matrices_are_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=20)
    write_table(run, *(f"{i},{j},lira,0.5{j:02d},0.01,2000" for i in range(20) for j in range(i)))
    write_report(run)
    assert "leak_matrix" in figure_names(run)


@pytest.mark.parametrize("row", ["0,0,lira,high,0.1,5", "0,x,lira,0.5,0.1,5", "0,0,lira,0.5"])
def test_a_damaged_table_is_refused(tmp_path: Path, row: str) -> None:
    run = write_run(tmp_path / "run")
    write_table(run, row)
    with pytest.raises(ConfigError, match=r"damaged: audit/membership\.csv"):
        write_report(run)
