"""Several runs side by side: groups differ by more than the seed, with mean and spread over it."""

import math
from pathlib import Path
from statistics import mean, stdev

import pytest

from fedcl.core.errors import ConfigError
from fedcl.report import _spendings, comparison_table, write_comparison
from fedcl.reporting.groups import group_runs
from fedcl.reporting.results import read_run
from tests.fake_runs import write_run
from tests.report_pages import assert_self_contained, figure_names, shown

COMPARISON_FIGURES = {
    f"comparison_{name}" for name in ("stages", "rounds", "forgetting", "traffic")
}


def test_a_comparison_groups_by_all_but_the_seed(tmp_path: Path) -> None:
    values = {seed: 0.6 + 0.05 * seed**2 for seed in (2, 0, 1)}
    runs = [
        write_run(tmp_path / f"s{seed}", seed=seed, summary={"average_accuracy": value})
        for seed, value in values.items()
    ]
    runs += [write_run(tmp_path / f"e{k}", method="ewc", options={"strength": k}) for k in (1, 10)]
    rows = comparison_table(runs)
    assert [row["method"] for row in rows] == ["fot", "ewc, strength=1", "ewc, strength=10"]
    assert [row["seeds"] for row in rows] == ["n=3", "n=1", "n=1"]
    assert {row["scenario"] for row in rows} == {"domain-incremental"}
    average, spread = mean(values.values()), stdev(values.values())
    cell = f"{100 * average:.1f} ± {100 * spread:.1f}"
    assert rows[0]["average_accuracy [%]"] == cell == "68.3 ± 10.4"
    assert all("±" not in text for row in rows[1:] for text in row.values())
    assert rows[1]["average_accuracy [%]"].endswith("(n=1)")
    page = write_comparison(runs, tmp_path / "out").read_text(encoding="utf-8")
    exact = {value for value, texts in shown(page).items() if cell in texts}
    assert len(exact) == 1 and abs(exact.pop() - average) < 1e-12
    assert "domain-incremental" in page and "do not compare" not in page
    assert_self_contained(page)
    assert figure_names(tmp_path / "out") == COMPARISON_FIGURES
    assert not (tmp_path / "s0" / "figures").exists()


def test_privacy_is_drawn_against_accuracy_where_some_run_has_a_finite_epsilon(
    tmp_path: Path,
) -> None:
    told = {"a": 1.0, "b": 8.0, "c": "inf", "d": None}
    runs = {
        name: write_run(tmp_path / name, options={"strength": k}, summary={"epsilon": value})
        for k, (name, value) in enumerate(told.items())
    }
    unbounded = [runs["c"], runs["d"]]
    write_comparison(unbounded, tmp_path / "without")
    assert "comparison_privacy" not in figure_names(tmp_path / "without")
    write_comparison(list(runs.values()), tmp_path / "with")
    assert "comparison_privacy" in figure_names(tmp_path / "with")
    groups = [group_runs([read_run(path)])[0] for path in runs.values()]
    (spent,) = _spendings(groups).values()
    assert [one.epsilon for one in spent] == [1.0, 8.0, math.inf], "no claim is no point"
    assert all(one.accuracy.mean == groups[0].estimate("average_accuracy").mean for one in spent)


def test_a_mean_is_over_the_seeds_that_have_the_number(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / str(s), seed=s, summary={"forgetting": v, "backward_transfer": None})
        for s, v in enumerate((0.125, None))
    ]
    (row,) = comparison_table(runs)
    assert (row["forgetting [pp]"], row["backward_transfer [pp]"]) == ("12.5 (n=1)", "n/a")
    assert row["method"] == "fot"


def test_labels_name_plug_ins_and_options_that_differ(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "1"), write_run(tmp_path / "2")
    text = (two / "config.toml").read_text(encoding="utf-8")
    changed = text.replace('name = "iid"', 'name = "dirichlet"\nalpha = 0.5').replace("0.2", "0.3")
    (two / "config.toml").write_text(changed, encoding="utf-8")
    assert [r["method"] for r in comparison_table([one, two])] == [
        "fot, iid, lr=0.2",
        "fot, dirichlet, lr=0.3",
    ]


def test_scenarios_side_by_side_carry_a_warning(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / s, scenario=s, own_orders=s == "task") for s in ("task", "class")]
    page = write_comparison(runs, tmp_path / "out").read_text(encoding="utf-8")
    assert "do not compare" in page
    assert "task-incremental" in page and "class-incremental" in page
    assert figure_names(tmp_path / "out") == COMPARISON_FIGURES


def test_a_comparison_leaves_no_figure_of_an_older_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_comparison([write_run(tmp_path / "long")], out)
    (out / "figures" / "mine.png").write_bytes((out / "figures/comparison_rounds.png").read_bytes())
    short = write_run(tmp_path / "own", own_orders=True)
    write_comparison([short], out)
    assert figure_names(out) == {"comparison_forgetting", "comparison_traffic", "mine"}


def test_a_repetition_is_no_second_sample(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    with pytest.raises(ConfigError, match="same config and the same seed"):
        comparison_table([one, two])
    with pytest.raises(ConfigError, match="cannot be written to"):
        write_comparison([one], one / "config.toml")
