"""Our kron examined: its rivals tuned as it is, its parts taken away, its cost, and noise.

Run: python simulations/orthogonal.py --root FOLDER [--out FOLDER] [--streams pmnist-iid ...]
     [--rows kron fot ...] [--table] [--measure]

FOLDER holds mnist.npz and cifar100_small.npz. The study is hundreds of runs of about a minute. It
can be stopped at any time and goes on; start the command once for each core, and every process
takes the next run. `--table` prints what there is by now and writes it beside the runs, with a
figure. `--measure` times one method after the other in one process, which the queue cannot.

Every row has one hyper-parameter and a ladder of its values. Five neighbours are tried with a seed
of its own on validation data; while the best is the first or the last that was tried, the next
value of the ladder is tried too. Final runs have other seeds and look at the test set only.
docs/kron.md says more, and how to read the tables.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
from ladder import TUNING_SEED, Queue, Search, climb
from matplotlib.figure import Figure
from mnist_cut import cut_mnist
from noise import frobenius, private_noise, side, trace
from runner import CONFIGS, Cell, arguments, show, spread

import fedcl
from fedcl.assembly import build_site
from fedcl.config import available
from fedcl.core.kronecker import KroneckerMoments
from fedcl.core.layers import guarded_layers
from fedcl.core.model import Net
from fedcl.core.statistic import Statistic
from fedcl.core.stream import Stream
from fedcl.methods.kron import Question
from fedcl.reporting.style import CYCLE, MARKERS, page, png

SIGMAS = (1e-3, 1e-2, 1e-1, 1.0)
EPSILON, DELTA = 1.0, 1e-5  # of one release, in the remark on what a private sum would need

Values = tuple[float, ...]
ENERGIES: Values = (
    0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999
)  # fmt: skip
STRENGTHS: Values = tuple(
    float(f"{digit}e{power}") for power in range(-5, 6) for digit in (1, 3)
)  # a factor of about three apart


@dataclass(frozen=True)
class Row:
    """A method with one hyper-parameter.

    Attributes:
        method: The table [method].
        option: The hyper-parameter; empty for none.
        ladder: Values that it may take, ascending.
        first: The least of the five values that are tried at first.
        ours: Whether it is kron or a form of it, and so no rival.
        scenarios: Of the streams in which it differs from other rows.
    """

    method: Mapping[str, Any]
    option: str = ""
    ladder: Values = ()
    first: float = 0.0
    ours: bool = False
    scenarios: tuple[str, ...] = ("domain", "class", "task")


def _kron(first: float, **options: Any) -> Row:
    return Row({"name": "kron", **options}, "mu", STRENGTHS, first, ours=True)


def _energy(name: str, first: float = 0.8, **options: Any) -> Row:
    return Row({"name": name, **options}, "energy", ENERGIES, first)


INCREMENTAL = ("class", "task")
ROWS: Mapping[str, Row] = {
    "fedavg": Row({"name": "fedavg"}),
    "l2": Row({"name": "l2"}, "strength", tuple(v for v in STRENGTHS if v <= 10), 0.01),
    "osft": _energy("osft", 0.5),
    "gpm": _energy("gpm", energy_step=0.0),
    "gpm-biases": _energy("gpm", energy_step=0.0, biases="project"),
    "gpm-head": replace(_energy("gpm", energy_step=0.0, head="protect"), scenarios=INCREMENTAL),
    "fot": _energy("fot"),
    "fot-biases": _energy("fot", biases=True),
    "fot-head": replace(_energy("fot", head="protect"), scenarios=INCREMENTAL),
    "cuber": _energy("cuber"),
    "kron": _kron(0.1),
    "kron-identity-S": replace(_kron(0.001, outputs="identity"), scenarios=("domain", "task")),
    "kron-fisher": replace(_kron(3.0, outputs="fisher"), scenarios=("class",)),
    "kron-identity-A": _kron(3.0, inputs="identity"),
    "kron-identities": _kron(0.01, inputs="identity", outputs="identity"),
    "kron-mean": _kron(0.3, schedule="mean"),
    "kron-own": _kron(0.1, outputs="empirical"),
    "kron-free-head": replace(_kron(0.1, head="free"), scenarios=INCREMENTAL),
    "joint": Row({"name": "joint"}),
}
CORE = ("fedavg", "kron", "fot", "fot-biases", "gpm")
ABLATIONS = (
    "kron-identity-S",
    "kron-fisher",
    "kron-identity-A",
    "kron-identities",
    "kron-mean",
    "kron-own",
    "kron-free-head",
    "fot-head",
)
OTHERS = tuple(name for name in ROWS if name not in (*CORE, *ABLATIONS))


@dataclass(frozen=True)
class Setting:
    """A stream, with all of a run but the method.

    Attributes:
        title: For tables.
        config: File in configs/.
        scenario: `domain`, `class` or `task`.
        changes: Overrides of the config.
        mnist: Whether its data are the study's cut of MNIST.
        masked: Whether every method that can compares the present classes only.
    """

    title: str
    config: str
    scenario: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    mnist: bool = True
    masked: bool = False


def _stream(name: str, clients: int) -> dict[str, Any]:
    partition = {"name": "dirichlet", "alpha": 0.5}
    held = {"validation": 0.2, "partition": partition}
    return {"stream": {"name": f"{name}_incremental", "tasks": 5, "clients": clients, **held}}


SPLIT, CIFAR = "kron_split_mnist.toml", "kron_cifar100_small.toml"
SETTINGS: Mapping[str, Setting] = {
    "pmnist-iid": Setting("Permuted MNIST, IID", "kron_pmnist_small.toml", "domain"),
    "pmnist-shards": Setting(
        "Permuted MNIST, two label shards a client",
        "kron_pmnist_small.toml",
        "domain",
        {"stream.partition": {"name": "shards", "per_client": 2}},
    ),
    "split-mnist-class": Setting("Split MNIST, class-incremental", SPLIT, "class"),
    "split-mnist-task": Setting(
        "Split MNIST, task-incremental", SPLIT, "task", _stream("task", 10)
    ),
    "cifar-task": Setting(
        "CIFAR-100 superclasses in small, task-incremental", CIFAR, "task", {}, mnist=False
    ),
    "cifar-class": Setting(
        "CIFAR-100 superclasses in small, class-incremental",
        CIFAR,
        "class",
        _stream("class", 5),
        mnist=False,
    ),
    "split-mnist-masked": Setting(
        "Split MNIST, class-incremental, masked losses", SPLIT, "class", masked=True
    ),
}
PMNIST = ("pmnist-iid", "pmnist-shards")
SPLITS = ("split-mnist-class", "split-mnist-task")
CIFARS = ("cifar-task", "cifar-class")
SMALL = {
    "stream.tasks": 2,
    "training.rounds": 2,
    "training.local.batch_size": 8,
    "training.local.lr": 0.3,
}
SMOKE_MNIST = {
    "dataset": {"name": "synthetic", "features": [1, 4, 4], "train": 250, "test": 50},
    "model.hidden": [12],
    **SMALL,
}
SMOKE_CIFAR = {
    "dataset": {"name": "synthetic", "features": [3, 8, 8], "train": 150, "test": 50},
    "model": {"name": "cnn", "channels": [8], "hidden": 8},
    **SMALL,
}


@dataclass(frozen=True)
class Phase:
    """A part of the study; those that matter more come first."""

    streams: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: int
    noise: bool = False


PHASES = (
    Phase(PMNIST, CORE, 5),
    Phase(PMNIST, ABLATIONS, 5),
    Phase(SPLITS, tuple(ROWS), 3),
    Phase(CIFARS, (*CORE, *ABLATIONS), 3),
    Phase(PMNIST[:1], ("kron",), 3, noise=True),
    Phase(PMNIST, OTHERS, 3),
    Phase(CIFARS, OTHERS, 3),
    Phase(("split-mnist-masked",), tuple(ROWS), 3),
)


@dataclass(frozen=True)
class Study:
    """The study in one folder.

    Attributes:
        out: Its folder.
        root: Folder of the data.
        streams: Those that are run and shown.
        rows: Those that are run and shown.
        grid: Values tried at first.
        smoke: Whether data are synthetic and tiny.
    """

    out: Path
    root: str
    streams: tuple[str, ...] = tuple(SETTINGS)
    rows: tuple[str, ...] = tuple(ROWS)
    grid: int = 5
    smoke: bool = False

    @cached_property
    def queue(self) -> Queue:
        """The runs in its folder."""
        return Queue(self.out)

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """Returns a finished cell's summary, or None."""
        return self.queue.summary(cell)

    def cell(self, stream: str, row: str, value: float | None, seed: int, split: str) -> Cell:
        """Returns one run."""
        setting, own = SETTINGS[stream], ROWS[row]
        method = dict(own.method)
        if value is not None:
            method[own.option] = value
        if setting.masked and row != "joint":
            method["masked"] = True
        changes = {**setting.changes, "method": method, "seed": seed}
        changes |= {"evaluation.splits": [split], "checkpoint.seconds": 60}
        if self.smoke:
            changes |= SMOKE_MNIST if setting.mnist else SMOKE_CIFAR
        else:
            changes["dataset.root"] = str(self.out / "data") if setting.mnist else self.root
        words = [stream, row, *([] if value is None else [f"{own.option}={value:g}"])]
        name = ["tune", *words] if split == "validation" else [*words, str(seed)]
        return Cell("-".join(name), setting.config, changes)

    def noisy(self, stream: str, sigma: float, seed: int) -> Cell | None:
        """Returns kron's final run with noise on its moments, once its mu is known."""
        final = self.final(stream, "kron", seed)
        if final is None or not sigma:
            return final
        channel = [{"name": "noise:MomentNoise", "sigma": sigma}]
        return final.but(name=f"noise={sigma:g}-{final.name}", changes={"channel": channel})

    def search(self, stream: str, row: str) -> Search:
        """Returns how far a row's search is; it only reads."""
        own = ROWS[row]
        if not own.option:
            return Search()

        def candidate(value: float) -> Cell:
            return self.cell(stream, row, value, TUNING_SEED, "validation")

        return climb(self.queue, own.ladder, own.first, self.grid, candidate, self.smoke)

    def final(self, stream: str, row: str, seed: int) -> Cell | None:
        """Returns a run with the value that did best, or None until that is known."""
        found = self.search(stream, row)
        if found.place is None:
            return None
        return self.cell(stream, row, found.chosen, seed, "test")

    def plan(self) -> Iterator[Cell]:
        """Yields what could be run now, the most important first, what is finished too."""
        for phase in PHASES:
            streams = [name for name in phase.streams if name in self.streams]
            rows = [name for name in phase.rows if name in self.rows]
            pairs = [(s, r) for s in streams for r in rows if possible(s, r)]
            if self.smoke and streams != ["pmnist-iid"]:
                pairs = [(s, r) for s, r in pairs if s == "pmnist-iid" or r in ("fot", "kron")]
            for stream, row in pairs:
                yield from self.search(stream, row).tried
            for seed in range(1 if self.smoke else phase.seeds):
                for stream, row in pairs:
                    cells = [self.final(stream, row, seed)]
                    if phase.noise:
                        cells = [self.noisy(stream, sigma, seed) for sigma in SIGMAS]
                    yield from (cell for cell in cells if cell is not None)


def possible(stream: str, row: str) -> bool:
    """Returns whether a row exists and differs from others in a stream."""
    known = ROWS[row].method["name"] in available("methods")
    return known and SETTINGS[stream].scenario in ROWS[row].scenarios


def main(words: list[str]) -> None:
    """Runs what is not finished yet and prints the tables."""
    parser = arguments(__doc__ or "", "orthogonal")
    parser.add_argument("--streams", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--table", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--measure", action="store_true", help="time the methods, nothing else")
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            run(Study(Path(folder), "", grid=1, smoke=True), args)
        return
    out = args.out.resolve()
    run(Study(out, args.root, tuple(args.streams), tuple(args.rows)), args)


def run(study: Study, args: Namespace) -> None:
    """Does what the options ask for."""
    for name, row in ROWS.items():
        if row.method["name"] not in available("methods"):
            print(f"row {name} is left out: there is no method {row.method['name']!r} yet")
    if not (study.smoke or args.table):
        cut_mnist(Path(args.root), study.out / "data")
    if args.measure:
        measure(study)
        return
    while not args.table and study.queue.step(study.plan()):
        pass
    for stream in study.streams:
        search_table(study, stream)
        table(study, stream)
    noise_table(study)
    figure(study)


# Tables.


def finals(study: Study, stream: str, row: str) -> dict[int, dict[str, Any]]:
    """Returns the summaries of a row's finished runs by seed."""
    found = {}
    for seed in range(max(phase.seeds for phase in PHASES)):
        cell = study.final(stream, row, seed) if possible(stream, row) else None
        summary = None if cell is None else study.summary(cell)
        if summary is not None:
            found[seed] = summary
    return found


def paired(one: Mapping[int, dict[str, Any]], other: Mapping[int, dict[str, Any]]) -> list[float]:
    """Returns the differences in average accuracy, in points, for each seed that both have."""
    key = "average_accuracy"
    return [100 * (one[seed][key] - other[seed][key]) for seed in one if seed in other]


def difference(values: Sequence[float]) -> str:
    """Returns mean and sample standard deviation of paired differences, and how often above 0."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    above = sum(value > 0 for value in values)
    return f"{statistics.mean(values):+.2f}{deviation} ({above}/{len(values)})"


def search_table(study: Study, stream: str) -> None:
    """Prints how each value did on validation data, and writes it to `search-<stream>.md`."""
    lines = []
    for row in study.rows:
        search = study.search(stream, row) if possible(stream, row) else Search(place=None)
        words = [
            f"{value:g}: {100 * study.queue.validated(cell):.2f}"
            for value, cell in zip(search.values, search.tried, strict=True)
            if study.summary(cell) is not None
        ]
        if words:
            lines.append([row, ", ".join(words), chosen(study, search)])
    if lines:
        headings = ["row", "value: average accuracy %", "value (tried; one step off)"]
        title = f"{SETTINGS[stream].title}: VALIDATION data, one seed"
        show(title, headings, lines, study.out, f"search-{stream}.md")


def table(study: Study, stream: str) -> None:
    """Prints what there is of one stream: accuracy to `table-<stream>.md`, cost to `cost-...`."""
    found = {row: finals(study, stream, row) for row in study.rows}
    found = {row: runs for row, runs in found.items() if runs}
    if not found:
        return
    ours = found.get("kron", {})
    lines = []
    for row, runs in found.items():
        done = list(runs.values())
        words = [row, str(len(done)), chosen(study, study.search(stream, row))]
        for key in ("average_accuracy", "forgetting", "forgetting_first_last", "learning_accuracy"):
            words.append(spread([s[key] for s in done], 2))
        lines.append([*words, "" if row == "kron" else difference(paired(ours, runs))])
    headings = [
        "row",
        "seeds",
        "value (tried; one step off)",
        "average accuracy %",
        "forgetting pp",
        "first-last pp",
        "learning accuracy %",
        "kron minus it, paired",
    ]
    show(SETTINGS[stream].title, headings, lines, study.out, f"table-{stream}.md")
    rivals = {
        row: statistics.mean(s["average_accuracy"] for s in runs.values())
        for row, runs in found.items()
        if not ROWS[row].ours and row != "joint"
    }
    if ours and rivals:
        rival = max(rivals, key=lambda row: rivals[row])
        values = paired(ours, found[rival])
        print(
            f"kron minus the rival that did best on the test set, {rival}: {difference(values)}; "
            f"by seed {', '.join(f'{value:+.2f}' for value in values)}\n"
        )
    cost_table(study, stream, {row: list(runs.values()) for row, runs in found.items()})


def cost_table(study: Study, stream: str, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Prints what the final runs sent and computed."""
    plain, seconds = found.get("fedavg", []), measured(study, stream)
    lines = []
    for row, done in found.items():
        words = [row]
        for direction in ("up", "down"):
            sent = [s["bytes_by_payload"][direction] for s in done]
            own = [
                sum(size for kind, size in parts.items() if kind not in ("model", "metrics"))
                for parts in sent
            ]
            words.append(f"{statistics.mean(sum(parts.values()) for parts in sent) / 1e6:.1f}")
            words.append(f"{statistics.mean(own) / 1e6:.1f}")
        words += [ratio(done, plain, key) for key in ("examples", "seconds")]
        base, mine = seconds.get("fedavg"), seconds.get(row)
        lines.append([*words, f"{mine / base:.2f}" if base and mine else ""])
    headings = ["row", "MB up", "besides the model", "MB down", "besides the model"]
    headings += ["passes / FedAvg's", "wall time / FedAvg's, under load", "CPU time / FedAvg's"]
    title = f"{SETTINGS[stream].title}: cost of a run, all clients"
    show(title, headings, lines, study.out, f"cost-{stream}.md")


def chosen(study: Study, search: Search) -> str:
    """Returns the chosen value, how many were tried, and what one step beside it loses."""
    if not search.values or search.place is None:
        return "-"
    at = search.place
    accuracies = [
        None if study.summary(cell) is None else 100 * study.queue.validated(cell)
        for cell in search.tried
    ]
    beside = [accuracies[n] for n in (at - 1, at + 1) if 0 <= n < len(accuracies)]
    lost = [(accuracies[at] or 0.0) - other for other in beside if other is not None]
    words = [str(len(search.values))]
    if lost:
        words.append(f"{statistics.mean(lost):.1f}")
    if search.open:
        words.append("END OF LADDER")
    return f"{search.values[at]:g} ({'; '.join(words)})"


def ratio(done: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], key: str) -> str:
    """Returns how many times FedAvg's a mean is."""
    if not done or not plain:
        return ""
    return f"{statistics.mean(s[key] for s in done) / statistics.mean(s[key] for s in plain):.2f}"


def noise_table(study: Study) -> None:
    """Prints what noise on kron's moments does, and how much of it a private sum would have."""
    (phase,) = (phase for phase in PHASES if phase.noise)
    (stream,) = phase.streams
    lines = []
    for sigma in (0.0, *SIGMAS):
        cells = [study.noisy(stream, sigma, seed) for seed in range(phase.seeds)]
        found = [study.summary(cell) for cell in cells if cell is not None]
        done = [summary for summary in found if summary is not None]
        if done:
            keys = ("average_accuracy", "forgetting_first_last", "learning_accuracy")
            numbers = [spread([s[key] for s in done], 2) for key in keys]
            lines.append([f"{sigma:g}", str(len(done)), *numbers])
    if len(lines) < 2:
        return
    headings = ["sigma", "seeds", "average accuracy %", "first-last pp", "learning accuracy %"]
    title = f"{SETTINGS[stream].title}: Gaussian noise on kron's A and S"
    show(title, headings, lines, study.out, "table-noise.md")
    cell = study.final(stream, "kron", 0)
    if cell is not None and study.summary(cell) is not None:
        private_table(study, cell)


def private_table(study: Study, cell: Cell) -> None:
    """Prints the noise that differential privacy asks of each of a finished run's last moments."""
    experiment = fedcl.load_config(CONFIGS / cell.config, cell.changes)
    site = build_site(experiment)
    stream: Stream = site.population.stream  # type: ignore[attr-defined]
    last = stream.stages - 1
    members = tuple(stream.members(last))
    rows, sizes = stream.gather(members, last)
    statistic = Statistic(KroneckerMoments(), rows=128, draws=1)
    data = statistic.drawn(rows.take(), sizes, range(len(members)))
    params = safetensors.torch.load_file(study.out / cell.name / "model.safetensors")
    layers = guarded_layers(site.model, "protect", stream.scenario)
    net, task = Net(site.model, params), stream.client_task(members[0], last)
    sums = statistic.sums(net, data, task, Question(params, layers, False))
    examples = float(sums.pop("count/n"))
    together = math.sqrt(len(sums))  # all are released of the same examples
    lines = []
    for name, packed in sums.items():
        trace_share = frobenius(packed) / trace(packed)
        alone = private_noise(packed, examples, EPSILON, DELTA)
        lines.append(
            [
                name,
                str(side(packed)),
                f"{trace_share:.3f}",
                f"{alone:.2g}",
                f"{alone * together:.2g}",
            ]
        )
    headings = ["moment", "d", "norm / trace", "sigma of it alone", f"of all {len(sums)} together"]
    title = (
        f"sigma of a stage's release with epsilon = {EPSILON:g}, delta = {DELTA:g}, "
        f"{examples:.0f} examples"
    )
    show(title, headings, lines, study.out, "table-private.md")


# The figure.


def figure(study: Study) -> None:
    """Draws all streams that have final runs: accuracy against forgetting, and the searches."""
    streams = [
        stream for stream in study.streams if any(finals(study, stream, row) for row in study.rows)
    ]
    if streams:
        (study.out / "figure.png").write_bytes(draw(study, streams))


@png
def draw(study: Study, streams: Sequence[str]) -> Figure:
    """Returns one row of panels for each stream."""
    drawn = page(13.0, 3.4 * len(streams) + 0.8)
    shown: dict[str, Any] = {}
    grid = drawn.subplots(len(streams), 3, squeeze=False)
    for stream, (plane, strengths, energies) in zip(streams, grid, strict=True):
        for number, row in enumerate(study.rows):
            look: dict[str, Any] = {
                "color": CYCLE[number % len(CYCLE)],
                "marker": MARKERS[number // len(CYCLE) % len(MARKERS)],
                "label": row,
            }
            runs = list(finals(study, stream, row).values())
            if runs:
                x, y = (
                    [100 * s[key] for s in runs]
                    for key in ("forgetting_first_last", "average_accuracy")
                )
                ends = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in (x, y)]
                middle = statistics.mean(x), statistics.mean(y)
                shown[row] = plane.errorbar(
                    *middle, xerr=ends[0], yerr=ends[1], linestyle="", **look
                )
            search = study.search(stream, row) if possible(stream, row) else Search(place=None)
            points = [
                (value, 100 * study.queue.validated(cell))
                for value, cell in zip(search.values, search.tried, strict=True)
                if study.summary(cell) is not None
            ]
            if points and ROWS[row].option == "energy":
                energies.plot([1 - value for value, _ in points], [y for _, y in points], **look)
            elif points:
                strengths.plot(*zip(*points, strict=True), **look)
        plane.set(title=SETTINGS[stream].title, xlabel="forgetting, first-last [pp]")
        plane.set_ylabel("average accuracy, test [%]")
        strengths.set(xscale="log", xlabel="mu or strength", ylabel="validation accuracy [%]")
        energies.set(xscale="log", xlabel="1 - energy", ylabel="validation accuracy [%]")
        energies.set_xticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
        energies.invert_xaxis()
        for axes in (strengths, energies):
            axes.minorticks_off()
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    drawn.legend(shown.values(), shown, loc="outside lower center", ncols=6, fontsize=8)
    return drawn


# Time.


def measure(study: Study) -> None:
    """Times the final run of seed 0 of each row, in this process, and writes down CPU seconds."""
    for stream in study.streams:
        for row in study.rows:
            cell = study.final(stream, row, 0) if possible(stream, row) else None
            if cell is None:
                continue
            experiment = fedcl.load_config(CONFIGS / cell.config, cell.changes)
            start = time.process_time()
            fedcl.run(experiment)
            seconds = time.process_time() - start
            print(f"{stream} {row}: {seconds:.1f} s of CPU time", flush=True)
            path = study.out / f"seconds-{stream}.json"
            times = json.loads(path.read_text("utf-8")) if path.exists() else {}
            times.setdefault(row, []).append(seconds)
            path.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")


def measured(study: Study, stream: str) -> dict[str, float]:
    """Returns the least CPU seconds of each row that was timed."""
    path = study.out / f"seconds-{stream}.json"
    times = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {row: min(values) for row, values in times.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
