"""Costs of tiny runs, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedcl
from fedcl.record import Record
from tests.tiny import (
    read_csv,
    stream_of,
    tiny,
    watched,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """A finished run of FOT with three stages of three rounds, and its folder."""
    folder = tmp_path_factory.mktemp("costs") / "run"
    changes = {"stream.tasks": 3, "training.rounds": 3, "method.name": "fot"}
    return fedcl.run(tiny(changes), folder), folder


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
