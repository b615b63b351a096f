"""Does forgetting remove a backdoor, and does replay keep it? Which rule withstands which attack?

Run: python simulations/backdoor.py [--seeds 0 1 2] [--only-table]

Digits. First, five tasks: a fifth of the clients plants a backdoor in the first task, and then is
honest; the attack success rate is that of the first task's test inputs after every task, beside the
clean twin in which nobody attacks. Second, one task, where a fifth of the clients attacks in every
round: the accuracy that each rule of aggregation keeps.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner import Cell, arguments, summary_of, work
from study_tables import show, spread

CONFIG = "fot_digits.toml"
STREAMS: Mapping[str, Mapping[str, Any]] = {
    "permuted": {},
    "split": {"stream": {"name": "class_incremental", "tasks": 5, "clients": 20}},
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "finetune": {"name": "fedavg"},
    "replay": {"name": "replay"},
    "fot": {"name": "fot"},
}
BACKDOOR = {"attack": "backdoor", "share": 0.2, "target": 0, "size": 2, "boost": 5.0}
PLANTED = {**BACKDOOR, "last": 0}
NEVER = {**BACKDOOR, "first": 99}
ATTACKERS = 4  # a fifth of the clients, all of whom are asked
ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "sign flip, 10 times": {"attack": "sign_flip", "share": 0.2, "strength": 10.0},
    "a little is enough": {"attack": "alie", "share": 0.2},
    "inner product": {"attack": "ipm", "share": 0.2, "strength": 5.0},
    "min-max": {"attack": "min_max", "share": 0.2},
    "labels flipped": {"attack": "label_flip", "share": 0.2},
    "backdoor, boosted": BACKDOOR,
}
RULES: Mapping[str, Mapping[str, Any]] = {
    "mean": {},
    "mean, norm at most 2": {"replies": {"bad": "reject", "norm": 2.0}},
    "median": {"aggregation": {"name": "median"}},
    "trimmed mean": {"aggregation": {"name": "trimmed_mean", "share": 0.2}},
    "krum": {"aggregation": {"name": "krum", "attackers": ATTACKERS}},
    "multi-krum": {"aggregation": {"name": "multi_krum", "attackers": ATTACKERS}},
    "bulyan": {"aggregation": {"name": "bulyan", "attackers": ATTACKERS}},
}
ONE_TASK: Mapping[str, Any] = {
    "method.name": "fedavg",
    "stream": {"name": "domain_incremental", "transform": "permute", "tasks": 1, "clients": 20},
    "training.cohort": 0,
    "training.rounds": 10,
}
COMMON: Mapping[str, Any] = {"evaluation.every": 0, "evaluation.clients": 0}
SMOKE: Mapping[str, Any] = {
    "dataset": {"name": "synthetic", "classes": 10, "features": [1, 4, 4], "train": 200},
    "model.hidden": [8],
    "training.rounds": 1,
}
Cells = Mapping[tuple[str, str], Sequence[Cell]]


def main(words: list[str]) -> None:
    """Runs what is not finished yet, and prints both tables."""
    parser = arguments(__doc__ or "", "backdoor")
    parser.add_argument("--only-table", action="store_true", help="of what is finished")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) if args.smoke else args.out
        seeds, changes = ([0], SMOKE) if args.smoke else (args.seeds, {})
        lasting, kept = lasting_cells(seeds, changes), kept_cells(seeds, changes)
        if args.smoke:
            lasting = {place: lasting[place] for place in list(lasting)[:2]}
            kept = {place: kept[place] for place in list(kept)[-2:]}
        if not args.only_table:
            work([cell for cells in (lasting, kept) for own in cells.values() for cell in own], out)
        show(*lasting_table(lasting, out), out, "lasting.md")
        show(*kept_table(kept, out), out, "rules.md")


def lasting_cells(seeds: Sequence[int], changes: Mapping[str, Any]) -> Cells:
    """Returns the runs of five tasks by stream and method, each followed by its clean twin."""
    audit = [{"name": "backdoor", "examples": 0}]
    return {
        (stream, method): [
            Cell(
                f"{stream}-{method}-{'planted' if adversary is PLANTED else 'twin'}-{seed}",
                CONFIG,
                {**COMMON, **own, "method": table, **changes, "seed": seed, "audit": audit}
                | {"adversary": adversary},
            )
            for adversary in (PLANTED, NEVER)
            for seed in seeds
        ]
        for stream, own in STREAMS.items()
        for method, table in METHODS.items()
    }


def kept_cells(seeds: Sequence[int], changes: Mapping[str, Any]) -> Cells:
    """Returns the runs of one task by attack and rule."""
    return {
        (attack, rule): [
            Cell(
                f"{attack}-{rule}-{seed}".replace(", ", "_").replace(" ", "_"),
                CONFIG,
                {**COMMON, **ONE_TASK, **own, **changes, "seed": seed, "adversary": adversary}
                | ({"audit": [{"name": "backdoor"}]} if adversary is BACKDOOR else {}),
            )
            for seed in seeds
        ]
        for attack, adversary in ATTACKS.items()
        for rule, own in RULES.items()
    }


def lasting_table(cells: Cells, out: Path) -> tuple[str, list[str], list[list[str]]]:
    """Returns title, headings and rows of the backdoor's success after every task."""
    rows = []
    for (stream, method), own in cells.items():
        for who in ("planted", "twin"):
            done = [c for c in own if f"-{who}-" in c.name and summary_of(c, out) is not None]
            if not done:
                continue
            found = [_first_task(cell, out) for cell in done]
            stages = range(len(found[0]))
            asr = [spread(one[k]["asr"] for one in found) for k in stages]
            accuracy = [spread(one[k]["clean_accuracy"] for one in found) for k in (0, -1)]
            base = spread(one[-1]["base_rate"] for one in found)
            rows.append([stream, method, who, *asr, base, *accuracy, str(len(done))])
    columns = [f"ASR after task {k + 1} %" for k in range(5)]
    headings = ["digits", "method", "backdoor", *columns, "without trigger, at the end %"]
    headings += ["accuracy of task 1, first %", "at the end %", "seeds"]
    return "A backdoor planted in the first of five tasks: its test inputs", headings, rows


def kept_table(cells: Cells, out: Path) -> tuple[str, list[str], list[list[str]]]:
    """Returns title, headings and rows of the accuracy that each rule keeps under each attack."""
    rules = list(dict.fromkeys(rule for _, rule in cells))
    rows = []
    for attack in dict.fromkeys(attack for attack, _ in cells):
        found = {
            rule: [s for c in cells[attack, rule] if (s := summary_of(c, out)) is not None]
            for rule in rules
        }
        if all(found.values()):
            rows.append(
                [attack, *(spread(s["average_accuracy"] for s in found[rule]) for rule in rules)]
            )
            if attack.startswith("backdoor"):
                rates = (
                    spread(s["audits"]["backdoor"]["asr_at_end"] for s in found[rule])
                    for rule in rules
                )
                rows.append(["its success rate (ASR)", *rates])
    return "Accuracy after one task under attack, %", ["attack", *rules], rows


def _first_task(cell: Cell, out: Path) -> list[dict[str, float]]:
    """Returns what the audit says of the first task's inputs, stage by stage."""
    with (out / cell.name / "audit" / "backdoor.csv").open(encoding="utf-8") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [row for row in rows if row["task"] == 0]


if __name__ == "__main__":
    main(sys.argv[1:])
