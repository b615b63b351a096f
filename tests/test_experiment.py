"""Experiments: the files and the numbers that a run leaves."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

import fedcl
from fedcl import metrics
from fedcl.core.errors import ConfigError
from fedcl.evaluations import accuracy_matrix
from fedcl.record import Record
from tests.tiny import (
    assert_same_runs,
    logits,
    read_csv,
    rows,
    same,
    scenario,
    stream_of,
    tiny,
)

EVALUATIONS = "round,stage,client,client_stage,model,task,split,metric,value,n"
COSTS = "round,stage,client,direction,payload,bytes,steps,examples,padded,seconds"
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
