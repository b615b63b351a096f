"""What does each method send? The same attacks on the payloads of every method in `methods/`.

Run: python simulations/what_methods_send.py [--seeds 0 1 2] [--shadows 16] [--plot FILE]
     [--only-table]

Split digits, class-incremental: five tasks of two digits, ten clients that share each task by a
Dirichlet distribution (0.5), two rounds of two passes a task; each method by its name alone (`cfed`
with a twentieth of the data public). Audits `inversion` and `classes` look at the replies of a
stage's first round, and of its beginning and end, as they leave the clients; then at the sums that
a server receives under secure aggregation, and under client-level differential privacy with a noise
multiplier of 1 for each release. Membership of the first task's records, told from the global model
after the first and the last stage, is attacked with the first seed alone, by repeats (audit
`membership`); methods whose servers train generators or invert gradients would take an hour there
and are left out. Runs can be stopped and go on; several processes may share them.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from runner import Cell, arguments, summary_of, work
from study_tables import show

from fedcl.audits._payloads import BESIDE
from fedcl.config import available
from fedcl.reporting.reconstructions import decibels, read_reconstructions, reconstructions

CONFIG = "private_digits.toml"
COMMON: Mapping[str, Any] = {
    "stream.clients": 10,
    "stream.partition": {"name": "dirichlet", "alpha": 0.5},
    "model.hidden": [32],
    "training.rounds": 2,
    "training.cohort": 0,
    "training.sampling": "fixed",
    "training.local": {"name": "sgd", "epochs": 2, "batch_size": 16, "lr": 0.1},
    "channel": [],
}
SMOKE: Mapping[str, Any] = {
    "dataset": {"name": "synthetic", "classes": 4, "features": [1, 8, 8], "train": 80, "test": 40},
    "stream.tasks": 2,
    "stream.clients": 4,
    "training.rounds": 1,
}
QUICK = ("fedavg", "fot", "ewc", "analytic", "replay")  # of a smoke test
PUBLIC: Mapping[str, Any] = {"stream.public": 0.05}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "fot, uniform sketch": {"name": "fot", "gpse": "sketch", "sketch_noise": "uniform"},
    "fot, normal sketch": {"name": "fot", "gpse": "sketch"},
}
SUMS = ("fedavg", "ewc", "fot", "kron", "analytic")  # a payload of each kind, as sums
CHANNELS: Mapping[str, Mapping[str, Any]] = {
    "secure aggregation": {"name": "secure_aggregation"},
    "client-level DP, z = 1": {"name": "central_dp", "noise_multiplier": 1.0, "delta": 1e-3},
}
NOTES = {
    ("glfc", "gradients"): "leaks by design: its own server reconstructs",
    ("joint", "model"): "of all stages so far",
    ("fedcbdr", "features"): "their Gram matrix, for who knows the shared rotation",
    ("analytic", "gram"): "of features, not of inputs",
}
PICTURES = (  # rows, and what of them is drawn
    ("fedavg", "model: linear layer"),
    ("fedavg, secure aggregation", "model: linear layer"),
    ("ewc", "fisher: linear layer"),
    ("glfc", "gradients: search by distance (iDLG)"),
    ("fot, uniform sketch", "sketch: ICA"),
    ("fedavg, client-level DP, z = 1", "model: linear layer"),
)
SLOW = ("glfc", "lander", "mfcl", "target")
AUDITS = ({"name": "inversion", "clients": 3, "iterations": 100}, {"name": "classes"})


def main(words: list[str]) -> None:
    """Runs what is not finished yet, and prints the tables of what there is."""
    parser = arguments(__doc__ or "", "what_methods_send")
    parser.add_argument("--shadows", type=int, default=16, help="repeats; 0 for no membership")
    parser.add_argument("--plot", type=Path, help="file of a figure of reconstructed images")
    parser.add_argument("--only-table", action="store_true", help="of what is finished")
    args = parser.parse_args(words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            cells, shadow = planned([0], SMOKE, QUICK), shadows(QUICK[:1], 0, 8, SMOKE)
            run(cells, shadow, Path(folder))
            table(cells, shadow, Path(folder))
            draw(cells, Path(folder), Path(folder) / "figure.png")
        return
    methods = available("methods")
    asked = [name for name in methods if name not in SLOW] if args.shadows else []
    cells = planned(args.seeds, {}, methods)
    shadow = shadows(asked, args.seeds[0], args.shadows, {})
    if not args.only_table:
        run(cells, shadow, args.out)
    table(cells, shadow, args.out)
    if args.plot is not None:
        draw(cells, args.out, args.plot)


def run(cells: Mapping[str, Sequence[Cell]], shadow: Mapping[str, Cell], out: Path) -> None:
    """Runs what is not finished, cheap runs first; several processes may share them."""
    slow = [row for row in cells if row.split(",")[0] in SLOW]
    quick = [own for row, own in cells.items() if row not in slow]
    work([cell for seed in zip(*quick, strict=True) for cell in seed], out)
    work([cells[row][0] for row in slow] + list(shadow.values()), out)
    work([cell for row in slow for cell in cells[row][1:]], out)


def planned(
    seeds: Sequence[int], changes: Mapping[str, Any], methods: Sequence[str]
) -> dict[str, list[Cell]]:
    """Returns the runs of each row, one for each seed."""
    rows: dict[str, dict[str, Any]] = {}
    for name in methods:
        public = PUBLIC if name == "cfed" else {}
        rows[name] = {"method": {"name": name}, **public}
        rows |= {row: {"method": m} for row, m in VARIANTS.items() if m["name"] == name}
    for word, channel in CHANNELS.items():
        for name in (name for name in methods if name in SUMS):
            rows[f"{name}, {word}"] = {"method": {"name": name}, "channel": [channel]}
    return {row: [_cell(row, own, seed, changes) for seed in seeds] for row, own in rows.items()}


def _cell(row: str, own: Mapping[str, Any], seed: int, changes: Mapping[str, Any]) -> Cell:
    name = "".join(letter if letter.isalnum() else "_" for letter in row)
    return Cell(
        f"{name}-{seed}", CONFIG, {**COMMON, **own, **changes, "seed": seed, "audit": list(AUDITS)}
    )


def shadows(
    methods: Sequence[str], seed: int, count: int, changes: Mapping[str, Any]
) -> dict[str, Cell]:
    """Returns a run of each method whose membership is attacked by so many repeats."""
    audit = [{"name": "membership", "shadows": count, "records": 0}]
    found = {}
    for name in methods:
        own = {"method": {"name": name}, **(PUBLIC if name == "cfed" else {})}
        values = {**COMMON, **own, **changes, "seed": seed, "audit": audit}
        found[name] = Cell(f"membership-{name}", CONFIG, values)
    return found


def table(cells: Mapping[str, Sequence[Cell]], shadow: Mapping[str, Cell], out: Path) -> None:
    """Prints what each method sends and what comes back from it."""
    lines = []
    for row, own in cells.items():
        done = [cell for cell in own if summary_of(cell, out) is not None]
        if not done:
            continue
        sent = _bytes(done, out)
        inversions = _rows(done, out, "inversion")
        classes = _rows(done, out, "classes")
        area = _area(shadow.get(row), out)
        for payload in sorted(sent, key=lambda kind: (kind != "model", kind)):
            if payload in BESIDE:
                continue
            attacked = [r for r in inversions if r["payload"] == payload]
            told = [r for r in classes if r["payload"] == payload]
            size = f"{sent[payload] / len(done) / 1000:.1f}"
            note = NOTES.get((row, payload), "")
            lines.append([row, payload, size, *_images(attacked), *_told(told), area, note])
            area = ""
    headings = ["method", "payload", "kB up", "attack", "best PSNR (mean image)"]
    headings += ["examples above 25 dB %", "span AUC", "classes F1 (coin)"]
    headings += ["labels named rightly (guess)", "membership AUC", "note"]
    show("What methods send, and what comes back from it", headings, lines, out)


def draw(cells: Mapping[str, Sequence[Cell]], out: Path, plot: Path) -> None:
    """Draws the best images that came back from some rows' payloads, with the first seed."""
    strips = []
    for row, name in PICTURES:
        done = row in cells and summary_of(cells[row][0], out) is not None
        found = read_reconstructions(out / cells[row][0].name) if done else None
        for strip in found.strips if found is not None else ():
            if strip.name == name:
                strips.append(replace(strip, name=f"{row}: {name.partition(':')[0]}"))
    if strips:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_bytes(reconstructions(strips))


def _bytes(cells: Sequence[Cell], out: Path) -> Counter[str]:
    """Returns the bytes that went up in all runs, by kind of payload; metrics are left out."""
    found: Counter[str] = Counter()
    for cell in cells:
        for row in _csv(out / cell.name / "costs.csv"):
            if row["direction"] == "up" and row["payload"] not in ("metrics", ""):
                found[row["payload"]] += int(row["bytes"] or 0)
    return found


def _rows(cells: Sequence[Cell], out: Path, name: str) -> list[dict[str, str]]:
    return [row for cell in cells for row in _csv(out / cell.name / "audit" / f"{name}.csv")]


def _csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _images(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the attack by which most examples came back, its best, and their share of all."""
    areas = [float(row["membership_auc"]) for row in rows if row["membership_auc"]]
    span = f"{np.mean(areas):.3f}" if areas else ""
    by: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if row["psnr_best"]:
            by.setdefault(row["attack"], []).append(row)
    if not by:
        return ["none fits" if rows else "", "", "", span]

    # A search is tried on small replies alone; other attacks on all.
    total = max(sum(float(row["examples"]) for row in own) for own in by.values())

    def share(attack: str) -> float:
        return sum(float(r["examples"]) * float(r["recovered_25"]) for r in by[attack]) / total

    def best(attack: str) -> float:
        return max(float(row["psnr_best"]) for row in by[attack])

    attack = max(by, key=lambda name: (share(name), best(name)))
    base = max(float(row["baseline_best"]) for row in by[attack])
    return [attack, f"{decibels(best(attack))} ({base:.1f})", f"{100 * share(attack):.1f}", span]


def _told(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns how well classes and labels are told, beside what one says without a payload."""
    found = []
    for own, guess, words in (
        ("f1", "f1_coin", "{:.2f} ({:.2f})"),
        ("labels", "labels_guessed", "{:.0%} ({:.0%})"),
    ):
        known = [row for row in rows if row[own]]
        weights = [int(row["replies"]) for row in known]
        means = [
            float(np.average([float(row[key]) for row in known], weights=weights))
            for key in ((own, guess) if known else ())
        ]
        found.append(words.format(*means) if means else "")
    return found


def _area(cell: Cell | None, out: Path) -> str:
    """Returns LiRA's area for the first task's records after the first and the last stage."""
    if cell is None or summary_of(cell, out) is None:
        return ""
    rows = [
        row
        for row in _csv(out / cell.name / "audit" / "membership.csv")
        if (row["task"], row["statistic"]) == ("0", "lira")
    ]
    rows.sort(key=lambda row: int(row["stage"]))
    return f"{float(rows[0]['auc']):.3f} → {float(rows[-1]['auc']):.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
