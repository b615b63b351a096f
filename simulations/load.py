"""Measures a live federation under load: 200 nodes at one SuperLink, in 20 rounds of all of them.

Run: python simulations/load.py [--nodes 200] [--rounds 20] [--durable] [--out FOLDER]

SuperLink and ServerApp are Flower's real processes on the loopback device. The nodes are one
process, which speaks Flower's Fleet API for each of them and answers with fedcl's client half
(`bench.crowd`). It is an error when a client's answer is missing from a round or counts twice, when
a client fails, when the SuperLink's database keeps anything of a message, or when SuperLink or
ServerApp have grown by 1 kB or more for each message since round 5. How many questions had to be
asked again, since Flower lost them or their answers, is counted. Needs Linux.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from pathlib import Path

from bench import federation
from bench.crowd import NAME
from bench.federation import SIZE, Load
from bench.options import arguments, parsed_for_memory, tabulate, whole
from rich.console import Console
from scipy.stats import theilslopes

# Programs as the operating system names them, which keeps 15 letters.
PROGRAMS = {"SuperLink": "flower-superlin", "ServerApp": "flwr-serverapp", "all nodes": NAME}
BOUNDED = ("SuperLink", "ServerApp")
BOUND = 1.0  # kB for each message, of which a message itself has 52
FIRST = 5  # round from which a line is fitted: until then caches and pools fill


def main(words: list[str]) -> None:
    """Runs the federation and writes tables."""
    parser = arguments(__doc__, "load")
    parser.add_argument("--nodes", type=whole, default=200, help="default: 200")
    parser.add_argument("--rounds", type=whole, default=20, help="of all nodes (default: 20)")
    parser.add_argument(
        "--durable",
        action="store_true",
        help="the SuperLink keeps its state in a file, not in memory as Flower does by default",
    )
    args = parsed_for_memory(parser, words)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            study(10, 3, Path(folder), durable=True)
        return
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty: remove it, or name another --out")
    study(args.nodes, args.rounds, args.out, args.durable)


def study(nodes: int, rounds: int, out: Path, durable: bool) -> None:
    """Measures once, shows it, and ends with an error where a claim does not hold."""
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    load = federation.measure(nodes, rounds, out, durable)
    text = [*_rounds(load, console), *_messages(load, console), *_programs(load, console)]
    (out / "table.md").write_text("\n".join(text), encoding="utf-8")
    console.print(f"tables: {out}", markup=False, soft_wrap=True)
    wrong = complaints(load)
    if wrong:
        sys.exit("error: " + "; ".join(wrong))


def complaints(load: Load) -> list[str]:
    """Returns which claims do not hold, and why."""
    wrong = [f"the run ended as {load.status}"] if load.status != "finished:completed" else []
    if len(load.ends) != load.rounds:
        wrong.append(f"{len(load.ends)} of {load.rounds} rounds were seen")
    for kind, times in (("introduction", 1), ("exchange", load.rounds)):
        answered = load.told["answered"].get(f"query.{kind}", {})
        for client in map(str, range(load.nodes)):
            if answered.get(client, 0) < times:
                wrong.append(
                    f"client {client} has answered {answered.get(client, 0)} messages of kind "
                    f"{kind}, not {times}"
                )
    if load.told["twice"]:
        wrong.append(f"{load.told['twice']} messages were answered twice")
    wrong += [f"a client failed: {why}" for why in load.failures]
    if load.rejected:
        wrong.append(f"{load.rejected} replies were refused")
    for way, sums in (("from", load.up), ("to", load.down)):
        expected = dict.fromkeys(range(1, load.rounds + 1), SIZE * load.nodes)
        if sums != expected:
            wrong.append(f"the costs have other bytes {way} clients than {expected}: {sums}")
    wrong += [f"{count} rows are left in {name}" for name, count in load.kept.items() if count]
    for program in BOUNDED:
        grown = growth(load, program)
        if grown is not None and grown >= BOUND:
            wrong.append(f"{program} grows by {grown:.2f} kB for each message")
    return wrong


def growth(load: Load, program: str) -> float | None:
    """Returns by how many kB a program grows for each message; None after too few rounds."""
    if len(load.ends) < FIRST + 5:
        return None
    sizes = [found.get(PROGRAMS[program], 0.0) for found in load.memory]
    # Median of the slopes of all pairs (Theil and Sen): memory that comes back for a round counts
    # for little.
    per_round = float(theilslopes(sizes[FIRST - 1 :]).slope)
    return 1000 * per_round / (2 * load.nodes)  # a question and an answer


def _rounds(load: Load, console: Console) -> list[str]:
    lines = [
        [
            f"{number}",
            f"{end - begin:.1f}",
            *(f"{memory.get(program, 0.0):.1f}" for program in PROGRAMS.values()),
        ]
        for number, (begin, end), memory in zip(
            itertools.count(1), itertools.pairwise([0.0, *load.ends]), load.memory, strict=False
        )
    ]
    headings = ["round", "seconds", *(f"{name}, MB" for name in PROGRAMS)]
    return tabulate(f"{load.nodes} nodes; the first round waits for them", headings, lines, console)


def _messages(load: Load, console: Console) -> list[str]:
    asked = load.nodes * load.rounds
    answered = load.told["answered"].get("query.exchange", {})
    line = [
        f"{asked:,}",
        f"{sum(answered.values()):,}",
        f"{sum(load.up.values()) // SIZE:,}",
        f"{sum(answered.values()) - asked}",
        f"{load.rejected}",
        f"{len(load.failures)}",
        f"{sum(load.kept.values())}" if load.kept else "-",
        f"{sum(load.up.values()) / 1e6:.0f}",
        f"{sum(load.down.values()) / 1e6:.0f}",
    ]
    headings = ["asked", "answered", "recorded", "asked again", "refused", "failures", "rows left"]
    return tabulate("Messages", [*headings, "MB up", "MB down"], [line], console)


def _programs(load: Load, console: Console) -> list[str]:
    lines = []
    for name, program in PROGRAMS.items():
        spent = [found.get(program, 0.0) for found in load.work]
        each = [later - before for before, later in itertools.pairwise(spent)]
        grown = growth(load, name)
        lines.append(
            [
                name,
                f"{load.memory[-1].get(program, 0.0):.0f}",
                "-" if grown is None else f"{grown:+.3f}",
                (f"below {BOUND:g}" if name in BOUNDED else "none"),
                f"{statistics.median(each):.1f}" if each else "-",
            ]
        )
    headings = ["program", "last MB", f"kB a message from round {FIRST}", "bound", "CPU s a round"]
    return tabulate("Programs", headings, lines, console)


if __name__ == "__main__":
    main(sys.argv[1:])
