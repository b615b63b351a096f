"""What does forgetting do for privacy? Who forgets a task, and does its membership fade with it?

Run: python simulations/forgetting_and_membership.py [--seeds 0 1 2] [--shadows 32] [--plot FILE]

Split digits, class-incremental, five tasks, five clients. Each run is repeated, each repeat holding
every training record with probability one half, and each repeat attacked by all others (audit
`membership`). The seeds' targets are pooled: 0.1 % of false positives takes 10,000 negatives.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from runner import Cell, arguments, summary_of, work
from study_tables import show

from fedcl.auditing.targets import STATISTICS, pooled
from fedcl.auditing.targets import Cell as Told
from fedcl.reporting.group_figures import legend_below, marking
from fedcl.reporting.style import WIDTH, page, png

CONFIG = "private_digits.toml"
NOISY = {"name": "central_dp", "clip": 1.0, "noise_multiplier": 0.3, "delta": 1e-3}
ROWS: Mapping[str, Mapping[str, Any]] = {
    "finetune": {"method": {"name": "fedavg"}, "channel": []},
    "replay": {"method": {"name": "replay"}, "channel": []},
    "fot": {"method": {"name": "fot"}, "channel": []},
    "replay, client-level DP": {"method": {"name": "replay"}, "channel": [NOISY]},
}
COMMON: Mapping[str, Any] = {
    "stream.clients": 5,
    "model.hidden": [64],
    "training.rounds": 8,
    "training.cohort": 0,
    "training.sampling": "fixed",
    "training.local": {"name": "sgd", "epochs": 8, "batch_size": 16, "lr": 0.1},
}
SMOKE: Mapping[str, Any] = {
    "dataset": {"name": "synthetic", "classes": 4, "features": [1, 4, 4], "train": 80, "test": 40},
    "stream.tasks": 2,
    "training.rounds": 1,
}
Judged = Mapping[str, float | int | None]


def main(words: list[str]) -> None:
    """Runs what is not finished yet, and prints and draws what there is."""
    parser = arguments(__doc__ or "", "forgetting_and_membership")
    parser.add_argument("--shadows", type=int, default=32, help="repeats of each run")
    parser.add_argument("--plot", type=Path, help="file of the figure")
    parser.add_argument("--only-table", action="store_true", help="of what is finished")
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            cells = planned([0], 8, SMOKE)
            work([cell for own in cells.values() for cell in own], Path(folder))
            table(cells, Path(folder), Path(folder) / "figure.png")
        return
    cells = planned(args.seeds, args.shadows, {})
    if not args.only_table:
        # Seed by seed, so that every row has something to show early.
        work([own[k] for k in range(len(args.seeds)) for own in cells.values()], args.out)
    table(cells, args.out, args.plot)


def planned(
    seeds: Sequence[int], shadows: int, changes: Mapping[str, Any]
) -> dict[str, list[Cell]]:
    """Returns the runs of each row, one for each seed."""
    audit = [{"name": "membership", "shadows": shadows, "records": 0, "keep": True}]
    return {
        name: [
            Cell(
                f"{name.replace(', ', '_').replace(' ', '_')}-{seed}",
                CONFIG,
                {**COMMON, **own, **changes, "seed": seed, "audit": audit},
            )
            for seed in seeds
        ]
        for name, own in ROWS.items()
    }


def table(cells: Mapping[str, Sequence[Cell]], out: Path, plot: Path | None) -> None:
    """Prints how the first task's records leak after each stage, and draws it."""
    lines, curves = [], {}
    for name, own in cells.items():
        done = [cell for cell in own if summary_of(cell, out) is not None]
        if not done:
            continue
        curves[name] = found = judged_stages(done, out)
        for stage, results in enumerate(found):
            rates = [results["lira"][key] for key in ("tpr_1", "tpr_01")]
            known, other = (share(done, out, stage, f"accuracy_{w}") for w in ("members", "others"))
            areas = [f"{_area(results[statistic])}" for statistic in STATISTICS]
            told = ["n/a" if rate is None else f"{100 * rate:.2f}" for rate in rates]
            negatives = str(results["lira"]["negatives"])
            learnt = f"{100 * known:.1f} / {100 * other:.1f}"
            lines.append([name, str(stage + 1), learnt, *areas, *told, negatives, str(len(done))])
    headings = ["method", "after task", "accuracy of members / others %"]
    headings += [f"AUC {statistic}" for statistic in STATISTICS]
    headings += ["LiRA TPR@1% %", "TPR@0.1% %", "negatives", "seeds"]
    show("Membership of the first task's records", headings, lines, out)
    if plot is not None and curves:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_bytes(drawn(curves))


def judged_stages(cells: Sequence[Cell], out: Path) -> list[dict[str, Judged]]:
    """Returns the attacks' results on the first task's records after each stage, seeds pooled."""
    arrays = [np.load(out / cell.name / "audit" / "membership_cells.npz") for cell in cells]
    stages = sum(name.startswith("margins_") and name.endswith("_0") for name in arrays[0].files)
    found: list[dict[str, Judged]] = []
    for stage in range(stages):
        told = [
            Told(*(one[f"{part}_{stage}_0"] for part in ("margins", "members", "population")))
            for one in arrays
        ]
        found.append({statistic: pooled(told, statistic, seed=stage) for statistic in STATISTICS})
    return found


def share(cells: Sequence[Cell], out: Path, stage: int, column: str) -> float:
    """Returns a mean over seeds of a column of the audit's table, for the first task."""
    values = []
    for cell in cells:
        with (out / cell.name / "audit" / "membership.csv").open(encoding="utf-8") as file:
            row = next(
                r for r in csv.DictReader(file) if (r["stage"], r["task"]) == (str(stage), "0")
            )
        values.append(float(row[column]))
    return float(np.mean(values))


@png
def drawn(curves: Mapping[str, Sequence[Mapping[str, Judged]]]) -> Figure:
    """Draws the areas of two attacks on the first task's records after each stage."""
    figure = page(WIDTH, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, statistic in zip(panels, ("lira", "rmia"), strict=True):
        for index, (name, found) in enumerate(curves.items()):
            areas = np.array(
                [[r[statistic][k] for k in ("auc", "auc_low", "auc_high")] for r in found],
                dtype=np.float64,
            )
            stages = np.arange(1, len(areas) + 1)
            bars = np.abs(areas[:, 1:] - areas[:, :1]).T
            axes.errorbar(stages, areas[:, 0], yerr=bars, label=name, capsize=3, **marking(index))
        axes.axhline(0.5, color="black", linewidth=0.8)
        axes.set(title=statistic.upper(), xlabel="after task", xticks=stages)
    panels[0].set_ylabel("AUC of membership, task 1")
    legend_below(figure, panels[0])
    return figure


def _area(found: Judged) -> str:
    return f"{found['auc']:.3f} ({found['auc_low']:.3f} to {found['auc_high']:.3f})"


if __name__ == "__main__":
    main(sys.argv[1:])
