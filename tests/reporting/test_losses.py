"""The part of a report that says where a run forgets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fedcl
from fedcl.core.errors import ConfigError
from fedcl.report import write_comparison, write_report
from fedcl.reporting.results import read_run
from tests.report_pages import assert_self_contained, figure_names, shown
from tests.tiny import tiny

ON = {"stream.tasks": 3, "evaluation.decompose": 2, "training.rounds": 3}


def test_both_losses_are_drawn_and_told(tmp_path: Path) -> None:
    record = fedcl.run(tiny(ON), tmp_path / "run")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert_self_contained(page)
    assert "losses" in figure_names(tmp_path / "run")
    texts = shown(page)
    for name in ("local_update_loss", "aggregation_loss"):
        by_task = record.summary[f"{name}_by_task"]
        assert by_task[2] is None
        for loss in (record.summary[name], *by_task[:2]):
            assert f"{100 * loss + 0.0:.1f} pp".replace("-", "−") in texts[loss]
    assert page.count("both together are forgetting_first_last") == 1
    assert "decomposition" in page  # among the programs that took steps


def test_no_losses_no_figure(tmp_path: Path) -> None:
    """A figure of an earlier report goes, too."""
    run = tmp_path / "run"
    fedcl.run(tiny({**ON, "evaluation.decompose": 0}), run)
    (run / "figures").mkdir()
    (run / "figures" / "losses.png").touch()
    page = write_report(run).read_text(encoding="utf-8")
    assert "losses" not in figure_names(run)
    assert "Where it forgets" not in page


def test_many_tasks_of_their_own_orders(tmp_path: Path) -> None:
    """Tasks that somebody met are old, so the sum is nobody's forgetting and the page is silent."""
    changes = {**ON, "stream.tasks": 5, "training.rounds": 1, "stream.order": {"name": "shuffled"}}
    fedcl.run(tiny(changes), tmp_path / "run")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "losses" in figure_names(tmp_path / "run")
    assert "both together" not in page


def test_a_local_model_without_its_global_one_is_damage(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fedcl.run(tiny(ON), run)
    table = run / "evaluations.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not line.startswith("5,1,,,global,0,")))
    with pytest.raises(ConfigError, match=r"evaluations.csv .*the global one not in round 5"):
        write_report(run)


def test_a_run_from_before_there_were_losses_can_be_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fedcl.run(tiny({**ON, "evaluation.decompose": 0}), run)
    summary = json.loads((run / "summary.json").read_text())
    kept = {key: value for key, value in summary.items() if "_loss" not in key}
    (run / "summary.json").write_text(json.dumps(kept))
    found = read_run(run)
    assert found.losses == {} and found.number("local_update_loss") is None


def test_a_comparison_has_columns_for_runs_that_were_decomposed(tmp_path: Path) -> None:
    for seed in range(2):
        fedcl.run(tiny({**ON, "seed": seed}), tmp_path / f"on{seed}")
    fedcl.run(tiny({**ON, "evaluation.decompose": 0}), tmp_path / "off")
    runs = [tmp_path / name for name in ("on0", "on1", "off")]
    with_losses, without = (
        write_comparison(some, tmp_path).read_text(encoding="utf-8").replace("<wbr>", "")
        for some in (runs, runs[2:])
    )
    for words in ("local_update_loss [pp]", "aggregation_loss [pp]", "are sums over rounds"):
        assert words in with_losses and words not in without
