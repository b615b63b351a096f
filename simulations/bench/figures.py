"""Figures of the engine studies, in fedcl's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.parts import PARTS
from bench.speed import Speeds
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from fedcl.reporting.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    MARKERS,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    page,
    png,
)

_COLOURS = {
    "serial": SKY,
    "vectorized": BLUE,
    "ray": GREEN,
    "grid": PURPLE,
    "flower": RED,
    "pfl": ORANGE,
    "plain loop": BLACK,
}
_PART_COLOURS = (BLUE, SKY, GREEN, ORANGE, PURPLE, RED, BLACK, GREY)
_PLAIN = FuncFormatter(lambda value, _: f"{value:,.10g}")


@png
def updates_per_second(speeds: Speeds, title: str) -> Figure:
    """Draws updates per second over the cohort's size, one panel a model, with the range."""
    models = list(dict.fromkeys(model for _, model, _ in speeds.found))
    figure = page(WIDTH, 4.2)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        for engine in speeds.engines(model):
            points = [
                (cohort, found)
                for cohort in speeds.cohorts()
                if (found := speeds.spread(engine, model, cohort, "updates_per_second"))
            ]
            middle = [found.median for _, found in points]
            below = [found.median - found.lowest for _, found in points]
            above = [found.highest - found.median for _, found in points]
            panel.errorbar(
                [cohort for cohort, _ in points],
                middle,
                yerr=[below, above],
                label=engine,
                color=_COLOURS[engine],
                marker=MARKERS[list(_COLOURS).index(engine)],
                markersize=4.5,
                capsize=2,
                linestyle="dashed" if engine == "plain loop" else "solid",
            )
        panel.set(xscale="log", yscale="log", title=model, xlabel="clients of a round")
        _plain_numbers(panel)
    panels[0].set_ylabel("client updates per second")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    figure.suptitle(title, fontsize=9, color=GREY, x=0.01, ha="left")
    return figure


def _plain_numbers(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PLAIN)
        axis.set_minor_formatter(NullFormatter())


@png
def round_parts(rounds: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Draws where a round's time goes: one bar a measurement, in percent of its round.

    Args:
        rounds: Seconds by part, by the measurement's name.
        title: What it was measured with.
    """
    figure = page(WIDTH, 1.3 + 0.5 * len(rounds))
    axes = figure.subplots()
    names = list(rounds)
    left = [0.0] * len(names)
    for part, colour in zip(PARTS, _PART_COLOURS, strict=True):
        wide = [100 * rounds[name][part] / sum(rounds[name].values()) for name in names]
        axes.barh(names, wide, left=left, color=colour, label=part, height=0.62)
        for place, (start, width) in enumerate(zip(left, wide, strict=True)):
            if width >= 6:
                axes.annotate(
                    f"{width:.0f} %",
                    (start + width / 2, place),
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=8.5,
                )
        left = [start + width for start, width in zip(left, wide, strict=True)]
    axes.set(xlim=(0, 100), xlabel="share of a round [%]", title=title)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside right center")
    return figure


@png
def registered_clients(
    clients: Sequence[int],
    milliseconds: Mapping[int, Sequence[float]],
    megabytes: Mapping[int, Sequence[float]],
    cohort: int,
) -> Figure:
    """Draws round time and memory over the number of registered clients."""
    figure = page(WIDTH, 3.8)
    panels = figure.subplots(1, 2)
    for panel, values, label, colour in (
        (panels[0], milliseconds, "time of a round [ms]", BLUE),
        (panels[1], megabytes, "most memory of the process [MB]", RED),
    ):
        ordered = [sorted(values[count]) for count in clients]
        middle = [one[len(one) // 2] for one in ordered]
        panel.fill_between(
            clients, [o[0] for o in ordered], [o[-1] for o in ordered], color=colour, alpha=0.15
        )
        panel.plot(clients, middle, marker="o", color=colour)
        for count, value in zip(clients, middle, strict=True):
            panel.annotate(
                f"{value:,.0f}",
                (count, value),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
            )
        top = 1.25 * max(o[-1] for o in ordered)
        panel.set(xscale="log", ylim=(0, top), xlabel="registered clients", title=label)
        panel.xaxis.set_major_formatter(_PLAIN)
        panel.xaxis.set_minor_formatter(NullFormatter())
    figure.suptitle(f"{cohort} clients a round", fontsize=9, color=GREY, x=0.01, ha="left")
    return figure


@png
def memory_over_rounds(
    samples: Mapping[str, Sequence[tuple[int, float]]], slopes: Mapping[str, float]
) -> Figure:
    """Draws how the memory of all processes grows, one line a run, named with its slope."""
    figure = page(WIDTH, 3.8)
    axes = figure.subplots()
    for index, (name, points) in enumerate(samples.items()):
        colour = (BLUE, GREEN, RED, ORANGE)[index % 4]
        rounds, sizes = zip(*points, strict=True)
        named = f"{name}: {sizes[0]:,.0f} MB, {slopes[name]:+.2f} MB in 100 rounds"
        axes.plot(rounds, [size - sizes[0] for size in sizes], color=colour, label=named)
    axes.set(
        xlabel="rounds",
        ylabel="more than at first [MB]",
        title="memory of all processes over a long run; slopes of the last half",
    )
    axes.legend(loc="best")
    return figure
