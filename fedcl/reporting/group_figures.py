"""Figures of several groups of runs side by side, as PNG bytes, with the spread over seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedcl.reporting.groups import Estimate
from fedcl.reporting.style import (
    CYCLE,
    DASHES,
    GREY,
    MARKERS,
    WIDTH,
    accuracy_axis,
    page,
    percent,
    png,
    whole_ticks,
)
from fedcl.reporting.text import unit


@dataclass(frozen=True)
class Curve:
    """Estimates of one group along an axis."""

    label: str
    points: Mapping[int, Estimate]


@dataclass(frozen=True)
class Place:
    """One group in the plane of cost and accuracy; bytes up and down, accuracy as a fraction."""

    label: str
    size: Estimate
    accuracy: Estimate


def marking(index: int) -> dict[str, Any]:
    """Returns colour and marker of a group: 21 groups look different, by more than their colour."""
    turn, place = divmod(index, len(CYCLE))
    return {"color": CYCLE[place], "marker": MARKERS[(place + turn) % len(MARKERS)]}


def legend_below(figure: Figure, axes: Axes) -> None:
    """Puts the legend below the figure, in as many columns as its words leave room for."""
    handles, labels = axes.get_legend_handles_labels()
    wrapped = ["\n".join(textwrap.wrap(label, 44)) for label in labels]
    columns = 3 if max(map(len, labels), default=0) <= 24 else 2
    figure.legend(handles, wrapped, loc="outside lower center", ncols=columns)


@png
def curves(groups: Sequence[Curve], xlabel: str) -> Figure:
    """Draws average accuracy along stages or rounds, with a band of one standard deviation."""
    figure = page(WIDTH, 4.0 + 0.2 * len(groups))
    axes = figure.add_subplot()
    for index, group in enumerate(groups):
        x = np.array(list(group.points))
        mean = np.array(percent(point.mean for point in group.points.values()))
        std = np.array(percent(point.std for point in group.points.values()))
        style = marking(index) | {"linestyle": DASHES[index // len(CYCLE) % len(DASHES)]}
        every = max(1, len(x) // 10)
        axes.plot(x, mean, label=group.label, markersize=5, markevery=every, **style)
        axes.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.16, linewidth=0)
    accuracy_axis(axes)
    axes.set(xlabel=xlabel, ylabel="accuracy, mean over\ntasks met so far [%]")
    whole_ticks(axes)
    legend_below(figure, axes)
    return figure


@png
def forgetting(names: Sequence[str], groups: Mapping[str, Sequence[Estimate]]) -> Figure:
    """Draws a panel for each formula and in it a bar for each group, in percentage points.

    Args:
        names: Names of the formulas.
        groups: An estimate for each formula, by the group's label.
    """
    figure = page(WIDTH, 1.2 + 0.45 * len(groups))
    figure.set_layout_engine("constrained", wspace=0.04)
    panels = figure.subplots(1, len(names), sharey=True, sharex=False, squeeze=False).flat
    for column, (axes, name) in enumerate(zip(panels, names, strict=True)):
        for row, estimates in enumerate(groups.values()):
            known = estimates[column]
            if known.mean is None:
                axes.annotate(
                    "n/a", (0, row), xytext=(4, 0), textcoords="offset points", va="center"
                )
                continue
            width, std = 100 * known.mean, None if known.std is None else 100 * known.std
            axes.barh(row, width, 0.62, color=marking(row)["color"], alpha=0.85)
            if std is not None:
                axes.errorbar(width, row, xerr=std, color="black", capsize=3, linewidth=1.1)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set_title(name, size=8.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    labels = ["\n".join(textwrap.wrap(label, 30)) for label in groups]
    panels[0].set_yticks(range(len(groups)), labels)
    panels[0].set_ylim(len(groups) - 0.4, -0.6)
    figure.supxlabel("percentage points", size=9.5)
    return figure


@png
def tradeoff(places: Sequence[Place]) -> Figure:
    """Draws final average accuracy against the bytes of the whole run."""
    figure = page(WIDTH, 3.6 + 0.2 * len(places))
    axes = figure.add_subplot()
    sizes = [place.size.mean for place in places if place.size.mean]
    factor, name = unit(max(sizes, default=1))
    for index, place in enumerate(places):
        if place.size.mean is None or place.accuracy.mean is None:
            continue
        axes.errorbar(
            place.size.mean / factor,
            100 * place.accuracy.mean,
            xerr=None if place.size.std is None else place.size.std / factor,
            yerr=None if place.accuracy.std is None else 100 * place.accuracy.std,
            label=place.label,
            linestyle="none",
            markersize=8,
            capsize=3,
            **marking(index),
        )
    if sizes and max(sizes) > 10 * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    else:
        axes.set_xlim(0, 1.1 * max(sizes, default=1) / factor)
    accuracy_axis(axes)
    axes.set(xlabel=f"traffic of the whole run, up and down [{name}]")
    axes.set_ylabel("average accuracy [%]")
    legend_below(figure, axes)
    return figure
