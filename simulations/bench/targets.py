"""What the engines are to reach, what they reached, and whether that is enough."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.speed import ONE_RAY_WORKER, OURS, Speeds, Spread
from bench.work import WORKS

MISSING = "not measured"
Checks = Mapping[str, Sequence[Mapping[str, Any]]]
IN_PROCESS = ("serial", "vectorized")


@dataclass(frozen=True)
class Target:
    """One row of the table of targets.

    Attributes:
        what: What is measured.
        target: The number to reach, in words.
        reached: The number reached, in words.
        met: Whether that is enough; None where it was not measured.
    """

    what: str
    target: str
    reached: str = MISSING
    met: bool | None = None


def targets(speeds: Speeds, checks: Checks, cohort: int) -> list[Target]:
    """Returns every row.

    Args:
        speeds: Updates per second.
        checks: Results of the other measurements by name, one a repeat; see `bench.checks`.
        cohort: Cohort of the comparisons.
    """
    return [
        *_comparisons(speeds, cohort),
        _peak(speeds, checks, cohort),
        _scaling(speeds, checks, cohort),
        _driver(speeds, cohort),
        *_starts(speeds, cohort),
        *_rounds(checks),
        *_registered(checks),
        *_commits(checks),
        _bits(checks),
        _gpu(checks),
    ]


def _comparisons(speeds: Speeds, cohort: int) -> list[Target]:
    rows = []
    for other, ours, limits in (
        ("flower", OURS, {"mlp": 20.0, "cnn": 2.0}),
        ("pfl", IN_PROCESS, {"mlp": 3.5, "cnn": 1.3}),
        ("plain loop", IN_PROCESS, {"mlp": 3.0, "cnn": 1.25}),
    ):
        for model, limit in limits.items():
            best = speeds.best(ours, model, cohort)
            ratio = speeds.ratio(best, other, model, cohort) if best else None
            what = f"updates a second against {other}, {model}, cohort {cohort}"
            rows.append(_above(what, limit, ratio, f" x, {best}"))
    ratio = speeds.ratio("grid", "flower", "mlp", cohort)
    what = f"Flower app on our grid against Flower's own simulation, mlp, cohort {cohort}"
    return [*rows, _above(what, 3.0, ratio, " x")]


def _above(what: str, limit: float, found: Spread | None, unit: str, digits: int = 2) -> Target:
    shown = f">= {limit:g}{unit.partition(',')[0]}"
    if found is None:
        return Target(what, shown)
    return Target(what, shown, found.text(digits) + unit, found.median >= limit)


def _below(what: str, limit: float, found: Spread | None, unit: str, digits: int = 2) -> Target:
    shown = f"<= {limit:g}{unit}"
    if found is None:
        return Target(what, shown)
    return Target(what, shown, found.text(digits) + unit, found.median <= limit)


def _peak(speeds: Speeds, checks: Checks, cohort: int) -> Target:
    what = f"share of one core's matrix-multiply peak, mlp, cohort {cohort}"
    best = speeds.best(IN_PROCESS, "mlp", cohort)
    rates = [result["gflops"] * 1e9 for result in checks.get("peak", ())]
    if best is None or not rates:
        return Target(what, ">= 25 %")
    found = speeds.spread(best, "mlp", cohort, "updates_per_second")
    assert found is not None
    scale = 100 * WORKS["mlp"].flops / statistics.median(rates)
    share = Spread(found.median * scale, found.lowest * scale, found.highest * scale)
    return _above(what, 25.0, share, f" %, {best}", 1)


def _scaling(speeds: Speeds, checks: Checks, cohort: int) -> Target:
    what = "2 Ray workers against 1, as a share of what two matrix-multiplying processes gain"
    ratio = speeds.ratio("ray", ONE_RAY_WORKER, "mlp", cohort)
    gains = [result["two_processes"] for result in checks.get("peak", ())]
    if ratio is None or not gains:
        return Target(what, ">= 0.85 x")
    gain = statistics.median(gains)
    share = Spread(ratio.median / gain, ratio.lowest / gain, ratio.highest / gain)
    return _above(what, 0.85, share, f" x, {ratio.median:.2f} of {gain:.2f}")


def _driver(speeds: Speeds, cohort: int) -> Target:
    found = speeds.spread("ray", "mlp", cohort, "driver_ms_per_update")
    row = _below(f"processor time of Ray's driver, mlp, cohort {cohort}", 0.15, found, " ms", 3)
    theirs = speeds.spread("flower", "mlp", cohort, "driver_ms_per_update")
    if found is None or theirs is None:
        return row
    return Target(row.what, row.target, f"{row.reached} (flower {theirs.text(1)})", row.met)


def _starts(speeds: Speeds, cohort: int) -> list[Target]:
    name = "first_round_seconds"
    return [
        _below(
            f"time until the first round ends, after imports, {engine}",
            limit,
            speeds.spread(engine, "mlp", cohort, name),
            " s",
        )
        for engine, limit in (("vectorized", 1.0), ("ray", 12.0))
    ]


def _rounds(checks: Checks) -> list[Target]:
    shortest = [
        1000 * (r["round_seconds"] - r["parts"]["train"]) for r in checks.get("parts at 10", ())
    ]
    overhead = []
    for result in checks.get("parts at 100", ()):
        parts = result["parts"]
        whole = result["round_seconds"] - parts["commit"]
        overhead.append(100 * (1 - (parts["train"] + parts["copy"] + parts["fold"]) / whole))
    return [
        _below("shortest round, cohort 10, beyond training", 5.0, _spread(shortest), " ms"),
        _below(
            "door, channel, ledger and records of a round, cohort 100, commits apart",
            15.0,
            _spread(overhead),
            " %",
            1,
        ),
    ]


def _registered(checks: Checks) -> list[Target]:
    few, many = checks.get("registered few", ()), checks.get("registered many", ())
    pairs = list(zip(few, many, strict=False))
    times = [b["median_round_seconds"] / a["median_round_seconds"] for a, b in pairs]
    sizes = [b["peak_mb"] - a["peak_mb"] for a, b in pairs]
    numbers = [f"{pairs[0][k]['clients']:,}" for k in (1, 0)] if pairs else ["1,000,000", "1,000"]
    against = f"{numbers[0]} registered clients against {numbers[1]}"
    return [
        _below(f"round time, {against}", 1.05, _spread(times), " x", 3),
        _below(f"memory, {against}", 100.0, _spread(sizes), " MB", 1),
    ]


def _commits(checks: Checks) -> list[Target]:
    rows = []
    for name, what, limit in (
        ("commit small", "a commit of a small state", 10.0),
        ("commit basis", "a commit of Permuted-MNIST's state with FOT's basis", 100.0),
    ):
        results = checks.get(name, ())
        size = f" ({results[0]['state_mb']:.1f} MB)" if results else ""
        spread = _spread([result["commit_ms"] for result in results])
        rows.append(_below(what + size, limit, spread, " ms", 1))
    return rows


def _bits(checks: Checks) -> Target:
    what = "same bits for 0, 1, 2, 4 workers, and after kill -9 and resume"
    results = checks.get("bits", ())
    if not results:
        return Target(what, "always")
    runs, same = (sum(result[name] for result in results) for name in ("runs", "same"))
    return Target(what, "always", f"{same} of {runs} runs", same == runs)


def _gpu(checks: Checks) -> Target:
    what = "GPU, cohort 64, FOT's Permuted-MNIST network, vectorized against the plain loop"
    ours, theirs = checks.get("gpu ours", ()), checks.get("gpu loop", ())
    name = "updates_per_second"
    ratios = [a[name] / b[name] for a, b in zip(ours, theirs, strict=False)]
    return _above(what, 20.0, _spread(ratios), " x", 1)


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread.of(values) if values else None
