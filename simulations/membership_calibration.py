"""Do membership attacks find nothing where nothing is, and nearly all that is known by heart?

Run: python simulations/membership_calibration.py [--seeds 0 1 2] [--shuffles 200]

The repeats of `forgetting_and_membership` (finetune, after the first task) are attacked with coins
that were thrown anew, again and again: what they tell of those has nothing to do with the repeats,
so that areas must scatter about one half, and rates of true positives about those of false ones.
Then a network learns made-up data by heart whose classes overlap, and its own coins must show.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from forgetting_and_membership import COMMON, CONFIG, ROWS, SMOKE
from runner import Cell, arguments, summary_of, work
from study_tables import show

from fedcl.auditing.leakage import auc, tpr_at_fpr
from fedcl.auditing.targets import STATISTICS, coins, scores
from fedcl.auditing.targets import Cell as Told

OVERFITTED: Mapping[str, Any] = {
    "dataset": {
        "name": "synthetic",
        "classes": 4,
        "features": [1, 8, 8],
        "train": 400,
        "test": 400,
        "spread": 0.15,
    },
    "stream.tasks": 1,
    "model.hidden": [256],
    "training.local": {"name": "sgd", "epochs": 30, "batch_size": 16, "lr": 0.2},
}
RATES = (0.01, 0.001)


def main(words: list[str]) -> None:
    """Runs what is not finished yet, and prints both tables."""
    parser = arguments(__doc__ or "", "membership_calibration")
    parser.add_argument("--shadows", type=int, default=32, help="repeats of each run")
    parser.add_argument("--shuffles", type=int, default=200, help="how often coins are thrown anew")
    args = parser.parse_args(words)
    if args.smoke:
        small = {**SMOKE, "stream.tasks": 1}
        with tempfile.TemporaryDirectory() as folder:
            study(Path(folder), [0], 8, 3, small)
        return
    study(args.out, args.seeds, args.shadows, args.shuffles, {})


def study(
    out: Path, seeds: Sequence[int], shadows: int, shuffles: int, changes: Mapping[str, Any]
) -> None:
    """Runs the repeats, and attacks them with new coins and with their own."""
    audit = [{"name": "membership", "shadows": shadows, "records": 0, "keep": True}]
    common = {**COMMON, **ROWS["finetune"], "audit": audit}
    usual = [Cell(f"usual-{s}", CONFIG, {**common, **changes, "seed": s}) for s in seeds]
    fitted = [
        Cell(f"overfitted-{s}", CONFIG, {**common, **OVERFITTED, **changes, "seed": s})
        for s in seeds
    ]
    work([*usual, *fitted], out)
    if any(summary_of(cell, out) is None for cell in (*usual, *fitted)):
        return
    nothing(_cells(usual, out), shuffles, out)
    everything(_cells(fitted, out), out)


def _cells(cells: Sequence[Cell], out: Path) -> list[Told]:
    """Returns what all repeats say of the first task's records after the first stage."""
    arrays = [np.load(out / cell.name / "audit" / "membership_cells.npz") for cell in cells]
    parts = ("margins", "members", "population")
    return [Told(*(one[f"{part}_0_0"] for part in parts)) for one in arrays]


def nothing(cells: Sequence[Told], shuffles: int, out: Path) -> None:
    """Prints what attacks find of coins that the repeats never saw."""
    lines = []
    for statistic in STATISTICS:
        areas, beyond, rates = [], 0, {rate: list[float]() for rate in RATES}
        for shuffle in range(shuffles):
            told, flags = [], []
            for number, cell in enumerate(cells):
                runs, records = cell.margins.shape
                fresh = coins(runs, records, shuffle * len(cells) + number)
                told.append(scores(Told(cell.margins, fresh, cell.population), statistic).ravel())
                flags.append(fresh.ravel())
            found, own = np.concatenate(told), np.concatenate(flags)
            areas.append(auc(found, own))
            beyond += abs(areas[-1] - 0.5) > 3 * _error(own)
            for rate in RATES:
                value = tpr_at_fpr(found, own, rate).value
                rates[rate] += [] if value is None else [100 * value]
        mean, spread = np.mean(areas), np.std(areas, ddof=1)
        line = [statistic, str(shuffles), f"{mean:.4f} ± {spread / math.sqrt(shuffles):.4f}"]
        line += [f"{spread:.4f}", f"{_error(own):.4f}", f"{100 * beyond / shuffles:.1f}"]
        lines.append([*line, *(_mean(rates[rate]) for rate in RATES)])
    headings = ["attack", "shuffles", "mean area ± error", "spread", "of independent scores"]
    headings += ["beyond 3 of these %", "TPR at 1 % FPR %", "TPR at 0.1 % FPR %"]
    show("Coins that the repeats never saw", headings, lines, out, "nothing.md")


def everything(cells: Sequence[Told], out: Path) -> None:
    """Prints what attacks find of what was learnt by heart."""
    lines = []
    for statistic in STATISTICS:
        found = [scores(cell, statistic).ravel() for cell in cells]
        own = [cell.members.ravel() for cell in cells]
        areas = [auc(told, flags) for told, flags in zip(found, own, strict=True)]
        told, flags = np.concatenate(found), np.concatenate(own)
        rates = [tpr_at_fpr(told, flags, rate).value for rate in RATES]
        lines.append(
            [
                statistic,
                f"{min(areas):.3f} to {max(areas):.3f}",
                *("n/a" if rate is None else f"{100 * rate:.1f}" for rate in rates),
                str(int((~flags).sum())),
            ]
        )
    headings = ["attack", "areas of the seeds", "TPR at 1 % FPR %", "TPR at 0.1 % FPR %"]
    show("Learnt by heart", [*headings, "negatives"], lines, out, "everything.md")


def _error(members: np.ndarray) -> float:
    """Returns the standard error of an area over independent scores without a difference."""
    inside, outside = int(members.sum()), int((~members).sum())
    return math.sqrt((len(members) + 1) / (12 * inside * outside))


def _mean(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "n/a"
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
