"""The study of all methods: which runs it has, and its tables and figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from all_rows import LIGHT, MOST, PARTITION, ROWS, SETTINGS, SMOKE
from ladder import TUNING_SEED, Queue, Search, climb
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from runner import Cell
from study_tables import show, spread

from fedcl.config import available
from fedcl.core.method import Method
from fedcl.plugins import find
from fedcl.reporting.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    page,
    png,
)


@dataclass(frozen=True)
class Study:
    """The study in one folder.

    Attributes:
        out: Its folder.
        root: Folder of the data.
        streams: Those that are run and shown.
        rows: Those that are run and shown.
        seeds: Of the final runs.
        smoke: Whether data are synthetic and tiny.
    """

    out: Path
    root: str
    streams: Sequence[str] = tuple(SETTINGS)
    rows: Sequence[str] = tuple(ROWS)
    seeds: Sequence[int] = (0, 1, 2)
    smoke: bool = False

    @cached_property
    def queue(self) -> Queue:
        """The runs in its folder."""
        return Queue(self.out)

    def cell(self, stream: str, row: str, value: float | None, seed: int, split: str) -> Cell:
        """Returns one run."""
        setting, own = SETTINGS[stream], ROWS[row]
        method = dict(own.method)
        if value is not None:
            method[own.option] = value
        if method["name"] == "fedcbdr":
            method["samples"] = setting.samples
        elif own.exemplars:
            method["budget"] = setting.budget
        if self.smoke:
            method |= LIGHT.get(method["name"], {})
        changes = {
            **setting.changes,
            "stream.partition": PARTITION,
            "stream.validation": 0.2,
            "stream.public": 0.05,
            "method": method,
            **own.changes,
            "seed": seed,
            "engine": {"name": "vectorized"},
            "evaluation.splits": [split],
            "evaluation.every": 0,
            "checkpoint.seconds": 60,
        }
        if self.smoke:
            changes |= SMOKE[stream]
        else:
            changes["dataset.root"] = str(self.out / "data") if setting.cut else self.root
        words = [stream, row.replace(", ", "-")]
        words += [] if value is None else [f"{own.option}={value:g}"]
        name = ["tune", *words] if split == "validation" else [*words, str(seed)]
        return Cell("-".join(name), setting.config, changes)

    def search(self, stream: str, row: str) -> Search:
        """Returns how far a row's search is; it only reads."""
        own = ROWS[row]
        if not own.option:
            return Search()

        def candidate(value: float) -> Cell:
            return self.cell(stream, row, value, TUNING_SEED, "validation")

        count = 1 if self.smoke else 3
        return climb(self.queue, own.ladder, own.first, count, candidate, self.smoke, most=MOST)

    def final(self, stream: str, row: str, seed: int) -> Cell | None:
        """Returns a run with the value that did best, or None until that is known."""
        found = self.search(stream, row)
        return None if found.place is None else self.cell(stream, row, found.chosen, seed, "test")

    def plan(self) -> Iterator[Cell]:
        """Yields what could be run now, the most important first, what is finished too."""
        for stream in self.streams:
            rows = [row for row in self.rows if possible(stream, row)]
            for row in rows:
                yield from self.search(stream, row).tried
            for seed in self.seeds:
                cells = (self.final(stream, row, seed) for row in rows)
                yield from (cell for cell in cells if cell is not None)

    def found(self, stream: str, row: str) -> list[dict[str, Any]]:
        """Returns the summaries of a row's finished runs."""
        cells = (self.final(stream, row, seed) for seed in self.seeds)
        summaries = (self.queue.summary(cell) for cell in cells if cell is not None)
        return [summary for summary in summaries if summary is not None]


def possible(stream: str, row: str) -> bool:
    """Returns whether a row makes sense on a stream: a mirrored digit is no digit."""
    known = ROWS[row].method["name"] in available("methods")
    return known and not ("crops" in row and SETTINGS[stream].cut)


def table(study: Study, stream: str) -> None:
    """Prints a stream's table and writes it as Markdown."""
    lines = []
    for exemplars in (False, True):
        for name in study.rows:
            row, found = ROWS[name], study.found(stream, name)
            if row.exemplars == exemplars and found:
                lines.append(_line(study, stream, name, found))
    headings = ["method", "option", "keeps examples", "server sees", "average accuracy %"]
    headings += ["forgetting pp", "MB up", "MB down", "thousand passes", "seconds"]
    show(SETTINGS[stream].title, headings, lines, study.out, f"{stream}.md")


def _line(study: Study, stream: str, name: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    row, search = ROWS[name], study.search(stream, name)
    cls = find("methods", row.method["name"])
    assert issubclass(cls, Method)
    option = f"{row.option} = {search.chosen:g}" if search.chosen is not None else ""
    option += " (end of what was tried)" if search.open else ""
    seen = {"mean": "sums", "replies": "replies"}[cls.exposure]
    keeps = "all" if cls.family == "reference" else "yes" if row.exemplars else "no"
    costs = [
        f"{statistics.mean(s[key] for s in found) / unit:.{digits}f}"
        for key, unit, digits in (
            ("bytes_up", 1e6, 1),
            ("bytes_down", 1e6, 1),
            ("examples", 1e3, 0),
        )
    ]
    accuracy, forgetting = (
        spread(s[key] for s in found) for key in ("average_accuracy", "forgetting")
    )
    if len(found) < len(study.seeds):
        accuracy += f" ({len(found)} of {len(study.seeds)} seeds)"
    seconds = f"{statistics.mean(s['seconds'] for s in found):.0f}"
    return [name, option, keeps, seen, accuracy, forgetting, *costs, seconds]


BROWN = "#7B3F00"  # one family more than the palette of reports has colours
FAMILIES: Mapping[str, str] = {
    "baseline": GREY,
    "regularisation": ORANGE,
    "distillation": GREEN,
    "language": SKY,
    "orthogonal": BLUE,
    "analytic": PURPLE,
    "replay": RED,
    "generative": BROWN,
    "reference": BLACK,
}
GAP = 0.031  # between names, in heights of a plane


@png
def figure(study: Study) -> Figure:
    """Returns accuracy against bytes, a plane for each stream, a named point for each row."""
    streams = [s for s in study.streams if any(study.found(s, row) for row in study.rows)]
    drawn = page(WIDTH, 5.2 * max(1, len(streams)) + 0.4)
    planes = drawn.subplots(max(1, len(streams)), 1, squeeze=False)[:, 0]
    for stream, plane in zip(streams, planes, strict=False):
        points: dict[str, tuple[float, float]] = {}
        for name in study.rows:
            found = study.found(stream, name)
            if not found:
                continue
            sent = statistics.mean(s["bytes_up"] + s["bytes_down"] for s in found) / 1e6
            accuracy = [100 * s["average_accuracy"] for s in found]
            spread_ = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
            points[name] = sent, statistics.mean(accuracy)
            plane.errorbar(
                *points[name],
                yerr=spread_,
                marker="o",
                markersize=5,
                color=FAMILIES[_family(name)],
                markerfacecolor="white" if ROWS[name].exemplars else None,
            )
        plane.set(xscale="log", xlabel="bytes up and down in the whole run [MB]")
        plane.set_ylabel("average accuracy [%]")
        plane.set_title(SETTINGS[stream].title)
        plane.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plane.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        plane.xaxis.set_minor_locator(NullLocator())
        _name(plane, points)
    shown = {_family(name) for name in study.rows}
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, label=family)
        for family, color in FAMILIES.items()
        if family in shown
    ]
    handles.append(
        Line2D([], [], marker="o", linestyle="", color=GREY, mfc="white", label="keeps examples")
    )
    drawn.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8)
    return drawn


def _name(plane: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Writes the points' names beside a plane, in the order of their accuracy, and joins both."""
    low, high = plane.get_ylim()
    ranked = sorted(points, key=lambda name: points[name][1])
    heights = [(points[name][1] - low) / (high - low) for name in ranked]
    for number in range(1, len(heights)):
        heights[number] = max(heights[number], heights[number - 1] + GAP)
    over = max(0.0, heights[-1] - 1.0) if heights else 0.0
    top = 1.0 + GAP
    for number in reversed(range(len(heights))):
        top = min(heights[number], top - GAP) if over else heights[number]
        plane.annotate(
            ranked[number],
            points[ranked[number]],
            (1.03, top),
            textcoords="axes fraction",
            va="center",
            fontsize=7.5,
            color=FAMILIES[_family(ranked[number])],
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": PALE, "relpos": (0, 0.5)},
        )


def _family(name: str) -> str:
    cls = find("methods", ROWS[name].method["name"])
    assert issubclass(cls, Method)
    return cls.family
