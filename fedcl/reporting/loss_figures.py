"""The figure of where a run forgets: in local training or in aggregation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedcl.decomposition import Loss, Losses, mean
from fedcl.reporting.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    WIDTH,
    page,
    percent,
    png,
    stage_borders,
    whole_ticks,
)

_HALVES = (("local update", ORANGE), ("aggregation", BLUE))


@png
def losses(found: Losses, ends: Sequence[int]) -> Figure:
    """Draws what a round loses on old tasks: each round over all tasks, each task over all rounds.

    Args:
        found: Losses by old task and round.
        ends: Last round of each stage.
    """
    figure = page(WIDTH, 5.4)
    rounds, tasks = figure.subplots(2, height_ratios=(3, 2))
    numbers = sorted({number for task in found.values() for number in task})
    old = [[task[number] for task in found.values() if number in task] for number in numbers]
    stage_borders(rounds, ends)
    _over_rounds(rounds, numbers, [mean(parts) for parts in old])
    rounds.set(xlabel="finished rounds", xlim=(-0.01 * ends[-1], 1.015 * max(ends[-1], 1)))
    whole_ticks(rounds)
    _by_task(tasks, list(found), [mean(task.values()) for task in found.values()])
    for axes in (rounds, tasks):
        axes.axhline(0, color=GREY, linewidth=1, zorder=1.5)
        axes.set_ylabel("lost in a round [pp]")
    rounds.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _over_rounds(axes: Axes, numbers: Sequence[int], means: Sequence[Loss]) -> None:
    few = "o" if len(numbers) <= 100 else ""
    for half, (label, colour) in enumerate(_HALVES):
        lost = percent(float(loss[half]) for loss in means)
        axes.fill_between(numbers, 0, lost, color=colour, alpha=0.2, linewidth=0)
        axes.plot(numbers, lost, color=colour, marker=few, ms=3, label=label)
    total = percent(float(loss.total) for loss in means)
    axes.plot(numbers, total, color=BLACK, marker=few, ms=3, label="total")


def _by_task(axes: Axes, tasks: Sequence[int], means: Sequence[Loss]) -> None:
    places = np.arange(len(tasks))
    for half, (_, colour) in enumerate(_HALVES):
        heights = percent(float(loss[half]) for loss in means)
        axes.bar(places + (half - 0.5) * 0.36, heights, 0.34, color=colour)
    total = percent(float(loss.total) for loss in means)
    axes.scatter(places, total, color=BLACK, marker="D", s=30, zorder=3)
    axes.set_xticks(places, [str(task) for task in tasks])
    axes.set(xlabel="old task", xlim=(-0.7, len(tasks) - 0.3))
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
