"""Client updates per second of every engine: what to measure, and the numbers of the repeats."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ENGINES = ("serial", "vectorized", "ray", "grid", "flower", "pfl", "plain loop")
OURS = ("serial", "vectorized", "ray")
ONE_RAY_WORKER = "ray, 1 worker"


def spec(engine: str, model: str, cohort: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the measurement of an engine.

    Args:
        engine: One of `ENGINES`, or `ONE_RAY_WORKER`.
        model: A name of `bench.work.WORKS`.
        cohort: Clients of a round.
        options: `seconds`, `workers` and `device` of the study.
    """
    common = {"model": model, "cohort": cohort, "seconds": options["seconds"]}
    device = {"device": options["device"]}
    if engine in ("serial", "vectorized"):
        return {"measure": "fedcl", "engine": {"name": engine}, **common, **device}
    if engine in ("ray", ONE_RAY_WORKER):
        workers = options["workers"] if engine == "ray" else 1
        return {
            "measure": "fedcl",
            "engine": {"name": "ray", "workers": workers},
            **common,
            **device,
        }
    if engine in ("flower", "grid"):
        return {
            "measure": "flower",
            "grid": engine == "grid",
            **common,
            "workers": options["workers"],
        }
    return {"measure": engine, **common, **device}


@dataclass(frozen=True)
class Spread:
    """A number over repeats."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns median and range of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 0) -> str:
        """Returns the median, and the range where it is one."""
        if self.lowest == self.highest:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.lowest:.{digits}f} to {self.highest:.{digits}f})"


@dataclass
class Speeds:
    """Results by engine, model and cohort, one for each repeat."""

    found: dict[tuple[str, str, int], dict[int, dict[str, Any]]] = field(default_factory=dict)

    def add(
        self, engine: str, model: str, cohort: int, repeat: int, result: dict[str, Any]
    ) -> None:
        """Keeps a result."""
        self.found.setdefault((engine, model, cohort), {})[repeat] = result

    def engines(self, model: str) -> list[str]:
        """Returns the engines that have results, in the order of `ENGINES`."""
        known = {engine for engine, name, _ in self.found if name == model}
        return [engine for engine in ENGINES if engine in known]

    def cohorts(self) -> list[int]:
        """Returns the cohorts that have results, ascending."""
        return sorted({cohort for _, _, cohort in self.found})

    def spread(self, engine: str, model: str, cohort: int, name: str) -> Spread | None:
        """Returns a number over the repeats, or None without results."""
        results = self.found.get((engine, model, cohort), {})
        return Spread.of([result[name] for result in results.values()]) if results else None

    def ratio(self, engine: str, other: str, model: str, cohort: int) -> Spread | None:
        """Returns how many times the other's updates per second an engine makes.

        Only measurements of the same repeat are compared, since they ran side by side.
        """
        name = "updates_per_second"
        ours = self.found.get((engine, model, cohort), {})
        theirs = self.found.get((other, model, cohort), {})
        ratios = [ours[r][name] / theirs[r][name] for r in ours if r in theirs]
        return Spread.of(ratios) if ratios else None

    def best(self, names: Sequence[str], model: str, cohort: int) -> str | None:
        """Returns the fastest of some engines, or None without results."""
        medians = {
            name: found.median
            for name in names
            if (found := self.spread(name, model, cohort, "updates_per_second"))
        }
        return max(medians, key=lambda name: medians[name]) if medians else None

    def lines(self) -> list[dict[str, Any]]:
        """Returns one object for each engine, model and cohort: what `--json` prints."""
        rows = []
        for (engine, model, cohort), results in self.found.items():
            speed = Spread.of([r["updates_per_second"] for r in results.values()])
            numbers = ("first_round_seconds", "driver_ms_per_update")
            medians = {n: statistics.median(r[n] for r in results.values()) for n in numbers}
            rows.append(
                {
                    "engine": engine,
                    "model": model,
                    "cohort": cohort,
                    "updates_per_second": speed.median,
                    "lowest": speed.lowest,
                    "highest": speed.highest,
                    "repeats": len(results),
                    **medians,
                }
            )
        return rows
