"""Rows of single clients, orders of their own, and intransigence."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedcl
from fedcl import metrics
from fedcl.core.errors import ConfigError
from fedcl.core.params import Params
from fedcl.evaluations import accuracy_matrix
from tests.tiny import (
    distance,
    logits,
    rows,
    same,
    stream_of,
    tiny,
    watched,
)

# --- Clients. ---


def test_client_rows_expect_the_accuracy_under_their_own_mix_of_classes() -> None:
    """Nobody owns test rows: a class counts as often as in the client's training share."""
    changes = {"stream.partition": {"name": "dirichlet", "alpha": 0.3}, "training.dtype": "float64"}
    experiment = tiny(changes)
    record = fedcl.run(experiment)
    stream = stream_of(experiment)
    found = [row for row in record.evaluations if row["client"] is not None and row["round"] == 4]
    assert [(row["client"], row["task"]) for row in found] == [
        (client, task) for client in range(5) for task in range(2)
    ]
    for row in found:
        data = stream.held_out(row["task"], "test")
        right = (logits(record.params, data.x.double()).argmax(1) == data.y).double()
        held = Counter(stream.train(row["client"], row["task"]).y.tolist())
        by_class = {c: float(right[data.y == c].mean()) for c in range(4)}
        expected = sum(by_class[c] * count for c, count in held.items()) / sum(held.values())
        assert row["value"] == pytest.approx(expected, abs=1e-12)
        assert row["n"] == sum(int((data.y == c).sum()) for c in held)
        assert (row["client_stage"], row["model"], row["metric"]) == (1, "global", "accuracy")
    first = [row for row in record.evaluations if row["client"] is not None and row["round"] == 2]
    assert {row["task"] for row in first} == {0}
    assert {row["client_stage"] for row in first} == {0}


def subjects(folder: Path) -> dict[str, Any]:
    """Writes three people, one of them without test rows, and a stranger with test rows alone."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(2, 6)) * 1.5
    arrays: dict[str, Any] = {}
    for split, people in (
        ("train", [7] * 20 + [3] * 30 + [5] * 10),
        ("test", [3] * 9 + [7] * 6 + [8] * 5),
    ):
        y = np.arange(len(people), dtype=np.int64) % 2
        arrays[f"x_{split}"] = (centres[y] + generator.normal(size=(len(y), 6))).astype(np.float32)
        arrays[f"y_{split}"] = y
        arrays[f"subject_{split}"] = np.array(people, dtype=np.int64)
    np.savez(folder / "people.npz", **arrays)
    return {
        "dataset": {"name": "npz", "root": str(folder), "file": "people.npz"},
        "stream": {
            "name": "domain_incremental",
            "tasks": 2,
            "partition": {"name": "natural", "column": "subject"},
        },
    }


def test_natural_clients_are_tested_on_their_own_rows(tmp_path: Path) -> None:
    experiment = tiny({"training.dtype": "float64"}, **subjects(tmp_path))
    record = fedcl.run(experiment)
    stream = stream_of(experiment)
    assert stream.clients == 3
    # People 3, 5, 7 are clients 0, 1, 2; person 5 has no test rows, nobody is person 8.
    found = [row for row in record.evaluations if row["client"] is not None and row["round"] == 4]
    assert [(row["client"], row["task"], row["n"]) for row in found] == [
        (0, 0, 9),
        (0, 1, 9),
        (2, 0, 6),
        (2, 1, 6),
    ]
    for row in found:
        data = stream.held_out(row["task"], "test")
        own = slice(0, 9) if row["client"] == 0 else slice(9, 15)
        right = logits(record.params, data.x[own].double()).argmax(1) == data.y[own]
        assert row["value"] == float(right.double().mean())
    assert record.summary["clients"]["average_accuracy"]["count"] == 2


def test_a_bounded_number_of_clients_is_recorded() -> None:
    for count, expected in ((0, []), (1, [0]), (3, [0, 4, 9]), (100, list(range(10)))):
        changes = {"stream.clients": 10, "evaluation.clients": count}
        record = fedcl.run(tiny(changes))
        clients = {row["client"] for row in record.evaluations} - {None}
        assert sorted(clients) == expected
        assert (record.summary["clients"] is None) == (count == 0)


def test_personal_models_are_what_their_clients_are_evaluated_with(tmp_path: Path) -> None:
    table = subjects(tmp_path)
    experiment = tiny(
        {"training.dtype": "float64"}, **table, method={"name": "tests.plugins:Personal"}
    )
    record, watching = watched(experiment)
    memories: dict[int, Params] = {}
    for result in watching.results:
        memories |= dict(result.memories)
    stream = stream_of(experiment)
    found = [row for row in record.evaluations if row["client"] is not None and row["round"] == 4]
    assert {row["model"] for row in found} == {"personal"}
    for row in found:
        data = stream.held_out(row["task"], "test")
        own = slice(0, 9) if row["client"] == 0 else slice(9, 15)
        predicted = logits(memories[row["client"]], data.x[own].double()).argmax(1)
        assert row["value"] == float((predicted == data.y[own]).double().mean())
    assert all(row["model"] == "global" for row in record.evaluations if row["client"] is None)
    assert distance(memories[0], record.params) > 1e-3


# --- Orders of their own. ---


@pytest.mark.parametrize("order", ["shuffled", "staggered"])
def test_with_orders_of_their_own_there_is_no_common_matrix(order: str) -> None:
    changes = {"stream.order": {"name": order}, "stream.tasks": 3, "training.rounds": 1}
    experiment = tiny(changes)
    record = fedcl.run(experiment)
    summary = record.summary
    stream = stream_of(experiment)
    for name in ("accuracy_matrix", "average_accuracy_by_stage", "forward_transfer"):
        assert summary[name] is None
    last = rows(record, round=stream.stages)
    assert [row["task"] for row in last] == [0, 1, 2]
    mean = sum(row["value"] for row in last) / 3
    assert summary["average_accuracy"] == pytest.approx(mean, abs=1e-15)
    # Forgetting is the mean over clients, each in its own order.
    values = []
    for client in range(5):
        table = accuracy_matrix(record.evaluations, client=client)
        assert table.matrix.shape == (3, 3)
        values.append(metrics.forgetting(table.matrix))
    assert summary["forgetting"] == pytest.approx(np.mean(values), abs=1e-15)
    assert summary["clients"]["forgetting"]["worst"] == pytest.approx(max(values), abs=1e-15)
    for client in range(5):
        own = [row for row in record.evaluations if row["client"] == client]
        met = {
            stage: len({row["task"] for row in own if row["stage"] == stage})
            for stage in range(stream.stages)
        }
        for stage, count in met.items():
            assert count == len(stream.history(client, stage))
        assert all(
            row["client_stage"] == len(stream.history(client, row["stage"])) - 1 for row in own
        )


def test_a_stage_without_any_client_is_refused() -> None:
    order = {"name": "staggered", "late": 1.0}
    with pytest.raises(ConfigError, match="no client has data at stage 0"):
        fedcl.run(tiny({"stream.order": order}))


def test_with_nobody_late_the_order_is_the_shared_one() -> None:
    order = {"name": "staggered", "late": 0.0}
    found = fedcl.run(tiny({"stream.order": order}))
    assert same(dict(found.params), dict(fedcl.run(tiny()).params))


# --- Intransigence. ---


def test_intransigence_against_a_joint_run(tmp_path: Path) -> None:
    changes = {"stream.tasks": 3, "training.rounds": 4}
    joint = fedcl.run(tiny(changes, method={"name": "joint"}), tmp_path / "joint")
    reference = {**changes, "evaluation.reference": str(tmp_path / "joint")}
    record = fedcl.run(tiny(reference, method={"name": "fot"}))
    upper = joint.summary["accuracy_matrix"][2][2]
    own = record.summary["accuracy_matrix"][2][2]
    assert record.summary["intransigence"] == pytest.approx(upper - own, abs=1e-15)
    assert joint.summary["intransigence"] is None


def test_what_is_no_finished_joint_run_is_no_reference(tmp_path: Path) -> None:
    fedcl.run(tiny(), tmp_path / "fedavg")
    fedcl.run(tiny(method={"name": "joint"}), tmp_path / "joint")
    for folder, message in (
        ("fedavg", "fedavg"),
        ("nowhere", "nowhere"),
    ):
        with pytest.raises(ConfigError, match=rf"reference .*{message}"):
            fedcl.run(tiny({"evaluation.reference": str(tmp_path / folder)}))
    three = {"stream.tasks": 3, "evaluation.reference": str(tmp_path / "joint")}
    with pytest.raises(ConfigError, match=r"reference .*2 tasks.*3"):
        fedcl.run(tiny(three))
