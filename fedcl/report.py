"""Reports of runs: one self-contained HTML page with its figures, for one run or for several.

Needs the extra `report`: matplotlib and jinja2.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcl import metrics
from fedcl.core.errors import ConfigError
from fedcl.reporting import (
    figures,
    group_figures,
    leaks,
    loss_figures,
    privacy_figures,
    reconstructions,
    samples,
)
from fedcl.reporting.findings import told
from fedcl.reporting.formulas import DIFFERENCES, METRICS, reason, scenarios
from fedcl.reporting.groups import (
    Group,
    accuracy_columns,
    cost_columns,
    difference_columns,
    estimate,
    group_runs,
    table,
)
from fedcl.reporting.page import render, write
from fedcl.reporting.results import Run, read_run
from fedcl.reporting.views import (
    client_matrices,
    client_values,
    mean_matrix,
    payloads,
    seen_curve,
    stage_ends,
    task_curves,
)

_FIGURES = (
    *("accuracy_matrix", "leak_matrix", "accuracy_by_task", "forgetting", "losses", "samples"),
    *("clients", "epsilon", "traffic", "reconstructions"),
)
_COMPARISON_FIGURES = tuple(
    f"comparison_{name}" for name in ("stages", "rounds", "forgetting", "privacy", "traffic")
)


def write_report(run: Path) -> Path:
    """Writes `figures/*.png` and `report.html` into the folder of a finished run.

    Returns:
        The path of the page.

    Raises:
        ConfigError: The folder is no run's, is unfinished or damaged, or cannot be written to.
    """
    done = read_run(Path(run))
    matrix, own_clients, matrices = done.matrix, 0, client_matrices(done)
    if matrix is None:
        matrix, own_clients = mean_matrix(matrices.values()), len(matrices)
    images = _run_figures(done, matrix, own_clients, matrices)
    drawn, chosen = samples.read_samples(done.path), None
    if drawn:
        chosen = samples.choose(drawn)
        images["samples"] = samples.grids(drawn, chosen)
    leak = leaks.read_leaks(done.path)
    if leak is not None:
        images["leak_matrix"] = leaks.leak_matrix(leak)
    inverted = reconstructions.read_reconstructions(done.path)
    if inverted is not None and inverted.strips:
        images["reconstructions"] = reconstructions.reconstructions(inverted.strips)
    page = render(
        title=f"{done.summary['method']} on {done.summary['stream']}",
        images=images,
        scenarios=scenarios([done]),
        run=done,
        s=done.summary,
        metrics=METRICS,
        reasons={metric.name: reason(done, metric.name) for metric in METRICS},
        matrix=matrix,
        kinds=payloads(done),
        own_clients=own_clients,
        drawn=chosen,
        leak=leak,
        inverted=inverted,
        findings=list(told(done.summary)),
        command=shlex.join(map(str, done.summary.get("command") or ())),
    )
    return write(done.path, "report.html", page, images, _FIGURES)


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Writes `comparison.html` and `figures/comparison_*.png` over several finished runs.

    Runs that differ only in the seed are one group, shown by mean and sample standard deviation.

    Returns:
        The path of the page.

    Raises:
        ConfigError: A folder is no finished run's, two runs are the same, or there is none.
    """
    groups = _read_groups(runs)
    images = _comparison_figures(groups)
    members = [run for group in groups for run in group.runs]
    page = render(
        title=f"Comparison of {_many(len(groups), 'configuration')}, {_many(len(members), 'run')}",
        images=images,
        scenarios=scenarios(members),
        groups=groups,
        facts={
            word: list(
                dict.fromkeys(str(run.summary[word]) for run in members if run.summary[word])
            )
            for word in ("stream", "dataset", "model")
        },
        accuracies=accuracy_columns(),
        differences=difference_columns(groups),
        costs=cost_columns(groups),
        commands={
            run.path: shlex.join(map(str, run.summary.get("command") or ())) for run in members
        },
    )
    return write(Path(out), "comparison.html", page, images, _COMPARISON_FIGURES)


def comparison_table(runs: Sequence[Path]) -> list[dict[str, str]]:
    """Returns a row for each group of runs: text by column title, the same columns in every row.

    Raises:
        ConfigError: As `write_comparison`.
    """
    return table(_read_groups(runs))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _read_groups(runs: Sequence[Path]) -> list[Group]:
    if not runs:
        raise ConfigError("there are no runs to compare. Name at least one run's folder.")
    return group_runs([read_run(Path(run)) for run in runs])


def _run_figures(
    run: Run, matrix: Sequence[Sequence[float | None]], own: int, matrices: Mapping[int, Any]
) -> dict[str, bytes]:
    images = {}
    if any(cell is not None for row in matrix for cell in row):
        rows, columns = ("client's own stage", "task, in the order of meeting it")
        labels = (rows, columns) if own else ("after stage", "task")
        images["accuracy_matrix"] = figures.accuracy_matrix(matrix, *labels)
    if curves := task_curves(run):
        images["accuracy_by_task"] = figures.task_curves(curves, seen_curve(run), stage_ends(run))
    differences = {name: run.number(name) for name in DIFFERENCES[:4]}
    if any(value is not None for value in differences.values()):
        images["forgetting"] = figures.forgetting(differences)
    if run.losses:
        images["losses"] = loss_figures.losses(run.losses, stage_ends(run))
    accuracies = client_values(matrices, metrics.average_accuracy)
    losses = client_values(matrices, metrics.forgetting)
    spreads = [
        _spread(run, "average accuracy [%]", "average_accuracy", accuracies),
        _spread(run, "forgetting [pp]", "forgetting", losses),
    ]
    if spreads[0].values:
        images["clients"] = figures.clients([spread for spread in spreads if spread.values])
    above = [float(value) for value in run.summary.get("epsilon_by_stage") or ()]
    if any(map(math.isfinite, above)):
        found = (run.summary.get("audits") or {}).get("canaries", {})
        below = [float(value) for value in found.get("epsilon_lower_by_stage") or ()]
        images["epsilon"] = privacy_figures.bounds(above, below)
    if kinds := payloads(run):
        images["traffic"] = figures.traffic(kinds, run.traffic)
    return images


def _spread(run: Run, label: str, name: str, values: Mapping[int, float]) -> figures.Spread:
    worst = run.number(f"clients.{name}.worst_client")
    return figures.Spread(
        label=label,
        values=values,
        mean=run.number(f"clients.{name}.mean"),
        std=run.number(f"clients.{name}.std"),
        worst=None if worst is None else int(worst),
    )


def _comparison_figures(groups: Sequence[Group]) -> dict[str, bytes]:
    stages, rounds = [], []
    for group in groups:
        by_stage = [
            dict(enumerate(r.summary.get("average_accuracy_by_stage") or ())) for r in group.runs
        ]
        stages.append(_curve(group.label, by_stage))
        rounds.append(_curve(group.label, [seen_curve(run) for run in group.runs]))
    images = {}
    for name, curves, label in (
        ("comparison_stages", stages, "stage"),
        ("comparison_rounds", rounds, "finished rounds"),
    ):
        if shown := [curve for curve in curves if curve.points]:
            images[name] = group_figures.curves(shown, label)
    formulas = DIFFERENCES[:4]
    estimates = {g.label: [g.estimate(name) for name in formulas] for g in groups}
    if any(e.mean is not None for row in estimates.values() for e in row):
        images["comparison_forgetting"] = group_figures.forgetting(formulas, estimates)
    if spendings := _spendings(groups):
        images["comparison_privacy"] = privacy_figures.spending(spendings)
    images["comparison_traffic"] = group_figures.tradeoff([_place(group) for group in groups])
    return images


def _spendings(groups: Sequence[Group]) -> dict[str, list[privacy_figures.Spending]]:
    """Returns the groups that claim an epsilon, by method; empty where none has a finite one."""
    found: dict[str, list[privacy_figures.Spending]] = {}
    for group in groups:
        epsilon = group.estimate("epsilon").mean
        if epsilon is None:
            continue
        accuracy, forgetting = (group.estimate(n) for n in ("average_accuracy", "forgetting"))
        own = found.setdefault(str(group.runs[0].summary["method"]), [])
        own.append(privacy_figures.Spending(epsilon, accuracy, forgetting))
    finite = any(math.isfinite(s.epsilon) for own in found.values() for s in own)
    return found if finite else {}


def _curve(label: str, curves: Sequence[Mapping[int, float | None]]) -> group_figures.Curve:
    """Returns the estimates at the points that every run of the group has."""
    shared = [x for x in curves[0] if all(x in curve for curve in curves)]
    points = {x: estimate(curve[x] for curve in curves) for x in shared}
    return group_figures.Curve(label, points)


def _place(group: Group) -> group_figures.Place:
    both = [(run.number("bytes_up"), run.number("bytes_down")) for run in group.runs]
    sizes = [up + down for up, down in both if up is not None and down is not None]
    return group_figures.Place(group.label, estimate(sizes), group.estimate("average_accuracy"))
