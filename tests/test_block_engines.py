"""`vectorized` against `serial` wherever something stands between clients and their sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import fedcl
from fedcl.core.client import Client, Model
from fedcl.core.errors import ClientError
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.model import Net
from fedcl.core.params import add
from fedcl.core.task import ClientTask, Examples
from fedcl.record import Record
from tests.plugins import Averaging, State
from tests.tiny import distance, timeless, tiny, watched

HERE = "tests.test_block_engines"
PATHS = ("auto", "grouped", "vmap")
# Cohorts of seven in fold blocks of four, cut into computations of two or three.
WIDE: dict[str, Any] = {
    "training.dtype": "float64",
    "stream.clients": 8,
    "training.cohort": 7,
    "training.fold": 4,
    "model.hidden": [70, 70],
    "training.local": {
        "name": "sgd",
        "lr": 0.1,
        "batch_size": 6,
        "epochs": 2,
        "momentum": 0.6,
        "weight_decay": 0.01,
    },
}


def assert_agree(serial: Record, other: Record) -> None:
    assert distance(serial.params, other.params) < 1e-9
    for a, b in zip(serial.evaluations, other.evaluations, strict=True):
        assert {**a, "value": 0} == {**b, "value": 0}
        assert a["value"] == pytest.approx(b["value"], rel=1e-9, abs=1e-9)
    assert timeless(serial.costs, alike=False) == timeless(other.costs, alike=False)


TABLES: dict[str, dict[str, Any]] = {
    "hidden replies": {"channel": [{"name": "secure_aggregation"}]},
    "hidden replies of equal weight": {
        "channel": [{"name": "secure_aggregation"}],
        "aggregation": {"weights": "equal"},
    },
    "head owners": {
        "channel": [{"name": "head_owners"}],
        "stream": {
            "name": "class_incremental",
            "tasks": 2,
            "clients": 8,
            "partition": {"name": "quantity", "exponent": 0.7},
        },
    },
    "medians": {"aggregation": {"name": "median"}},
    "trimmed means": {"aggregation": {"name": "trimmed_mean"}},
    "replay": {"method": {"name": "replay"}},
    "local models kept": {"method": {"name": "tests.plugins:Personal"}},
    "replies revealed": {"method": {"name": "tests.plugins:Peek"}},
    "local statistics": {
        "method": {"name": "fot", "statistics_model": "local", "statistics_clients": "cohort"}
    },
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", TABLES)
def test_equals_serial(name: str, path: str) -> None:
    table = dict(TABLES[name])
    changes = {key: value for key, value in WIDE.items() if key.split(".")[0] not in table}
    serial = fedcl.run(tiny(changes, **table, engine={"name": "serial"}))
    engine = {"name": "vectorized", "path": path, "block": 3 if path == "auto" else 2}
    assert_agree(serial, fedcl.run(tiny(changes, **table, engine=engine)))


@pytest.mark.parametrize("name", ["hidden replies", "medians"])
def test_padding_is_booked_and_visits_are_not_changed_by_it(name: str) -> None:
    table = TABLES[name]
    runs = {
        engine: watched(tiny(WIDE, **table, engine={"name": engine}))
        for engine in ("serial", "vectorized")
    }
    serial, vectorized = (watching.results for _, watching in runs.values())
    for one, two in zip(serial, vectorized, strict=True):
        assert (one.ids, one.steps, one.examples) == (two.ids, two.steps, two.examples)
        assert dict(one.uploaded) == dict(two.uploaded)
        assert (one.padded, two.padded >= 0) == (0, True)
    assert sum(result.padded for result in vectorized) > 0
    for record, watching in runs.values():
        booked = [row["padded"] for row in record.costs if row["direction"] == ""]
        assert sum(booked) == sum(result.padded for result in watching.results)


# --- One client's trouble. ---


@dataclass(frozen=True)
class Troubled(Averaging):
    """One client's examples are not what they should be, at one stage.

    Attributes:
        kind: What is wrong: `nan` or `inf` inputs, or a loss that `raises`.
        client: Whose.
    """

    kind: str = "nan"
    client: int = 3

    client_half: ClassVar[tuple[str, ...]] = ("examples", "loss")

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        local = fed.local(self.loss, data=self.examples, name="troubled")
        change = fed.aggregate(local, Model(state.params)).mean
        return replace(state, params=add(state.params, change))

    def examples(self, client: Client, message: Model) -> Examples:
        """Returns the client's examples, with one bad row."""
        data = client.data
        bad = torch.zeros(len(data), dtype=torch.bool)
        x = data.x.clone()
        if client.id == self.client and int(client.task.task) == 1:
            bad[-1] = self.kind == "raises"
            x[-1] = {"nan": torch.nan, "inf": torch.inf}.get(self.kind, 0.0)
        return Examples(x, data.y, {"bad": bad})

    def loss(self, net: Net, batch: Examples, task: ClientTask, message: object) -> Tensor:
        """Returns cross-entropy."""
        if self.kind == "raises" and bool(batch.extra["bad"].any()):
            raise ArithmeticError("a row of mine is bad")
        return CrossEntropy()(net, batch, task, message)


@pytest.mark.parametrize("channel", [[], [{"name": "secure_aggregation"}]], ids=["open", "hidden"])
@pytest.mark.parametrize("path", [*PATHS, "loop"])
@pytest.mark.parametrize("kind", ["nan", "inf", "raises"])
def test_names_the_client_whose_fault_it_is(
    kind: str, path: str, channel: list[Mapping[str, Any]]
) -> None:
    experiment = tiny(
        {**WIDE, "training.cohort": 0},
        method={"name": f"{HERE}:Troubled", "kind": kind},
        engine={"name": "vectorized", "path": path},
        channel=channel,
    )
    words = "a row of mine is bad" if kind == "raises" else "holds NaN or infinity"
    place = (3, 1, 0, "troubled")
    if (kind, path) == ("raises", "vmap"):
        # A loss that looks at numbers cannot be batched, and no client by itself is to blame.
        words, place = r'control flow.*engine.path = "loop"', (0, 0, 0, "troubled")
    with pytest.raises(ClientError, match=words) as caught:
        fedcl.run(experiment)
    error = caught.value
    assert (error.client, error.stage, error.round, error.program) == place


@dataclass(frozen=True)
class Weighted(Averaging):
    """Its loss has options in a list, which has no hash."""

    weights: list[float] = field(default_factory=lambda: [1.0, 0.5, 2.0, 1.0])

    client_half: ClassVar[tuple[str, ...]] = ("loss",)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        change = fed.aggregate(fed.local(self.loss), Model(state.params)).mean
        return replace(state, params=add(state.params, change))

    def loss(self, net: Net, batch: Examples, task: ClientTask, message: object) -> Tensor:
        """Returns weighted cross-entropy."""
        weights = torch.tensor(self.weights, dtype=batch.x.dtype)
        return CrossEntropy()(net, batch, task, message) * weights[batch.y]


def test_a_method_with_a_list_among_its_options() -> None:
    table = {"method": {"name": f"{HERE}:Weighted"}}
    runs = [fedcl.run(tiny(WIDE, **table, engine={"name": e})) for e in ("serial", "vectorized")]
    assert_agree(*runs)
