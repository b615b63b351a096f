"""One run's figures as PNG bytes; axes are labelled with units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedcl.reporting.style import (
    BLUE,
    CYCLE,
    GREY,
    MARKERS,
    ORANGE,
    PALE,
    RED,
    WIDTH,
    accuracy_axis,
    page,
    percent,
    png,
    stage_borders,
    whole_ticks,
)
from fedcl.reporting.text import decimal, unit, volume


@dataclass(frozen=True)
class Spread:
    """One metric over clients, as fractions.

    Attributes:
        label: Name of the metric with its unit.
        values: The metric by client id.
        mean: Mean over clients.
        std: Standard deviation over clients.
        worst: Id of the worst client; None when unknown.
    """

    label: str
    values: Mapping[int, float]
    mean: float | None
    std: float | None
    worst: int | None


@png
def accuracy_matrix(matrix: Sequence[Sequence[float | None]], rows: str, columns: str) -> Figure:
    """Draws a heat map; cells that were not evaluated are hatched, never zero.

    Args:
        matrix: Accuracies in [0, 1], rows stages, columns tasks.
        rows: Label of the vertical axis.
        columns: Label of the horizontal axis.
    """
    height, width = len(matrix), max(map(len, matrix))
    values = np.full((height, width), np.nan)
    for i, row in enumerate(matrix):
        values[i, : len(row)] = percent(row)
    small = width > 10
    figure = page(min(1.9 + 1.1 * width, WIDTH), 1.1 + (0.34 if small else 0.55) * height)
    axes = figure.add_subplot()
    axes.grid(visible=False)
    axes.set_facecolor("#f3f4f6")
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    bar = figure.colorbar(image, ax=axes, label="accuracy [%]", pad=0.02, aspect=28)
    bar.outline.set_visible(False)
    size = 7.0 if small else 9.5
    for i, j in np.ndindex(height, width):
        value = values[i, j]
        text, colour = ("–", GREY) if np.isnan(value) else (f"{value:.1f}", "white")
        colour = "black" if value > 47 else colour
        weight = "bold" if i == j else "normal"
        if width <= 25:
            axes.text(j, i, text, ha="center", va="center", color=colour, size=size, weight=weight)
    axes.set(xlabel=columns, ylabel=rows, xticks=range(width), yticks=range(height))
    axes.set_xticks(np.arange(0.5, width - 1), minor=True)
    axes.set_yticks(np.arange(0.5, height - 1), minor=True)
    axes.grid(visible=True, which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return figure


@png
def task_curves(
    curves: Mapping[int, Mapping[int, float]],
    mean: Mapping[int, float],
    ends: Sequence[int],
) -> Figure:
    """Draws the accuracy of each task over rounds; a task is dotted before its own stage.

    Args:
        curves: Accuracy by task and finished rounds.
        mean: Mean over the tasks met so far; empty when the clients' orders differ.
        ends: Last round of each stage.
    """
    if len(curves) > 6:
        return _small_multiples(curves, ends, learnt=bool(mean))
    figure = page(WIDTH, 4.0)
    axes = figure.add_subplot()
    stage_borders(axes, ends)
    for (task, curve), colour, marker in zip(curves.items(), CYCLE, MARKERS, strict=False):
        start = ends[task - 1] if mean and 0 < task < len(ends) else 0
        style: dict[str, Any] = {"color": colour, "markevery": max(1, len(curve) // 12)}
        x, y = np.array(list(curve)), np.array(percent(curve.values()))
        axes.plot(x[x <= start], y[x <= start], linestyle=(0, (1, 2)), linewidth=1.2, color=colour)
        axes.plot(x[x >= start], y[x >= start], marker=marker, ms=4, label=f"task {task}", **style)
    if mean and len(curves) > 1:
        axes.plot(list(mean), percent(mean.values()), color="#aab2bd", linewidth=5,
                  label="mean of tasks\nmet so far", zorder=1.5)  # fmt: skip
    accuracy_axis(axes)
    axes.set(xlabel="finished rounds", xlim=(-0.01 * ends[-1], 1.015 * max(ends[-1], 1)))
    whole_ticks(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _small_multiples(
    curves: Mapping[int, Mapping[int, float]], ends: Sequence[int], learnt: bool
) -> Figure:
    columns = 5 if len(curves) > 12 or len(curves) % 5 == 0 else 4
    rows = math.ceil(len(curves) / columns)
    figure = page(WIDTH, 0.7 + 1.35 * rows)
    figure.set_layout_engine("constrained", wspace=0.05)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (task, curve) in zip(panels.flat, curves.items(), strict=False):
        for other in curves.values():
            axes.plot(list(other), percent(other.values()), color=PALE, linewidth=0.6)
        if learnt and task < len(ends):
            axes.axvspan(ends[task - 1] if task else 0, ends[task], color=ORANGE, alpha=0.25, lw=0)
        axes.plot(list(curve), percent(curve.values()), color=BLUE)
        axes.set(ylim=(0, 101), xlim=(0, max(ends[-1], 1)))
        axes.set_title(f"task {task}", size=9, pad=3)
        whole_ticks(axes, 4)
    for place, axes in enumerate(panels.flat):
        axes.tick_params(labelbottom=place >= len(curves) - columns)
        axes.set_visible(place < len(curves))
    figure.supxlabel("finished rounds", size=9.5)
    figure.supylabel("accuracy [%]", size=9.5)
    return figure


@png
def forgetting(values: Mapping[str, float | None]) -> Figure:
    """Draws one bar for each formula, in percentage points; a formula without a value says n/a.

    Args:
        values: Differences of accuracies, as fractions, by the name of the formula.
    """
    figure = page(WIDTH, 0.75 + 0.42 * len(values))
    axes = figure.add_subplot()
    widths = percent(values.values())
    finite = [0.0, *(width for width in widths if math.isfinite(width))]
    reach = max(max(finite) - min(finite), 1.0)
    for row, width in enumerate(widths):
        known = math.isfinite(width)
        axes.barh(row, width if known else 0, height=0.6, color=RED if row < 3 else BLUE)
        text = decimal(width) if known else "n/a"
        left = known and width < 0
        axes.annotate(
            text,
            (width if known else 0, row),
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            va="center",
            ha="right" if left else "left",
        )
    axes.set(xlim=(min(finite) - 0.13 * reach, max(finite) + 0.13 * reach))
    axes.set(xlabel="difference of accuracies [percentage points]", ylim=(len(values) - 0.4, -0.6))
    axes.set_yticks(range(len(values)), list(values))
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure


@png
def clients(spreads: Sequence[Spread]) -> Figure:
    """Draws one panel a metric: every client, the mean with its spread, and the worst client.

    All panels have the clients in one order, that of the first metric.
    """
    first = spreads[0].values
    ranked = sorted(first, key=lambda client: first[client])
    figure = page(WIDTH, 0.8 + 2.3 * len(spreads))
    panels = figure.subplots(len(spreads), sharex=True, squeeze=False).flat
    for axes, spread in zip(panels, spreads, strict=True):
        _spread(axes, spread, ranked)
    few = len(ranked) <= 40
    axes.set_xlabel("client" if few else "rank of the client")
    if few:
        axes.set_xticks(range(len(ranked)), [str(client) for client in ranked], size=8)
    return figure


def _spread(axes: Axes, spread: Spread, ranked: Sequence[int]) -> None:
    places = [place for place, client in enumerate(ranked) if client in spread.values]
    known = [ranked[place] for place in places]
    heights = percent(spread.values[client] for client in known)
    if spread.mean is not None:
        mean, std = 100 * spread.mean, 100 * (spread.std or 0)
        axes.axhspan(mean - std, mean + std, color=BLUE, alpha=0.12, lw=0, label="± 1 std. dev.")
        axes.axhline(mean, color=BLUE, linewidth=1.4, label=f"mean {decimal(mean)}")
    size = 28 if len(ranked) <= 40 else 9
    axes.scatter(places, heights, color="#4b5563", s=size, zorder=3)
    if spread.worst in known:
        at = known.index(spread.worst)
        label = f"worst: client {spread.worst}, {decimal(heights[at])}"
        axes.scatter(places[at], heights[at], c=RED, s=70, marker="D", zorder=4, label=label)
    axes.set_ylabel(spread.label)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)


@png
def traffic(names: Sequence[str], flows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draws the bytes of the whole run by kind of payload.

    Args:
        names: Kinds from top to bottom.
        flows: Bytes by kind, `up` from the clients and `down` to them.
    """
    top = max(1, *(size for flow in flows.values() for size in flow.values()))
    factor, name = unit(top)
    figure = page(WIDTH, 0.9 + 0.62 * len(names))
    axes = figure.add_subplot()
    for offset, flow, colour, label in (
        (-0.19, flows.get("up", {}), BLUE, "up (from the clients)"),
        (0.19, flows.get("down", {}), ORANGE, "down (to the clients)"),
    ):
        rows = [row + offset for row, kind in enumerate(names) if kind in flow]
        widths = [flow[kind] for kind in names if kind in flow]
        bars = axes.barh(rows, [w / factor for w in widths], 0.34, color=colour, label=label)
        axes.bar_label(bars, [volume(width) for width in widths], padding=4)
    axes.set(xlabel=f"traffic of the whole run [{name}]", xlim=(0, 1.14 * top / factor))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure
