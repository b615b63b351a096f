"""Reads the folder of a finished run; a damaged or unfinished one is refused with the remedy."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fedcl.core.errors import ConfigError
from fedcl.decomposition import Losses, loss_decomposition

T = TypeVar("T")
Matrix = list[list[float | None]]

_COLUMNS = {
    "evaluations.csv": "round stage client client_stage model task split metric value n",
    "costs.csv": "direction payload bytes steps examples seconds",
    "privacy.csv": "channel mechanism unit epsilon delta note",
}
_OPTIONAL = (
    "dataset model evaluated_by engine engine_reason pooled_accuracy average_incremental_accuracy "
    "average_accuracy_by_stage anytime_accuracy learning_accuracy forgetting forgetting_first_last "
    "forgetting_clipped backward_transfer forward_transfer intransigence local_update_loss "
    "aggregation_loss local_update_loss_by_task aggregation_loss_by_task clients bytes_up "
    "bytes_down bytes_by_payload steps seconds rounds versions command epsilon delta noise "
    "privacy_unit epsilon_by_stage epsilon_by_unit epsilon_by_task_met epsilon_rdp adjacency "
    "sampling epsilon_lower audits"
)
_SHAPES = {
    "accuracy_matrix": (list, list),
    "average_accuracy_by_stage": (list,),
    "local_update_loss_by_task": (list,),
    "aggregation_loss_by_task": (list,),
    "bytes_by_payload": (dict, dict),
}
_REQUIRED = ("method", "stream", "scenario", "seed", "average_accuracy", "accuracy_matrix")


class Evaluation(NamedTuple):
    """One accuracy, a fraction in [0, 1]; `client` is None for the union test set of the server."""

    round: int
    stage: int
    client: int | None
    client_stage: int | None
    model: str
    task: int
    split: str
    value: float
    n: float


class Work(NamedTuple):
    """Local work of one program, summed over the run; seconds are wall time of its exchanges."""

    program: str
    steps: int
    examples: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: Its folder.
        summary: `summary.json`; what it lacks is None.
        config: The resolved `config.toml`, parsed.
        config_text: The same file as it is written.
        split: Split that the accuracies belong to: test where there is one.
        evaluations: Accuracies on that split after aggregation, in the order of the file.
        losses: What local training and aggregation lost, by old task and round; empty if no round
            was decomposed.
        traffic: Bytes by direction ("up", "down") and kind of payload.
        work: Local work by program.
        privacy: Rows of `privacy.csv`.
    """

    path: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    config_text: str
    split: str
    evaluations: tuple[Evaluation, ...]
    losses: Losses
    traffic: Mapping[str, Mapping[str, int]]
    work: tuple[Work, ...]
    privacy: tuple[Mapping[str, str], ...]

    def number(self, name: str) -> float | None:
        """Returns a number of the summary, None where it is null or absent.

        Args:
            name: Its key; a dotted name goes into tables, as in `clients.forgetting.worst`.
        """
        value: Any = self.summary
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value == "inf":  # JSON has no infinity
            return math.inf
        if value is None or _is_number(value):
            number: float | None = value
            return number
        raise damage(self.path, "summary.json", f"has {value!r} as {name}, which is no number")

    @property
    def matrix(self) -> Matrix | None:
        """Rows stages, columns tasks; None when the clients have task orders of their own."""
        matrix: Matrix | None = self.summary["accuracy_matrix"]
        return matrix


def read_run(path: Path) -> Run:
    """Reads the folder of a finished run.

    Raises:
        ConfigError: The folder is missing, unfinished or damaged.
    """
    if not (path / "config.toml").is_file():
        raise ConfigError(
            f"{path} is not a run's folder: it has no config.toml. "
            "Name a folder that `fedcl run CONFIG --out FOLDER` has written."
        )
    if not (path / "summary.json").is_file():
        raise ConfigError(
            f"the run in {path} is not finished: it has no summary.json. {_remedy(path)}"
        )
    summary = _parse(path, "summary.json", _summary)
    split, evaluations = _parse(path, "evaluations.csv", _accuracies)
    traffic, work = _parse(path, "costs.csv", _costs)
    return Run(
        path=path,
        summary=summary,
        config=_parse(path, "config.toml", tomllib.loads),
        config_text=_parse(path, "config.toml", str),
        split=split,
        evaluations=evaluations,
        losses=_parse(path, "evaluations.csv", partial(_losses, split=split)),
        traffic=summary.get("bytes_by_payload") or traffic,
        work=work,
        privacy=_parse(path, "privacy.csv", lambda text: tuple(_table("privacy.csv", text))),
    )


def _remedy(path: Path) -> str:
    words = ["fedcl", "run", str(path / "config.toml"), "--out", str(path), "--resume"]
    return f"Finish it with `{shlex.join(words)}`."


def _fits(value: object, shape: Sequence[type]) -> bool:
    """Tells whether nested lists and tables have these types from outside in, with numbers."""
    if not shape:
        return value is None or _is_number(value)
    if not isinstance(value, shape[0]):
        return False
    parts = list(value.values()) if isinstance(value, dict) else value
    return isinstance(parts, list) and all(_fits(part, shape[1:]) for part in parts)


def damage(path: Path, name: str, fault: str) -> ConfigError:
    """Returns the error for a file of a run's folder that cannot be used."""
    return ConfigError(f"the run in {path} is damaged: {name} {fault}. {_remedy(path)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parse(path: Path, name: str, parser: Callable[[str], T]) -> T:
    """Applies a parser to one file; whatever is wrong with it becomes one clear message."""
    try:
        return parser((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        fault = "is missing"
    except KeyError as error:
        fault = f"lacks {error.args[0]!r}"
    except (OSError, ValueError, TypeError, csv.Error) as error:
        fault = f"cannot be read ({error})"
    raise damage(path, name, fault) from None


def _summary(text: str) -> dict[str, Any]:
    summary = json.loads(text, parse_constant=lambda word: None)  # NaN: not evaluated
    if not isinstance(summary, dict):
        raise TypeError("not a JSON object")
    if not isinstance(summary["seed"], int):
        raise ValueError(f"seed is {summary['seed']!r}")
    for name, shape in _SHAPES.items():
        if not (summary.get(name) is None or _fits(summary[name], shape)):
            raise ValueError(f"{name} is {summary[name]!r}")
    return dict.fromkeys(_OPTIONAL.split()) | summary | {name: summary[name] for name in _REQUIRED}


def _table(name: str, text: str) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for column in _COLUMNS[name].split():
        if column not in (reader.fieldnames or ()):
            raise KeyError(column)
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has more or fewer cells than the header")
        yield row


def _accuracies(text: str) -> tuple[str, tuple[Evaluation, ...]]:
    rows = [
        Evaluation(
            round=int(row["round"]),
            stage=int(row["stage"]),
            client=int(row["client"]) if row["client"] else None,
            client_stage=int(row["client_stage"]) if row["client_stage"] else None,
            model=row["model"],
            task=int(row["task"]),
            split=row["split"],
            value=float(row["value"] or "nan"),
            n=float(row["n"] or "nan"),
        )
        for row in _table("evaluations.csv", text)
        if row["metric"] == "accuracy" and row["model"] != "local"
    ]
    split = next((s for s in ("test", "validation") if any(row.split == s for row in rows)), "test")
    return split, tuple(row for row in rows if row.split == split and math.isfinite(row.value))


def _losses(text: str, split: str) -> Losses:
    return loss_decomposition(_table("evaluations.csv", text), split=split)


def _costs(text: str) -> tuple[dict[str, dict[str, int]], tuple[Work, ...]]:
    traffic: dict[str, dict[str, int]] = {"up": defaultdict(int), "down": defaultdict(int)}
    work: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for row in _table("costs.csv", text):
        if row["direction"]:
            traffic[row["direction"]][row["payload"]] += int(row["bytes"] or 0)
        else:
            total = work[row["payload"]]
            for index, column in enumerate(("steps", "examples", "seconds")):
                total[index] += float(row[column] or 0)
    return traffic, tuple(
        Work(program, int(steps), int(examples), seconds)
        for program, (steps, examples, seconds) in work.items()
    )
