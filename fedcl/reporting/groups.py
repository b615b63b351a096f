"""Groups runs that differ only in the seed, names the groups, and estimates over the seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from fedcl.core.errors import ConfigError
from fedcl.reporting.formulas import DIFFERENCES, scenario
from fedcl.reporting.results import Run
from fedcl.reporting.text import MISSING, decimal, unit

_BY_SEED = ("seed", "evaluation.reference")
_BYTES = ("bytes_up", "bytes_down")


@dataclass(frozen=True)
class Estimate:
    """Mean over the seeds that have a value.

    Attributes:
        mean: The mean; None where no run has a value.
        std: Sample standard deviation (divided by n - 1); None for fewer than two values.
        n: Number of values.
    """

    mean: float | None
    std: float | None
    n: int

    def text(self, scale: float = 1.0, digits: int = 1) -> str:
        """Returns `mean ± std`, or the mean and n = 1: one run has no spread."""
        if self.mean is None:
            return MISSING
        mean = decimal(scale * self.mean, digits)
        return (
            f"{mean} (n=1)" if self.std is None else f"{mean} ± {decimal(scale * self.std, digits)}"
        )


@dataclass(frozen=True)
class Group:
    """Runs of one config with different seeds.

    Attributes:
        label: The method, and what else differs between the groups.
        runs: The runs in the order of their seeds.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def scenario(self) -> str:
        """Scenario of the stream."""
        return scenario(self.runs[0])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs, rising."""
        return tuple(run.summary["seed"] for run in self.runs)

    def estimate(self, name: str) -> Estimate:
        """Returns the estimate of a number of the summary."""
        return estimate(run.number(name) for run in self.runs)


def estimate(values: Iterable[float | None]) -> Estimate:
    """Returns mean and sample standard deviation of the values that are not None."""
    known = [value for value in values if value is not None]
    if math.inf in known:  # an epsilon without a bound has no spread
        return Estimate(math.inf, None, len(known))
    return Estimate(
        fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known)
    )


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups runs by their resolved config without the seed, in the order of first appearance.

    The folder of a reference run (for intransigence) belongs to the seed, so it does not count.

    Raises:
        ConfigError: Two runs have the same config and the same seed.
    """
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        options = sorted(word for word in _flatten(run.config) if word[0] not in _BY_SEED)
        seeds = groups.setdefault(json.dumps(options), {})
        twin = seeds.setdefault(run.summary["seed"], run)
        if twin is not run:
            raise ConfigError(
                f"{twin.path} and {run.path} have the same config and the same seed, and a "
                "repetition is no second sample. Name only one of them."
            )
    ordered = [tuple(seeds[seed] for seed in sorted(seeds)) for seeds in groups.values()]
    labels = _labels([same[0] for same in ordered])
    return [Group(label, same) for label, same in zip(labels, ordered, strict=True)]


def _labels(runs: Sequence[Run]) -> list[str]:
    """Returns for each config its method and the options in which it differs from another."""
    flat = [dict(_flatten(run.config)) for run in runs]
    words: list[list[tuple[str, str]]] = [[] for _ in runs]
    for key in dict.fromkeys(key for options in flat for key in options):
        if key in (*_BY_SEED, "method.name"):
            continue
        kin = [_kin(options, key) for options in flat]
        for index, options in enumerate(flat):
            others = [o.get(key) for o, k in zip(flat, kin, strict=True) if k == kin[index]]
            if key in options and any(other != options[key] for other in others):
                words[index].append((key, options[key]))
    methods = [str(run.summary["method"]) for run in runs]
    short = [", ".join([m, *map(_short, w)]) for m, w in zip(methods, words, strict=True)]
    if len(set(short)) == len(short):
        return short
    long = [[f"{key}={value}" for key, value in w] for w in words]
    return [", ".join([m, *w]) for m, w in zip(methods, long, strict=True)]


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flatten(item, f"{key}.{name}" if key else name)
    elif value != []:  # an empty list is an option that is not used
        yield key, value if isinstance(value, str) else json.dumps(value, default=str)


def _kin(options: Mapping[str, str], key: str) -> tuple[str | None, ...]:
    """Returns the names of the plug-ins around an option: only runs that share them compare."""
    parts = key.split(".")
    tables = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    return tuple(options.get(f"{t}.name") for t in tables if f"{t}.name" != key)


def _short(word: tuple[str, str]) -> str:
    key, value = word
    name = key.rpartition(".")[2]
    return value if name == "name" else f"{name}={value}"


class Column(NamedTuple):
    """A number of the summary as a column of a table."""

    title: str
    name: str
    scale: float = 100.0
    digits: int = 1

    def text(self, group: Group) -> str:
        """Returns the cell of a group."""
        return group.estimate(self.name).text(self.scale, self.digits)


def accuracy_columns() -> list[Column]:
    """Returns the columns of accuracies, by the names of METRICS.md."""
    names = ("average_accuracy", "pooled_accuracy", "average_incremental_accuracy")
    return [Column(f"{name} [%]", name) for name in (*names, "learning_accuracy")]


def difference_columns(groups: Sequence[Group]) -> list[Column]:
    """Returns the columns of forgetting and transfer, by the names of METRICS.md.

    Where a federation forgets has columns if one of the groups was decomposed.
    """
    halves = ("local_update_loss", "aggregation_loss")
    told = [name for name in halves if any(group.estimate(name).n for group in groups)]
    return [Column(f"{name} [pp]", name) for name in (*DIFFERENCES, *told)]


def cost_columns(groups: Sequence[Group]) -> list[Column]:
    """Returns the columns of clients, traffic, work and privacy, in units that suit the groups."""
    largest = max(group.estimate(name).mean or 0 for group in groups for name in _BYTES)
    factor, name = unit(largest)
    digits = 1 if largest >= 10 * factor else 2
    return [
        Column("worst client [%]", "clients.average_accuracy.worst"),
        Column(f"up [{name}]", "bytes_up", 1 / factor, digits),
        Column(f"down [{name}]", "bytes_down", 1 / factor, digits),
        Column("local steps", "steps", 1.0, 0),
        Column("time [s]", "seconds", 1.0),
        Column("ε", "epsilon", 1.0, 2),
    ]


def table(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Returns one row a group: text by column title, the same columns in every row."""
    brief = ("average_accuracy", "forgetting", "backward_transfer", *_BYTES, "seconds")
    everything = [*accuracy_columns(), *difference_columns(groups), *cost_columns(groups)]
    columns = [column for column in everything if column.name in brief]
    return [
        {"method": group.label, "scenario": group.scenario, "seeds": f"n={len(group.runs)}"}
        | {column.title: column.text(group) for column in columns}
        for group in groups
    ]
