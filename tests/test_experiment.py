"""Experiments: the files and numbers that a run leaves, who takes part, and which rounds count."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl import metrics
from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError
from fedcl.core.params import Params
from fedcl.core.stream import Stream
from fedcl.evaluations import accuracy_matrix
from fedcl.record import Record
from tests.tiny import (
    assert_same_runs,
    distance,
    read_csv,
    same,
    scenario,
    timeless,
    tiny,
    trace,
    watched,
)

ROOT = Path(__file__).parent.parent
EVALUATIONS = "round,stage,client,client_stage,model,task,split,metric,value,n"
COSTS = "round,stage,client,direction,payload,bytes,steps,examples,seconds"
PRIVACY = "channel,mechanism,unit,epsilon,delta,note"
# DESIGN section 9, and what the report reads.
PROMISED = [
    "method",
    "stream",
    "scenario",
    "seed",
    "dataset",
    "model",
    "engine",
    "engine_reason",
    "accuracy_matrix",
    "average_accuracy",
    "pooled_accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "forgetting_first_last",
    "forgetting_clipped",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
    "intransigence",
    "average_accuracy_by_stage",
    "untrained_accuracy",
    "clients",
    "bytes_up",
    "bytes_down",
    "bytes_by_payload",
    "steps",
    "seconds",
    "rounds",
    "versions",
    "command",
    "epsilon",
    "delta",
    "noise",
]


def stream_of(experiment: Experiment) -> Stream:
    stream = build_site(experiment).population.stream  # type: ignore[attr-defined]
    assert isinstance(stream, Stream)
    return stream


def rows(record: Record, **wanted: Any) -> list[dict[str, Any]]:
    """The evaluations with these values; if not said, the global model's union accuracies."""
    wanted = {"metric": "accuracy", "client": None, **wanted}
    return [dict(row) for row in record.evaluations if all(row[k] == v for k, v in wanted.items())]


# --- The folder. ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """A finished run of three domain-incremental tasks, and its folder."""
    folder = tmp_path_factory.mktemp("experiment") / "run"
    changes = {"stream.tasks": 3, "evaluation.every": 1, "training.rounds": 3}
    record = fedcl.run(tiny(changes, method={"name": "fot"}), folder, command=("fedcl", "run"))
    return record, folder


def test_the_promised_files(finished: tuple[Record, Path]) -> None:
    _, folder = finished
    names = {path.name for path in folder.iterdir()}
    promised = {"config.toml", "evaluations.csv", "costs.csv", "privacy.csv", "summary.json"}
    assert names >= promised | {"model.safetensors", "checkpoint"}
    assert not [name for name in names if name.startswith(".")], "half-written files"
    for file, columns in (("evaluations", EVALUATIONS), ("costs", COSTS), ("privacy", PRIVACY)):
        assert (folder / f"{file}.csv").read_text().splitlines()[0] == columns


def test_the_promised_numbers(finished: tuple[Record, Path]) -> None:
    record, folder = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert set(PROMISED) <= set(summary)
    assert summary == json.loads(json.dumps(record.summary))
    assert summary["method"] == "fot" and summary["stream"] == "domain_incremental"
    assert summary["scenario"] == "domain" and summary["dataset"] == "synthetic"
    assert (summary["model"], summary["engine"], summary["seed"]) == ("mlp", "serial", 0)
    assert summary["engine_reason"] == "serial: named in the config"
    assert summary["rounds"] == 9 and summary["seconds"] > 0
    assert summary["command"] == ["fedcl", "run"]
    assert {"fedcl", "python", "torch", "numpy"} <= set(summary["versions"])
    assert summary["epsilon"] is None and summary["delta"] is None


def test_the_final_model_is_saved(finished: tuple[Record, Path]) -> None:
    record, folder = finished
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    assert sorted(saved) == sorted(record.params)
    assert all(same(saved[name], record.params[name]) for name in saved)


def test_tables_are_the_records(finished: tuple[Record, Path]) -> None:
    record, folder = finished
    for file, own in (("evaluations", record.evaluations), ("costs", record.costs)):
        written = read_csv(folder / f"{file}.csv")
        text = [{k: "" if v is None else str(v) for k, v in row.items()} for row in own]
        assert written == text


def test_the_config_repeats_the_run_to_the_bit(
    finished: tuple[Record, Path], tmp_path: Path
) -> None:
    record, folder = finished
    again = fedcl.load_config(folder / "config.toml")
    assert again.resolved == tiny({**dict(_flat(again.resolved))}).resolved
    assert_same_runs(fedcl.run(again, tmp_path / "again"), record)
    for file in ("config.toml", "evaluations.csv", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def _flat(table: Any) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != "channel"}


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = fedcl.run(tiny())
    assert record.folder is None and record.summary["rounds"] == 4
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_begin_leaves_nothing_behind(tmp_path: Path) -> None:
    for changes in ({"stream.clients": 500}, {"evaluation.reference": str(tmp_path / "none")}):
        with pytest.raises(ConfigError):
            fedcl.run(tiny(changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()


# --- When the union test set is evaluated. ---


def test_round_zero_is_the_untrained_model(finished: tuple[Record, Path]) -> None:
    record, _ = finished
    untrained = rows(record, round=0)
    assert [row["task"] for row in untrained] == [0, 1, 2]
    assert all(row["stage"] == 0 and row["n"] == 48 for row in untrained)
    assert record.summary["untrained_accuracy"] == [row["value"] for row in untrained]
    assert {row["metric"] for row in record.evaluations} == {"accuracy", "loss"}


def test_met_tasks_at_the_interval_and_all_at_stage_ends() -> None:
    for every in (0, 1, 2):
        changes = {"stream.tasks": 3, "training.rounds": 3, "evaluation.every": every}
        found: dict[int, list[int]] = {}
        for row in rows(fedcl.run(tiny(changes))):
            found.setdefault(row["round"], []).append(row["task"])
        expected = {0: [0, 1, 2], 3: [0, 1, 2], 6: [0, 1, 2], 9: [0, 1, 2]}
        for at in range(1, 9):
            if every and at % every == 0 and at not in expected:
                expected[at] = list(range((at - 1) // 3 + 1))
        assert found == expected
        stages = {row["round"]: row["stage"] for row in rows(fedcl.run(tiny(changes)))}
        assert all(stage == max(0, at - 1) // 3 for at, stage in stages.items())


def test_the_summary_is_what_the_table_says(finished: tuple[Record, Path]) -> None:
    record, folder = finished
    table = accuracy_matrix(read_csv(folder / "evaluations.csv"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy_matrix"] == table.matrix.tolist()
    assert table.matrix.shape == (3, 3)
    assert summary["average_accuracy"] == metrics.average_accuracy(table.matrix)
    assert summary["forgetting"] == metrics.forgetting(table.matrix)
    assert summary["backward_transfer"] == metrics.backward_transfer(table.matrix)
    forward = metrics.forward_transfer(table.matrix, table.untrained)
    assert summary["forward_transfer"] == forward
    assert summary["pooled_accuracy"] == pytest.approx(np.mean(table.matrix[-1]))
    assert summary["average_accuracy_by_stage"] == [
        metrics.average_accuracy(table.matrix, stage) for stage in range(3)
    ]
    # By hand, from the rows of stage ends.
    for stage, task in itertools.product(range(3), repeat=2):
        (row,) = rows(record, round=3 * (stage + 1), task=task)
        assert summary["accuracy_matrix"][stage][task] == row["value"]


def test_forward_transfer_means_nothing_class_incremental() -> None:
    for kind, expected in (("class", False), ("task", True), ("domain", True)):
        summary = fedcl.run(tiny(scenario(kind))).summary
        assert (summary["forward_transfer"] is not None) == expected


def logits(params: Params, x: Tensor) -> Tensor:
    """The tiny network by hand."""
    hidden = F.relu(x.flatten(1) @ params["fc1.weight"].T + params["fc1.bias"])
    return hidden @ params["head.weight"].T + params["head.bias"]


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_accuracy_and_loss_by_hand(kind: str) -> None:
    """A prediction chooses among the classes of its task, those seen, or all, by scenario."""
    experiment = tiny({**scenario(kind), "training.dtype": "float64"})
    record = fedcl.run(experiment)
    stream = stream_of(experiment)
    for task in range(2):
        data = stream.held_out(task, "test")
        chosen = {"class": [0, 1, 2, 3], "task": [[0, 1], [2, 3]][task], "domain": [0, 1, 2, 3]}
        allowed = torch.tensor(chosen[kind])
        own = logits(record.params, data.x.double())[:, allowed]
        right = allowed[own.argmax(1)] == data.y
        (accuracy,) = rows(record, round=4, task=task)
        (loss,) = rows(record, round=4, task=task, metric="loss")
        assert accuracy["value"] == float(right.double().mean())
        places = torch.searchsorted(allowed, data.y)
        assert loss["value"] == pytest.approx(float(F.cross_entropy(own, places)), rel=1e-9)
        assert accuracy["n"] == loss["n"] == len(data.y) == (48 if kind == "domain" else 24)


def test_in_stage_0_later_classes_are_never_predicted() -> None:
    record = fedcl.run(tiny(scenario("class")))
    assert record.summary["accuracy_matrix"][0][1] == 0.0
    assert record.summary["untrained_accuracy"][1] == 0.0


# --- Validation. ---


def test_validation_leaves_the_test_set_alone(tmp_path: Path) -> None:
    held = {"stream.validation": 0.25, "stream.tasks": 2}
    experiment = tiny({**held, "evaluation.splits": ["validation"]})
    record = fedcl.run(experiment, tmp_path / "run")
    assert {row["split"] for row in record.evaluations} == {"validation"}
    stream = stream_of(experiment)
    for task in stream.tasks:
        assert len(task.validation) == 40 and len(task.train) == 120
        assert not set(task.validation.tolist()) & set(task.train.tolist())
    matrix = accuracy_matrix(record.evaluations, split="validation").matrix
    assert record.summary["accuracy_matrix"] == matrix.tolist()
    assert all(row["n"] == 40 for row in rows(record))
    both = fedcl.run(tiny({**held, "evaluation.splits": ["test", "validation"]}))
    assert same(dict(both.params), dict(record.params))
    shared = [row for row in both.evaluations if row["split"] == "validation"]
    assert [dict(row) for row in shared] == [dict(row) for row in record.evaluations]
    assert both.summary["split"] == "test"


def test_a_split_without_examples_is_refused(tmp_path: Path) -> None:
    changes = {**scenario("class"), "stream.validation": 0.004}
    for splits in (["validation"], ["test", "validation"]):
        with pytest.raises(ConfigError, match=r"validation.*task"):
            fedcl.run(tiny({**changes, "evaluation.splits": splits}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"stream\.validation"):
        tiny({"evaluation.splits": ["validation"]})


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


# --- Sampling. ---


def cohorts(changes: dict[str, Any]) -> list[tuple[int, ...]]:
    _, watching = watched(tiny(changes))
    return [ids for _, ids in watching.requests]


def test_cohorts_of_fixed_size() -> None:
    changes = {"stream.clients": 12, "training.cohort": 5, "training.rounds": 20}
    found = cohorts(changes)
    assert all(len(ids) == 5 and list(ids) == sorted(set(ids)) for ids in found)
    assert {i for ids in found for i in ids} == set(range(12))
    assert len(set(found)) > 20
    assert cohorts(changes) == found != cohorts({**changes, "seed": 1})
    everyone = cohorts({"training.cohort": 0})
    assert everyone == [(0, 1, 2, 3, 4)] * 4 == cohorts({"training.cohort": 99})


def test_poisson_cohorts_vary_in_size() -> None:
    changes = {
        "stream.clients": 12,
        "training.cohort": 6,
        "training.rounds": 40,
        "training.sampling": "poisson",
        "training.local.steps": 1,
    }
    sizes = [len(ids) for ids in cohorts(changes)]
    assert min(sizes) < 5 < 7 < max(sizes)
    assert np.mean(sizes) == pytest.approx(6, abs=0.8)


def test_an_empty_poisson_cohort_skips_its_round(tmp_path: Path) -> None:
    changes = {"training.sampling": "poisson", "training.cohort": 1, "training.rounds": 6}
    record, states = trace(tiny(changes), tmp_path / "run")
    told = record.summary["skipped_or_repeated_rounds"]
    assert told and all(event["what"] == "skipped" for event in told)
    empty = [6 * event["stage"] + event["round"] for event in told]
    for number in range(1, 12):
        stood = same(dict(states[number].params), dict(states[number - 1].params))
        assert stood == (number in empty)


def test_an_empty_poisson_cohort_is_drawn_again_where_rounds_are_repeated() -> None:
    changes = {
        "training.sampling": "poisson",
        "training.cohort": 1,
        "training.rounds": 6,
        "training.shortfall": "repeat",
    }
    record, watching = watched(tiny(changes))
    told = record.summary["skipped_or_repeated_rounds"]
    assert told and all(event["what"] == "repeated" for event in told)
    answered = {
        (request.position.stage, request.position.round)
        for request, ids in watching.requests
        if ids
    }
    assert len(answered) == 12


def test_round_robin_reaches_everybody_in_turn() -> None:
    changes = {
        "stream.clients": 7,
        "training.cohort": 3,
        "training.rounds": 7,
        "training.sampling": "round_robin",
        "stream.tasks": 1,
    }
    found = cohorts(changes)
    assert found[:3] == [(0, 1, 2), (3, 4, 5), (0, 1, 6)]
    assert Counter(i for ids in found for i in ids) == dict.fromkeys(range(7), 3)


def test_round_robin_goes_on_in_the_next_stage() -> None:
    """Else, with few rounds a stage, the last clients would never be asked."""
    changes = {
        "stream.clients": 8,
        "training.cohort": 2,
        "training.rounds": 2,
        "training.sampling": "round_robin",
    }
    assert cohorts(changes) == [(0, 1), (2, 3), (4, 5), (6, 7)]


# --- Missing replies. ---

FEW = {
    "stream.clients": 8,
    "training.cohort": 4,
    "training.rounds": 8,
    "training.availability": 0.5,
    "training.minimum": 3,
}


def test_rounds_with_too_few_replies_are_skipped(tmp_path: Path) -> None:
    experiment = tiny(FEW, method={"name": "replay"})
    record, states = trace(experiment, tmp_path / "run")
    told = record.summary["skipped_or_repeated_rounds"]
    _, watching = watched(experiment)
    short = [i for i, (_, ids) in enumerate(watching.requests) if len(ids) < 3]
    assert 2 < len(short) < 14
    assert [8 * event["stage"] + event["round"] for event in told] == short
    assert {event["what"] for event in told} == {"skipped"}
    for event, number in zip(told, short, strict=True):
        count = len(watching.requests[number][1])
        assert event["why"] == f"{count} of 4 clients answered; training.minimum is 3"
    for number in range(1, 16):
        stood = same(dict(states[number].params), dict(states[number - 1].params))
        assert stood == (number in short)
    assert record.summary["rounds"] == 16
    assert {row["round"] for row in rows(record)} == set(range(17))
    # A skipped round leaves no memory: clients that answered in vain remember nothing of it.
    trained = {
        (number, i)
        for number, (_, ids) in enumerate(watching.requests)
        if number not in short
        for i in ids
    }
    passed = [row for row in record.costs if row["direction"] == ""]
    assert sum(row["steps"] > 0 for row in passed) == 16 - len(short)
    assert trained


def test_rounds_with_too_few_replies_are_repeated() -> None:
    experiment = tiny({**FEW, "training.shortfall": "repeat"})
    record, watching = watched(experiment)
    told = record.summary["skipped_or_repeated_rounds"]
    assert {event["what"] for event in told} == {"repeated"}
    enough = [
        (request.position.stage, request.position.round)
        for request, ids in watching.requests
        if len(ids) >= 3
    ]
    assert enough == [(stage, number) for stage in range(2) for number in range(8)]
    attempts = [request.position.attempt for request, _ in watching.requests]
    assert len(attempts) == 16 + len(told)
    assert max(attempts) >= 1
    # A first attempt is that of a run in which nothing was repeated.
    first = {
        (r.position.stage, r.position.round): ids
        for r, ids in watching.requests
        if r.position.attempt == 0
    }
    _, skipping = watched(tiny(FEW))
    assert first == {(r.position.stage, r.position.round): ids for r, ids in skipping.requests}


def test_what_ends_a_stage_is_repeated_even_where_rounds_are_skipped() -> None:
    changes = {**FEW, "training.minimum": 5, "training.cohort": 0, "training.rounds": 2}
    record = fedcl.run(tiny(changes, method={"name": "fot"}))
    told = record.summary["skipped_or_repeated_rounds"]
    ends = {event["what"] for event in told if event["round"] == 2}
    assert ends <= {"repeated"}
    assert {event["what"] for event in told if event["round"] < 2} <= {"skipped"}
    grams = [row for row in record.costs if row["payload"] == "gram" and row["direction"] == ""]
    assert len(grams) == 2


def test_hopeless_rounds_end_with_an_error() -> None:
    changes = {
        "training.availability": 0.01,
        "training.minimum": 3,
        "training.shortfall": "repeat",
    }
    with pytest.raises(fedcl.FedclError, match=r"training\.minimum = 3.*availability"):
        fedcl.run(tiny(changes))


def test_a_dropped_round_leaves_the_channel_as_it_was() -> None:
    """The second question of a round finds too few: the first one's sum must not count either."""
    channel = [{"name": "tests.plugins:Growing"}]
    changes = {**FEW, "training.rounds": 6, "stream.tasks": 1, "training.local.lr": 1e-3}
    method = {"name": "tests.plugins:Twice"}
    record, watching = watched(tiny(changes, channel=channel, method=method))
    told = record.summary["skipped_or_repeated_rounds"]
    halves = [
        event
        for event in told
        if sum(request.position.round == event["round"] for request, _ in watching.requests) == 2
    ]
    assert halves, "no round failed at its second question: take another seed"
    # The sums that counted grow 1, 2, 3, ...: replay them by hand.
    params = {k: v.clone() for k, v in build_site(tiny(changes)).model.named_parameters()}
    count = 0
    dropped = {event["round"] for event in told}
    by_round: dict[int, list[Any]] = {}
    results = iter(watching.results)
    for request, ids in watching.requests:
        blocks = [next(results) for _ in range(-(-len(ids) // 2))]
        by_round.setdefault(request.position.round, []).append(blocks)
    for number, exchanges in by_round.items():
        if number in dropped:
            continue
        for blocks in exchanges:
            count += 1
            weight = sum(block.total.weight for block in blocks)
            for name in params:
                total = sum(block.total.total[name] for block in blocks)
                params[name] = params[name].detach() + 0.5 * count * (total / weight).float()
    assert distance(params, record.params) < 1e-6


# --- Costs. ---


def test_costs_by_hand(finished: tuple[Record, Path]) -> None:
    """MLP 16-12-4: 256 float32 numbers. Gram matrices of 16, 12 inputs and, domain-incremental, the
    head's: 136 + 78 numbers, and four float64 norms for each of the two layers."""
    record, _ = finished
    model = 4 * (16 * 12 + 12 + 12 * 4 + 4)
    cohort, members = 3, 5
    up = [row for row in record.costs if row["direction"] == "up"]
    for number in range(1, 10):
        by_kind = {row["payload"]: row["bytes"] for row in up if row["round"] == number}
        assert by_kind["model"] == cohort * model
        if number % 3:
            assert set(by_kind) == {"model", "metrics"}
        else:
            assert by_kind["gram"] == members * 4 * (16 * 17 // 2 + 12 * 13 // 2)
            assert by_kind["norms"] == members * 2 * 4 * 8
    summary = record.summary
    assert summary["bytes_up"] == sum(row["bytes"] for row in up)
    down = [row for row in record.costs if row["direction"] == "down"]
    assert summary["bytes_down"] == sum(row["bytes"] for row in down)
    assert summary["bytes_by_payload"]["up"]["model"] == 9 * cohort * model
    assert summary["bytes_by_payload"]["down"]["model"] == (9 * cohort + 3 * members) * model
    assert sum(summary["bytes_by_payload"]["up"].values()) == summary["bytes_up"]


def test_steps_and_examples_by_hand() -> None:
    experiment = tiny({"training.local.epochs": 2})
    record, watching = watched(experiment)
    stream = stream_of(experiment)
    work = [row for row in record.costs if row["direction"] == ""]
    assert len(work) == 4
    for row, (request, ids) in zip(work, watching.requests, strict=True):
        sizes = [len(stream.train(i, request.position.stage)) for i in ids]
        assert row["payload"] == "train"
        assert row["examples"] == 2 * sum(sizes)
        assert row["steps"] == 2 * sum(-(-size // 8) for size in sizes)
        assert row["seconds"] > 0
    assert record.summary["steps"] == sum(row["steps"] for row in work)


def test_every_payload_that_left_clients_is_in_the_privacy_table(
    finished: tuple[Record, Path],
) -> None:
    _, folder = finished
    table = read_csv(folder / "privacy.csv")
    assert [row["channel"] for row in table] == ["gram", "metrics", "model", "norms"]
    assert {(row["mechanism"], row["epsilon"]) for row in table} == {("none", "inf")}


# --- The command line and the power cut. ---


def config_file(folder: Path, rounds: int) -> Path:
    experiment = tiny(
        {"training.rounds": rounds, "evaluation.every": 10}, method={"name": "replay"}
    )
    path = folder / "tiny.toml"
    path.write_text(experiment.toml)
    return path


def test_a_killed_process_resumes_to_the_bit(tmp_path: Path) -> None:
    """kill -9 in the middle of the run, then --resume."""
    config = config_file(tmp_path, rounds=150)
    expected = tmp_path / "whole"
    fedcl.run(fedcl.load_config(config), expected)
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "fedcl", "run", str(config), "--out", str(folder), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while _committed_rounds(folder) < 20:
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finally:
        process.kill()
        process.wait()
    assert not (folder / "summary.json").exists(), "it had finished: take more rounds"
    done = _committed_rounds(folder)
    assert 20 <= done < 300
    resumed = subprocess.run(
        [*command, "--resume"], env=environment, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    for file in ("config.toml", "evaluations.csv", "privacy.csv", "model.safetensors"):
        assert (folder / file).read_bytes() == (expected / file).read_bytes(), file
    costs = [timeless(read_csv(run / "costs.csv")) for run in (folder, expected)]
    assert costs[0] == costs[1]


def _committed_rounds(folder: Path) -> int:
    path = folder / "checkpoint" / "state.sqlite"
    if not path.exists():
        return 0
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        row = db.execute("SELECT value FROM meta WHERE key = 'rounds'").fetchone()
    except sqlite3.OperationalError:  # the table is not there yet, or it is being written
        return 0
    finally:
        db.close()
    return 0 if row is None else int(row[0])
