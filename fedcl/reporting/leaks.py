"""The leak matrix of a run: read from its audit's table, and drawn."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedcl.reporting.results import Matrix, damage
from fedcl.reporting.style import GREY, WIDTH, page, png

TABLES = ("audit/membership.csv", "audited/audit/membership.csv")
FloatArray = npt.NDArray[np.float64]
TITLES = {"lira": "LiRA", "rmia": "RMIA", "loss": "confidence alone"}


@dataclass(frozen=True)
class Leak:
    """What one attack tells of a task's records after the last stage.

    Attributes:
        task: The task.
        attack: The attack, as it is called in text.
        area: Area under the curve.
        interval: Its interval; None where the table has none.
        rate: Rate of true positives at 1 % of false positives; None with too few negatives.
        low_rate: The same at 0.1 %.
        negatives: Records that were no members, over all targets.
    """

    task: int
    attack: str
    area: float
    interval: tuple[float, float] | None
    rate: float | None
    low_rate: float | None
    negatives: int


@dataclass(frozen=True)
class Leaks:
    """Areas under the curve by attack; rows stages, columns tasks, None before a task is met.

    Attributes:
        areas: By attack.
        rates: Rates of true positives at 1 % of false positives, by attack.
        negatives: Least and largest number of records of a cell that were no members.
        last: Each task and attack after the last stage.
    """

    areas: dict[str, Matrix]
    rates: dict[str, Matrix]
    negatives: tuple[int, int]
    last: tuple[Leak, ...] = ()


def read_leaks(run: Path) -> Leaks | None:
    """Returns what the audit `membership` found in a run or in its audited repeat, or None.

    Raises:
        ConfigError: The table is damaged.
    """
    name = next((name for name in TABLES if (run / name).is_file()), None)
    if name is None:
        return None
    try:
        with (run / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        stages, tasks = (1 + max(int(row[key]) for row in rows) for key in ("stage", "task"))
        names = dict.fromkeys(row["statistic"] for row in rows)
        areas, rates = (
            {name: _empty(stages, tasks) for name in names},
            {name: _empty(stages, tasks) for name in names},
        )
        for row in rows:
            stage, task = int(row["stage"]), int(row["task"])
            areas[row["statistic"]][stage][task] = float(row["auc"])
            rates[row["statistic"]][stage][task] = _number(row, "tpr_1")
        counts = [int(row["negatives"]) for row in rows]
        last = [_leak(row) for row in rows if int(row["stage"]) == stages - 1]
    except (KeyError, ValueError, TypeError) as error:
        raise damage(run, name, f"cannot be read ({error})") from error
    ordered = sorted(last, key=lambda leak: leak.task)  # stable: attacks stay in their order
    return Leaks(areas, rates, (min(counts), max(counts)), tuple(ordered))


def _number(row: Mapping[str, str], column: str) -> float | None:
    return float(row[column]) if row.get(column) else None


def _leak(row: Mapping[str, str]) -> Leak:
    low, high = _number(row, "auc_low"), _number(row, "auc_high")
    return Leak(
        int(row["task"]),
        TITLES.get(row["statistic"], row["statistic"]),
        float(row["auc"]),
        None if low is None or high is None else (low, high),
        _number(row, "tpr_1"),
        _number(row, "tpr_01"),
        int(row["negatives"]),
    )


def _empty(stages: int, tasks: int) -> Matrix:
    return [[None] * tasks for _ in range(stages)]


@png
def leak_matrix(leaks: Leaks) -> Figure:
    """Draws the areas of each attack as a heat map, with the rate of true positives below.

    Colours run from no leak, .5, to the largest area of all; what is below .5 is as pale as .5.

    Args:
        leaks: What was found.
    """
    first = next(iter(leaks.areas.values()))
    count, height, width = len(leaks.areas), len(first), len(first[0])
    known = [a for m in leaks.areas.values() for row in m for a in row if a is not None]
    top = max(0.55, *known)
    # One attack below the other where the cells would be too narrow for their numbers.
    rows, columns = (count, 1) if width > 6 else (1, count)
    tall = 0.9 + (0.46 if width <= 10 else 0.32) * height
    figure = page(WIDTH, 0.3 + rows * tall)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, matrix) in zip(panels, leaks.areas.items(), strict=True):
        values: FloatArray = np.array(matrix, dtype=np.float64)
        axes.grid(visible=False)
        axes.set_facecolor("#f3f4f6")
        image = axes.imshow(values, cmap="Oranges", vmin=0.5, vmax=top, aspect="auto")
        axes.set_title(TITLES.get(name, name), size=10)
        _write(axes, values, leaks.rates[name], top)
        axes.set(xlabel="records of task", ylabel="after stage")
        axes.set(xticks=range(width), yticks=range(height))
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=list(panels), label="AUC of membership", pad=0.02, aspect=28)
    bar.outline.set_visible(False)
    return figure


def _write(axes: Axes, values: FloatArray, rates: Matrix, top: float) -> None:
    """Writes areas into their cells, and below them rates where there is room."""
    small = values.shape[1] > 6
    for i, j in np.ndindex(*values.shape):
        value, rate = values[i, j], rates[i][j]
        text, colour = ("–", GREY) if np.isnan(value) else (f"{value:.3f}", "black")
        if value > 0.5 + 0.65 * (top - 0.5):
            colour = "white"
        if rate is not None and not small:
            text += f"\n{100 * rate:.1f} %"
        if values.shape[1] <= 16:
            weight = "bold" if i == j else "normal"
            axes.text(j, i, text, ha="center", va="center", color=colour, size=7, weight=weight)
