"""All methods on the same work: three streams, three seeds, every row tuned alike.

Run: python simulations/all_methods.py --root FOLDER [--out FOLDER] [--streams split-mnist ...]
     [--rows fedavg kron ...] [--seeds 0 1 2] [--table]

FOLDER holds mnist.npz, cifar100_small.npz and pacs32.npz. The study is hundreds of runs of ten
seconds to two minutes. It can be stopped at any time and goes on; start the command once for each
core, and every process takes the next run. `--table` prints what there is by now and writes it
beside the runs, with a figure of accuracy against bytes.

A row has at most one hyper-parameter. Three neighbours on its ladder are tried on validation data
with a seed of its own, up to seven while the best is at an end; final runs have other seeds and
look at the test set only. All other options are the method's defaults or stand below. A fifth of
the training data is held out in every run, for validation, and a twentieth is public, whether a
method uses it or not. No row has a published counterpart: nobody has published on these streams.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ladder import TUNING_SEED, Queue, Search, climb
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from mnist_cut import cut_mnist
from runner import Cell, arguments, show, spread

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

MOST = 7  # values of one hyper-parameter
STRENGTHS = tuple(float(f"{digit}e{power}") for power in range(-6, 6) for digit in (1, 3))
ENERGIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
SHARES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True)
class Row:
    """A method with at most one hyper-parameter to choose.

    Attributes:
        method: The table [method].
        option: The hyper-parameter; empty for none.
        ladder: Values that it may take, ascending.
        first: The least of the values that are tried at first.
        exemplars: Whether clients keep examples, within the stream's budget.
        changes: Overrides beside the method's table.
    """

    method: Mapping[str, Any]
    option: str = ""
    ladder: tuple[float, ...] = ()
    first: float = 0.0
    exemplars: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)


def _row(name: str, option: str = "", first: float = 0.0, **options: Any) -> Row:
    ladder = ENERGIES if option == "energy" else STRENGTHS
    return Row({"name": name, **options}, option, ladder if option else (), first)


def _keeping(name: str, option: str = "", first: float = 0.0, **options: Any) -> Row:
    ladder = STRENGTHS if option else ()
    return Row({"name": name, **options}, option, ladder, first, exemplars=True)


CROPS: Mapping[str, Any] = {"training.local.augment": "crop_flip"}
ROWS: Mapping[str, Row] = {
    "fedavg": _row("fedavg"),
    "fedavg, masked": _row("fedavg", masked=True),
    "fedavg, cosine": Row({"name": "fedavg"}, changes={"training.schedule.name": "cosine"}),
    "fedavg, crops": Row({"name": "fedavg"}, changes=CROPS),
    "fedavg, crops, view batch": Row(
        {"name": "fedavg"}, changes={**CROPS, "training.local.view_batch": 4}
    ),
    "fedavg, infinite": Row({"name": "fedavg"}, changes={"training.schedule.name": "infinite"}),
    "fedprox": _row("fedprox", "mu", 0.01),
    "l2": _row("l2", "strength", 0.01),
    "ewc": _row("ewc", "strength", 1.0),
    "mas": _row("mas", "strength", 0.01),
    "lwf": _row("lwf", "strength", 1.0),
    "cfed": _row("cfed"),
    "cfed, masked": _row("cfed", "strength", 0.03, masked=True),
    "prd": _row("prd", "distillation", 1.0),
    "lingo": Row({"name": "lingo"}, "scale", SCALES, 4.0),
    "osft": _row("osft", "energy", 0.4),
    "fot": _row("fot", "energy", 0.8),
    "fot, head": _row("fot", "energy", 0.8, head="protect"),
    "cuber": _row("cuber", "energy", 0.8),
    "gpm": _row("gpm", "energy", 0.8, energy_step=0.0),
    "gpm, head": _row("gpm", "energy", 0.8, energy_step=0.0, head="protect"),
    "kron": _row("kron", "mu", 0.1),
    "analytic": _row("analytic", "gamma", 0.1),
    "analytic, projected": _row("analytic", "gamma", 0.1, projection=1000),
    "replay": _keeping("replay"),
    "replay, reservoir": _keeping("replay", selection="reservoir"),
    "replay, herding": _keeping("replay", selection="herding"),
    "replay, balanced": _keeping("replay", selection="balanced"),
    "replay, crops": Row({"name": "replay"}, exemplars=True, changes=CROPS),
    "replay, crops, view batch": Row(
        {"name": "replay"}, exemplars=True, changes={**CROPS, "training.local.view_batch": 4}
    ),
    "replay, weighted": _keeping("der", "beta", 1.0, alpha=0.0),
    "der": _keeping("der", "beta", 1.0, alpha=1.0),
    "refed": _keeping("refed"),
    "fedcbdr": _keeping("fedcbdr"),
    "fpf": _keeping("fpf"),
    "joint": _row("joint"),
}


@dataclass(frozen=True)
class Setting:
    """A stream, with all of a run but the method.

    Attributes:
        title: For tables.
        config: File in configs/.
        budget: Bytes of examples that a client may keep.
        samples: Examples of a stage that all clients together may keep where a method counts so:
            after the last stage they take as many bytes as all budgets.
        changes: Overrides of the config.
        cut: Whether its data are the study's cut of MNIST.
    """

    title: str
    config: str
    budget: int
    samples: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    cut: bool = False


SETTINGS: Mapping[str, Setting] = {
    "split-mnist": Setting(
        "Split MNIST, class-incremental: 5 tasks, 12,000 examples of 10 clients, Dirichlet 0.5",
        "kron_split_mnist.toml",
        200_000,
        127,
        cut=True,
    ),
    "cifar100-small": Setting(
        "CIFAR-100's superclasses in small, class-incremental: 10 tasks of two, 5 clients, "
        "Dirichlet 0.5, cnn",
        "kron_cifar100_small.toml",
        600_000,
        24,
        {"stream.name": "class_incremental", "stream.tasks": 10, "stream.clients": 5},
    ),
    "pacs": Setting(
        "PACS, domain-incremental: 4 domains, 10 clients, Dirichlet 0.5, cnn",
        "pacs_domains.toml",
        600_000,
        122,
    ),
}
PARTITION = {"name": "dirichlet", "alpha": 0.5}
SMALL = {
    "stream.tasks": 2,
    "stream.clients": 3,
    "training.rounds": 2,
    "training.local.batch_size": 8,
    "training.local.lr": 0.1,
}
SMOKE: Mapping[str, Mapping[str, Any]] = {
    "split-mnist": {
        "dataset": {"name": "synthetic", "features": [1, 4, 4], "train": 240, "test": 50},
        "model.hidden": [12],
        **SMALL,
    },
    "pacs": {
        "dataset": {
            "name": "synthetic",
            "features": [3, 8, 8],
            "train": 150,
            "test": 50,
            "domains": 2,
        },
        "model": {"name": "cnn", "channels": [4], "hidden": 8, "groups": 2},
        **SMALL,
    },
}


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


def main(words: list[str]) -> None:
    """Runs what is not finished yet and prints the tables."""
    parser = arguments(__doc__ or "", "all_methods")
    parser.add_argument("--streams", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--table", action="store_true", help="run nothing, print what there is")
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            short = Study(Path(folder), "", tuple(SMOKE), _first_of_each_method(), (0,), True)
            run(short, args.table)
        return
    study = Study(args.out.resolve(), args.root, args.streams, args.rows, args.seeds)
    if not args.table:
        cut_mnist(Path(args.root), study.out / "data")
    run(study, args.table)


def _first_of_each_method() -> list[str]:
    """Returns one row for each method."""
    return list(
        {str(row.method["name"]): name for name, row in reversed(list(ROWS.items()))}.values()
    )


def run(study: Study, only_table: bool) -> None:
    """Works off the queue, then prints tables and draws the figure."""
    while not only_table and study.queue.step(study.plan()):
        pass
    for stream in study.streams:
        table(study, stream)
    (study.out / "figure.png").write_bytes(figure(study))
    failed = sorted(path.name for path in (study.out / "failed").glob("*"))
    if failed:
        words = f"{len(failed)} runs failed, see {study.out / 'failed'}: {', '.join(failed)}"
        # A value with which training diverges is an answer, too; tiny runs must all work.
        sys.exit(f"error: {words}") if study.smoke else print(words)


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


FAMILIES: Mapping[str, str] = {
    "baseline": GREY,
    "regularisation": ORANGE,
    "distillation": GREEN,
    "language": SKY,
    "orthogonal": BLUE,
    "analytic": PURPLE,
    "replay": RED,
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


if __name__ == "__main__":
    main(sys.argv[1:])
