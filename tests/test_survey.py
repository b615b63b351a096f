"""Evaluation by clients on held-out examples of their own: who is asked, believed, written down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import fedcl
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.memories import Memories
from fedcl.core.survey import Examination, Finding, findings
from fedcl.evaluations import accuracy_matrix
from fedcl.record import Record
from fedcl.survey import fault, panel, pooled
from tests.test_experiment_clients import subjects
from tests.tiny import (
    Interrupted,
    Watching,
    assert_same_folders,
    assert_same_runs,
    interrupt_after,
    logits,
    read_csv,
    rows,
    same,
    stream_of,
    tiny,
)

CLIENTS = {"evaluation.where": "clients"}


def own(record: Record, **wanted: Any) -> list[dict[str, Any]]:
    """Returns the accuracies of single clients with these values."""
    return [row for row in map(dict, record.evaluations) if _is(row, metric="accuracy", **wanted)]


def _is(row: Mapping[str, Any], **wanted: Any) -> bool:
    return row["client"] is not None and all(row[key] == value for key, value in wanted.items())


# --- A run. ---


def test_clients_tell_of_the_tasks_that_they_have_met_and_nothing_else_changes() -> None:
    record, server = fedcl.run(tiny(CLIENTS)), fedcl.run(tiny())
    assert same(dict(record.params), dict(server.params))
    for finished, tasks in ((0, [0]), (1, [0]), (2, [0]), (3, [0, 1]), (4, [0, 1])):
        assert [row["task"] for row in rows(record, round=finished)] == tasks
        told = own(record, round=finished)
        assert [(r["client"], r["task"]) for r in told] == [(c, t) for c in range(5) for t in tasks]
    # At stage ends the simulator's own view of single clients is the same.
    for finished in (2, 4):
        assert own(record, round=finished) == own(server, round=finished)
    assert record.summary["clients"] == server.summary["clients"]
    assert record.summary["evaluated_by"] == "clients"
    assert server.summary["evaluated_by"] == "server"


def test_the_global_rows_are_means_weighted_by_examples(tmp_path: Path) -> None:
    table = subjects(tmp_path)
    record = fedcl.run(tiny({"training.dtype": "float64", **CLIENTS}, **table))
    stream = stream_of(tiny(**table))
    for metric in ("accuracy", "loss"):
        for row in rows(record, metric=metric):
            parts = [
                other
                for other in record.evaluations
                if _is(other, metric=metric, round=row["round"], task=row["task"])
            ]
            # Person 5 has no test rows, nobody is person 8.
            assert [(part["client"], part["n"]) for part in parts] == [(0, 9), (2, 6)]
            total = sum(part["value"] * part["n"] for part in parts)
            assert row["value"] == pytest.approx(total / 15, abs=1e-15)
            assert row["n"] == 15
    last = rows(record, round=4, task=0)[0]
    data = stream.held_out(0, "test")
    right = logits(record.params, data.x[:15].double()).argmax(1) == data.y[:15]
    assert last["value"] == pytest.approx(float(right.double().mean()), abs=1e-15)
    matrix = accuracy_matrix(record.evaluations).matrix
    assert matrix[1, 0] == last["value"] and math.isnan(matrix[0, 1])
    summary = record.summary
    assert summary["accuracy_matrix"][0] == [matrix[0, 0], None]
    assert summary["forgetting"] == matrix[0, 0] - matrix[1, 0]
    assert summary["forward_transfer"] is None


def test_a_clients_own_stage_ends_with_its_last_evaluation_in_it() -> None:
    record = fedcl.run(tiny({**CLIENTS, "training.rounds": 3, "training.local.lr": 0.02}))
    found = accuracy_matrix(record.evaluations, client=2)
    ends = {(r["round"], r["task"]): r["value"] for r in own(record, client=2)}
    assert found.matrix[0, 0] == ends[3, 0] != ends[1, 0]
    assert found.matrix[1].tolist() == [ends[6, 0], ends[6, 1]]
    assert found.stages.tolist() == [0, 0, 0, 1, 1, 1]


def test_it_is_a_channel_that_is_booked_and_that_nothing_protects(tmp_path: Path) -> None:
    record = fedcl.run(tiny(CLIENTS), tmp_path)
    size = sum(value.numel() * value.element_size() for value in record.params.values())
    found = [row for row in read_csv(tmp_path / "costs.csv") if row["payload"] == "evaluation"]
    traffic = [(row["round"], row["direction"], row["bytes"]) for row in found if row["direction"]]
    tells = {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}  # tasks
    assert traffic == [
        (str(finished), direction, str(count))
        for finished, tasks in tells.items()
        for direction, count in (("down", 5 * size), ("up", 5 * tasks * 32))
    ]
    assert record.summary["bytes_by_payload"]["up"]["evaluation"] == 5 * 7 * 32
    listed = {row["channel"]: row for row in read_csv(tmp_path / "privacy.csv")}
    assert listed["evaluation"]["mechanism"] == "none"
    assert listed["evaluation"]["epsilon"] == "inf"


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    experiment = tiny({**CLIENTS, "method.name": "replay"})
    fedcl.run(experiment, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fedcl.run(experiment, tmp_path / "cut", watch=interrupt_after(3))
    fedcl.run(experiment, tmp_path / "cut", resume=True)
    assert_same_folders(tmp_path / "whole", tmp_path / "cut")


def test_personal_models_stay_with_their_clients() -> None:
    personal = {"name": "tests.plugins:Personal"}
    record, server = fedcl.run(tiny(CLIENTS, method=personal)), fedcl.run(tiny(method=personal))
    assert own(record, round=4, model="personal") == own(server, round=4)
    assert record.summary["clients"] == server.summary["clients"]
    # The global rows are of the global model alone.
    plain = fedcl.run(tiny(CLIENTS))
    assert rows(record) == rows(plain)
    assert own(record, model="global") == own(plain)


def test_with_orders_of_their_own_each_tells_of_what_it_has_met() -> None:
    table = {**CLIENTS, "stream.order": {"name": "shuffled"}, "stream.tasks": 3}
    record = fedcl.run(tiny(table))
    stream = stream_of(tiny(table))
    for client in range(5):
        for stage in range(3):
            met = [row["task"] for row in own(record, client=client, round=2 * stage + 2)]
            assert met == list(stream.history(client, stage))
    assert record.summary["accuracy_matrix"] is None
    assert 0 < record.summary["average_accuracy"] <= 1
    assert record.summary["clients"]["forgetting"]["count"] == 5


def test_validation_data_serve_as_well() -> None:
    splits = {"evaluation.splits": ["validation"], "stream.validation": 0.2}
    record = fedcl.run(tiny({**CLIENTS, **splits}))
    assert {row["split"] for row in record.evaluations} == {"validation"}
    assert record.summary["split"] == "validation"


# --- Clients that live elsewhere. ---


@dataclass
class Elsewhere(Watching):
    """Clients of which some cannot be reached, do not answer, or say what cannot be."""

    silent: frozenset[int] = frozenset()
    odd: Mapping[int, Finding] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()
    asked: list[tuple[int, ...]] = field(default_factory=list)

    def open(self, site: Any, launch: Mapping[str, Any]) -> None:
        super().open(site, launch)
        self.site, self.method = site, launch["method_object"]

    def present(self, clients: Sequence[int]) -> Sequence[int]:
        return [id for id in clients if id not in self.gone]

    def evaluate(
        self, examination: Examination, ids: Sequence[int], memories: Memories
    ) -> tuple[Mapping[int, Sequence[Finding]], Mapping[int, str]]:
        self.asked.append(tuple(ids))
        found = {
            id: findings(self.method, self.site, examination, id)
            for id in ids
            if id not in self.silent
        }
        return {id: (self.odd[id],) if id in self.odd else own for id, own in found.items()}, {}


def elsewhere(changes: Mapping[str, Any], **options: Any) -> tuple[Record, Elsewhere]:
    experiment = tiny({**CLIENTS, **changes})
    engine = Elsewhere(experiment.engine, **options)
    return fedcl.run(replace(experiment, engine=engine)), engine


def test_an_engine_whose_clients_live_elsewhere_asks_them() -> None:
    record, engine = elsewhere({})
    assert_same_runs(record, fedcl.run(tiny(CLIENTS)))
    assert engine.asked == [(0, 1, 2, 3, 4)] * 5


def test_who_does_not_answer_has_no_rows() -> None:
    record, engine = elsewhere(
        {"evaluation.clients": 3}, silent=frozenset({2}), gone=frozenset({4})
    )
    assert engine.asked[0] == (0, 1, 2), "one who is gone is replaced"
    assert {row["client"] for row in record.evaluations} == {None, 0, 1}
    assert record.summary["clients"]["forgetting"]["count"] == 2
    assert record.summary["rejected_replies"] == 0


def test_if_nobody_answers_nothing_is_claimed(tmp_path: Path) -> None:
    experiment = tiny(CLIENTS)
    engine = Elsewhere(experiment.engine, silent=frozenset(range(5)))
    record = fedcl.run(replace(experiment, engine=engine), tmp_path)
    assert not record.evaluations
    for name in ("accuracy_matrix", "average_accuracy", "forgetting", "clients"):
        assert record.summary[name] is None
    assert record.summary["bytes_by_payload"]["down"]["evaluation"] > 0
    assert "evaluation" not in record.summary["bytes_by_payload"]["up"]


def test_what_cannot_be_is_left_out_and_named(tmp_path: Path) -> None:
    experiment = tiny(CLIENTS)
    odd = {3: Finding("global", "test", 0, 2.0, 0.1, 48)}
    engine = Elsewhere(experiment.engine, odd=odd)
    record = fedcl.run(replace(experiment, engine=engine), tmp_path)
    assert {row["client"] for row in record.evaluations} == {None, 0, 1, 2, 4}
    assert record.summary["rejected_replies"] == 5
    rejected = read_csv(tmp_path / "rejected.csv")
    assert rejected[4] == {
        "round": "4",
        "stage": "1",
        "exchange": "",
        "program": "evaluation",
        "client": "3",
        "reason": "its accuracy 2 on task 0 (test, global) does not lie in [0, 1]",
    }


GOOD = Finding("global", "test", 0, 0.5, 0.7, 48)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([GOOD], None),
        ([], None),
        ([replace(GOOD, model="personal")], r"task 0 \(test, personal\), which nobody asked for"),
        ([replace(GOOD, split="validation")], "which nobody asked for"),
        ([replace(GOOD, task=1)], "a task that it has not met"),
        ([replace(GOOD, task=-1)], "a task that it has not met"),
        ([GOOD, GOOD], "tells twice of task 0"),
        ([replace(GOOD, accuracy=math.nan)], "accuracy nan"),
        ([replace(GOOD, accuracy=-0.1)], "accuracy -0.1"),
        ([replace(GOOD, loss=math.inf)], "loss inf"),
        ([replace(GOOD, loss=-1.0)], "loss -1"),
        ([replace(GOOD, loss=math.nan)], "loss nan"),
        ([replace(GOOD, n=0)], "its 0 examples"),
        ([replace(GOOD, n=2**31 + 1)], "its 2147483649 examples"),
    ],
)
def test_findings_are_judged(found: list[Finding], reason: str | None) -> None:
    experiment = tiny(CLIENTS)
    asked = Examination(0, 1, ("test",), 8, None)
    told = fault(found, experiment.method, stream_of(experiment), asked, 2)
    assert told is None if reason is None else told is not None and reason.replace("\\", "") in told


# --- Small parts. ---


def test_a_panel_is_evenly_spaced_and_stays_the_same() -> None:
    assert panel(10, 3) == (0, 4, 9)
    assert panel(2, 100) == (0, 1)
    assert panel(10**9, 2) == (0, 10**9 - 1)
    assert panel(10, 3, range(10)) == (0, 4, 9)
    assert panel(10, 3, [0, 1, 2, 9]) == (0, 1, 9)
    assert panel(10, 4, [1, 2]) == (1, 2)
    assert panel(10, 4, []) == ()


def test_what_clients_found_together() -> None:
    found = {
        2: [Finding("global", "test", 1, 0.25, 2.0, 4)],
        1: [
            Finding("global", "test", 1, 1.0, 1.0, 12),
            Finding("global", "test", 0, 0.5, 0.5, 2),
            Finding("personal", "test", 1, 0.0, 9.0, 12),
        ],
    }
    assert pooled(found) == [
        Finding("global", "test", 0, 0.5, 0.5, 2),
        Finding("global", "test", 1, 0.8125, 1.25, 16),
    ]


# --- What is refused. ---


@pytest.mark.parametrize(
    ("tables", "protects"),
    [
        ({"channel": [{"name": "secure_aggregation"}]}, r"\[\[channel\]\] 'secure_aggregation'"),
        ({"channel": [{"name": "central_dp"}]}, r"\[\[channel\]\] 'central_dp'"),
        (
            {"training.local": {"name": "dp_sgd", "noise_multiplier": 1.0}},
            r"\[training.local\] 'dp_sgd'",
        ),
    ],
)
def test_where_something_is_protected_no_metric_goes_past_it(
    tables: dict[str, Any], protects: str
) -> None:
    with pytest.raises(ExposureError, match=rf"own data, past {protects}.*where = \"server\""):
        tiny({**CLIENTS, **tables})


def test_a_client_refuses_too_whoever_asks() -> None:
    from fedcl.assembly import build_site

    experiment = tiny({"channel": [{"name": "secure_aggregation"}]})
    asked = Examination(0, 1, ("test",), 8, None)
    with pytest.raises(ExposureError, match="client 3 tells nobody"):
        findings(experiment.method, build_site(experiment), asked, 3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"evaluation.clients": 0}, "asks nobody"),
        ({"evaluation.decompose": 1}, "decompose looks at what no client tells"),
        ({"evaluation.where": "nowhere"}, "where"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        tiny({**CLIENTS, **changes})


def test_a_reference_was_evaluated_in_the_same_way(tmp_path: Path) -> None:
    fedcl.run(tiny(method={"name": "joint"}), tmp_path / "joint")
    with pytest.raises(ConfigError, match="its evaluated_by is 'server', not 'clients'"):
        fedcl.run(tiny({**CLIENTS, "evaluation.reference": str(tmp_path / "joint")}))
