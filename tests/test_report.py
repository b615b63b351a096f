"""A report holds the summary's own numbers, is one file, and refuses what it cannot use."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import pytest

from fedcl.core.errors import ConfigError
from fedcl.report import comparison_table, write_comparison, write_report
from tests.fake_runs import write_rows, write_run
from tests.report_pages import assert_self_contained, figure_names, shown

RUN_FIGURES = {"accuracy_matrix", "accuracy_by_task", "forgetting", "clients", "traffic"}
HOSTILE = '<script>alert("$x_{")</script>'


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


def test_a_report_shows_the_numbers_of_the_summary(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", summary={"intransigence": 0.0123, "evaluated_by": "clients"})
    page = write_report(run).read_text(encoding="utf-8")
    assert "each on its own held-out examples" in page and "union test set;" not in page
    assert page.startswith("<!DOCTYPE html>")
    numbers, texts = summary(run), shown(page)
    for name in ("average_accuracy", "pooled_accuracy", "learning_accuracy", "anytime_accuracy"):
        assert f"{100 * numbers[name]:.1f} %" in texts[numbers[name]], name
    differences = (
        "forgetting forgetting_first_last forgetting_clipped backward_transfer intransigence"
    )
    for name in differences.split():
        assert f"{100 * numbers[name]:.1f} pp".replace("-", "−") in texts[numbers[name]], name
        assert name in page
    assert texts[numbers["bytes_up"]] == {"43.2 MB"}
    assert texts[numbers["bytes_down"]] == {"80.0 MB"}
    assert "43.2\N{NO-BREAK SPACE}MB" in page, "no line ends before a unit"
    worst = numbers["clients"]["average_accuracy"]
    assert f"{100 * worst['worst']:.1f} %" in texts[worst["worst"]]
    assert f"average accuracy of client {worst['worst_client']}" in page
    for row in numbers["accuracy_matrix"]:
        assert all(f"{100 * cell:.1f} %" in texts[cell] for cell in row)


def test_a_report_says_all_that_is_needed_to_repeat_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", scenario="domain")
    page = write_report(run).read_text(encoding="utf-8")
    assert "On the server&#39;s union test set;" in page
    assert "domain-incremental" in page
    assert "fedcl run &#39;my configs/fot.toml&#39; --set seed=0" in page
    assert "[stream.partition]" in page  # the config as it is written
    assert "2.13.0" in page and "0.1.0" in page
    assert "gram" in page and "sent as it is" in page and "∞" in page
    assert_self_contained(page)
    assert figure_names(run) == RUN_FIGURES
    assert not list(run.rglob(".*"))  # no drafts


@pytest.mark.parametrize(
    ("scenario", "tasks", "clients"), [("task", 1, 3), ("class", 20, 50), ("domain", 7, 0)]
)
def test_streams_of_any_length_render(
    tmp_path: Path, scenario: str, tasks: int, clients: int
) -> None:
    run = write_run(tmp_path / "r", scenario=scenario, tasks=tasks, clients=clients, rounds=2)
    page = write_report(run).read_text(encoding="utf-8")
    missing = ({"forgetting"} if tasks == 1 else set()) | (set() if clients else {"clients"})
    assert figure_names(run) == RUN_FIGURES - missing
    assert f"{scenario}-incremental" in page
    assert ("clients were not evaluated one by one" in page) == (clients == 0)
    assert ("No figure: forgetting needs two tasks." in page) == (tasks == 1)
    assert ("means nothing in class-incremental" in page) == (scenario == "class")


def test_orders_of_their_own_show_the_mean_over_clients(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", own_orders=True, tasks=3, clients=4)
    page = write_report(run).read_text(encoding="utf-8")
    assert summary(run)["accuracy_matrix"] is None
    assert "Mean over 4 clients, each in its own task order" in page
    assert "needs one task order that all clients share" in page
    rows = [line.split(",") for line in (run / "evaluations.csv").read_text().splitlines()[1:]]
    first = mean(float(row[8]) for row in rows if row[2] and row[3] == "0")
    assert any(abs(value - first) < 1e-12 for value in shown(page))
    assert figure_names(run) == RUN_FIGURES


def test_missing_numbers_are_not_zero(tmp_path: Path) -> None:
    nothing = dict.fromkeys(
        ("pooled_accuracy", "forgetting", "forward_transfer", "bytes_up", "seconds", "versions")
    )
    matrix = [[0.9, None], [0.5, None]]
    run = write_run(tmp_path / "r", tasks=2, summary={**nothing, "accuracy_matrix": matrix})
    page = write_report(run).read_text(encoding="utf-8")
    row = page.split('<th class="name">pooled_accuracy</th>')[1].split("</tr>")[0]
    assert "n/a" in row and "not evaluated" in row and "0.0" not in row
    assert figure_names(run) == RUN_FIGURES


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    hostile = {"dataset": HOSTILE, "engine_reason": HOSTILE, "command": ["fedcl", HOSTILE]}
    payloads = {"bytes_by_payload": {"up": {HOSTILE: 5, "$\\frac$": 3}, "down": {}}}
    runs = [
        write_run(tmp_path / str(i), method=f"{HOSTILE}{i}", summary={**hostile, **payloads})
        for i in range(2)
    ]
    for page in (write_report(runs[0]), write_comparison(runs, tmp_path / "out")):
        text = page.read_text(encoding="utf-8")
        assert "&lt;script&gt;" in text
        assert_self_contained(text)


def test_the_same_run_gives_the_same_bytes_and_leaves_settings_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    before = dict(matplotlib.rcParams)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert dict(matplotlib.rcParams) == before


def test_unfinished_and_foreign_folders_are_refused_with_the_remedy(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my run")
    (run / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"my run is not finished.*fedcl run .* --resume"):
        write_report(run)
    with pytest.raises(ConfigError, match="is not a run's folder"):
        comparison_table([tmp_path])
    with pytest.raises(ConfigError, match="no runs to compare"):
        write_comparison([], tmp_path)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("summary.json", "{", "cannot be read"),
        ("summary.json", "[]", "not a JSON object"),
        ("summary.json", "{}", "lacks 'accuracy_matrix'|lacks 'seed'"),
        ("config.toml", "seed = ", "cannot be read"),
        ("evaluations.csv", "round,stage\n", "lacks 'client'"),
        ("costs.csv", "", "lacks 'direction'"),
        ("privacy.csv", None, "is missing"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, name: str, content: str | None, fault: str
) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"is damaged: {name} .*({fault}).*--resume"):
        write_report(run)


@pytest.mark.parametrize(
    "wrong", [{"forgetting": "big"}, {"accuracy_matrix": [["x"]]}, {"seed": None}]
)
def test_a_wrong_number_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run", tasks=2, summary=wrong)
    with pytest.raises(ConfigError, match=f"summary.json .*{next(iter(wrong))}"):
        write_report(run)
    assert not (run / "figures").exists()  # nothing half written


def test_rows_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    row = {"round": 10, "stage": 0, "client": 0, "client_stage": 0, "model": "global", "task": 0}
    row |= {"split": "test", "metric": "accuracy", "value": 0.5, "n": 3}
    write_rows(run, "evaluations", [row, row])
    with pytest.raises(ConfigError, match=r"evaluations.csv contradicts itself .*two accuracies"):
        write_report(run)


def test_validation_accuracies_are_marked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tasks=2)
    path = run / "evaluations.csv"
    path.write_text(path.read_text().replace(",test,", ",validation,"), encoding="utf-8")
    assert "They are no test results." in write_report(run).read_text(encoding="utf-8")
