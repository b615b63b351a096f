"""The study of kron: its tables and figure."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
from kron_rows import (
    DELTA,
    EPSILON,
    PHASES,
    ROWS,
    SETTINGS,
    SIGMAS,
)
from kron_runs import Study, possible
from ladder import Search
from matplotlib.figure import Figure
from noise import frobenius, private_noise, side, trace
from runner import CONFIGS, Cell
from study_tables import show, spread

import fedcl
from fedcl.assembly import build_site
from fedcl.core.consolidation.kronecker import KroneckerMoments
from fedcl.core.data.stream import Stream
from fedcl.core.features.layers import guarded_layers
from fedcl.core.model import Net
from fedcl.core.statistic import Statistic
from fedcl.methods.kron import Question
from fedcl.reporting.style import CYCLE, MARKERS, page, png

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


def measured(study: Study, stream: str) -> dict[str, float]:
    """Returns the least CPU seconds of each row that was timed."""
    path = study.out / f"seconds-{stream}.json"
    times = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {row: min(values) for row, values in times.items()}
