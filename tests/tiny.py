"""Tiny experiments that learn in a fraction of a second, and exact looks at what runs leave."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment, override, parse
from fedcl.core import wire
from fedcl.core.data.stream import Stream
from fedcl.core.engine import Engine
from fedcl.core.memories import Memories
from fedcl.core.params import Params
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site
from fedcl.core.vocabulary import vocabulary
from fedcl.record import Record
from fedcl.store import Store

# Five uneven clients in fold blocks of two, cohorts of three, two tasks of two rounds.
TABLE: dict[str, Any] = {
    "dataset": {
        "name": "synthetic",
        "classes": 4,
        "features": [1, 4, 4],
        "train": 160,
        "test": 48,
        "spread": 1.5,
    },
    "stream": {
        "name": "domain_incremental",
        "tasks": 2,
        "clients": 5,
        "partition": {"name": "quantity", "exponent": 0.7},
    },
    "model": {"name": "mlp", "hidden": [12]},
    "method": {"name": "fedavg"},
    "training": {
        "rounds": 2,
        "cohort": 3,
        "fold": 2,
        "local": {"name": "sgd", "lr": 0.2, "batch_size": 8},
    },
    "engine": {"name": "serial"},
    "evaluation": {"every": 1},
    "checkpoint": {"seconds": 0},
}
EXACT_FILES = ("config.toml", "evaluations.csv", "privacy.csv", "model.safetensors")
CNN = {"name": "cnn", "channels": [4], "hidden": 6, "groups": 2}
SCENARIOS = {
    "class": "class_incremental",
    "task": "task_incremental",
    "domain": "domain_incremental",
    "temporal": "temporal",
}


def tiny(changes: Mapping[str, Any] | None = None, **tables: Any) -> Experiment:
    """Returns the tiny experiment with values replaced by dotted key, and then whole tables."""
    return parse({**override(TABLE, changes or {}), **tables})


def scenario(kind: str) -> dict[str, Any]:
    """Returns the changes that make the tiny experiment one of a scenario, with data for it."""
    stream = {**TABLE["stream"], "name": SCENARIOS[kind]}
    if kind == "temporal":
        stream["column"] = "domain"
    changes = {f"stream.{key}": value for key, value in stream.items()}
    return changes | ({"dataset.domains": 4} if kind == "temporal" else {})


def same(a: Any, b: Any) -> bool:
    """Whether two values agree to the bit: tensors in type, shape and bytes; NaN equals NaN."""
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.cpu().contiguous().numpy().tobytes() == b.cpu().contiguous().numpy().tobytes()
        )
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if is_dataclass(a) and not isinstance(a, type):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)
        )
    if isinstance(a, float):
        return isinstance(b, float) and a.hex() == b.hex()
    return type(a) is type(b) and bool(a == b)


def assert_same_runs(a: Record, b: Record) -> None:
    """Asserts that two runs agree to the bit: parameters, evaluations, and costs but seconds."""
    assert same(dict(a.params), dict(b.params))
    assert same([dict(row) for row in a.evaluations], [dict(row) for row in b.evaluations])
    assert timeless(a.costs) == timeless(b.costs)


def assert_same_folders(a: Path, b: Path) -> None:
    """Asserts that two finished runs left the same, but for their wall times."""
    for file in EXACT_FILES:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file
    assert timeless(read_csv(a / "costs.csv")) == timeless(read_csv(b / "costs.csv"))
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (a, b)]
    for summary in summaries:
        assert summary.pop("seconds") > 0
    assert summaries[0] == summaries[1]


def timeless(costs: Sequence[Mapping[str, Any]], *, alike: bool = True) -> list[dict[str, Any]]:
    """Returns rows of costs without their wall time, and without padding for unlike engines."""
    without = {"seconds"} if alike else {"seconds", "padded"}
    return [{key: value for key, value in row.items() if key not in without} for row in costs]


def distance(a: Params, b: Params) -> float:
    """Returns the largest absolute difference of two models' parameters."""
    assert list(a) == list(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@dataclass
class Watching:
    """An engine that remembers what the door asked, and what came back before it was folded."""

    inner: Engine
    requests: list[tuple[Request, tuple[int, ...]]] = field(default_factory=list)
    results: list[BlockResult] = field(default_factory=list)

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Opens the inner engine."""
        self.inner.open(site, launch)

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Lets the inner engine run, and remembers."""
        self.requests.append((request, tuple(ids)))
        for result in self.inner.run(request, ids, memories):
            self.results.append(result)
            yield result

    def close(self) -> None:
        """Closes the inner engine."""
        self.inner.close()


def watched(experiment: Experiment) -> tuple[Record, Watching]:
    """Runs an experiment and returns its record and what its door asked."""
    engine = Watching(experiment.engine)
    return fedcl.run(replace(experiment, engine=engine)), engine


def trace(experiment: Experiment, out: Path) -> tuple[Record, list[Any]]:
    """Runs an experiment and returns its record and the method's state after each round.

    The states are read from the checkpoint, so they have been through the codec.
    """
    words = vocabulary(experiment.method)
    states: list[Any] = []

    def watch(_: object) -> None:
        store = Store(out / "checkpoint")
        saved = store.saved()
        store.close()
        assert saved is not None
        states.append(wire.loads(saved.state, words)[0])

    assert experiment.checkpoint.seconds == 0
    return fedcl.run(experiment, out, watch=watch), states


class Interrupted(Exception):
    """Stands for whatever stops a run."""


def interrupt_after(rounds: int) -> Callable[[Any], None]:
    """Returns a watcher that stops a run after so many rounds of the whole run."""

    def watch(now: Any) -> None:
        if now.done == rounds:
            raise Interrupted

    return watch


def first_parameters(experiment: Experiment) -> dict[str, Tensor]:
    """Returns the freshly initialised parameters that a run starts from."""
    model = build_site(experiment).model
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def stream_of(experiment: Experiment) -> Stream:
    """Returns the stream of an experiment."""
    stream = build_site(experiment).population.stream  # type: ignore[attr-defined]
    assert isinstance(stream, Stream)
    return stream


def logits(params: Params, x: Tensor) -> Tensor:
    """Returns the answers of the tiny experiment's network, by hand."""
    hidden = F.relu(x.flatten(1) @ params["fc1.weight"].T + params["fc1.bias"])
    return hidden @ params["head.weight"].T + params["head.bias"]


def rows(record: Record, **wanted: Any) -> list[dict[str, Any]]:
    """Returns the evaluations with these values: accuracies on the union test set, if not said."""
    wanted = {"metric": "accuracy", "client": None, **wanted}
    return [dict(row) for row in record.evaluations if all(row[k] == v for k, v in wanted.items())]


def angles(a: Tensor, b: Tensor) -> float:
    """Returns the sine of the largest angle between two orthonormal bases (d, k) of equal size."""
    assert a.shape == b.shape
    if not a.shape[1]:
        return 0.0
    return float(torch.linalg.matrix_norm(a - b @ (b.T @ a), ord=2))
