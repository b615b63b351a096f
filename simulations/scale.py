"""Measures time of a round and memory at a thousand to a million registered clients.

Run: python simulations/scale.py [--clients 1000 1000000] [--cohort 100] [--out FOLDER]

The same cohort is drawn from more and more registered clients; each of them holds 50 examples,
drawn from the same 50,000. Targets: a million clients cost at most 1.05 times the round of a
thousand, and 100 MB more. Memory is the most that the process ever had, its start included. A study
that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from bench import figures
from bench.lab import Lab
from bench.options import arguments, positive, tabulate, whole
from rich.console import Console


def main(words: list[str]) -> None:
    """Measures every number of clients in turn and writes a table and a figure."""
    parser = arguments(__doc__, "scale")
    parser.add_argument(
        "--clients",
        nargs="+",
        type=whole,
        default=[1_000, 10_000, 100_000, 1_000_000],
        help="registered clients (default: 1000 10000 100000 1000000)",
    )
    parser.add_argument("--cohort", type=whole, default=100, help="clients of a round")
    parser.add_argument("--repeats", type=whole, default=5, help="of everything (default: 5)")
    parser.add_argument("--seconds", type=positive, default=4.0, help="of counted rounds at least")
    args = parser.parse_args(words)
    if args.smoke:
        args.clients, args.cohort, args.repeats, args.seconds = [100, 1000], 10, 1, 0.2
        with tempfile.TemporaryDirectory() as folder:
            study(args, Path(folder))
        return
    if args.cohort > min(args.clients):
        parser.error(f"--cohort {args.cohort} is more than {min(args.clients)} clients")
    study(args, args.out)


def study(args: argparse.Namespace, out: Path) -> None:
    """Measures; numbers of clients alternate, so that a busy moment meets all of them."""
    console = Console()
    clients = sorted(set(args.clients))
    lab = Lab(out, console, total=args.repeats * len(clients))
    times: dict[int, list[float]] = {count: [] for count in clients}
    sizes: dict[int, list[float]] = {count: [] for count in clients}
    for repeat in range(args.repeats):
        for count in clients:
            spec = {"clients": count, "cohort": args.cohort, "seconds": args.seconds}
            result = lab.measure({"measure": "registered", **spec}, repeat)
            if result is not None:
                times[count].append(1000 * result["median_round_seconds"])
                sizes[count].append(result["peak_mb"])
    clients = [count for count in clients if times[count]]
    if not clients:
        sys.exit("error: nothing could be measured: see the lines above")
    few = clients[0]
    lines = []
    for count in clients:
        pairs = zip(times[count], times[few], strict=False)
        lines.append(
            [
                f"{count:,}",
                f"{statistics.median(times[count]):.1f}",
                f"{statistics.median(mine / least for mine, least in pairs):.3f}",
                f"{statistics.median(sizes[count]):.0f}",
                f"{statistics.median(sizes[count]) - statistics.median(sizes[few]):+.0f}",
            ]
        )
    headings = ["registered clients", "round, ms", f"against {few:,}", "memory, MB", "more, MB"]
    title = f"{args.cohort} clients a round; targets: at most 1.05 times and 100 MB more"
    text = tabulate(title, headings, lines, console)
    (out / "table.md").write_text("\n".join(text), encoding="utf-8")
    picture = figures.registered_clients(clients, times, sizes, args.cohort)
    (out / "registered_clients.png").write_bytes(picture)
    console.print(f"table and figure: {out}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
