"""Where real runs forget: the identity to the last digit, and runs that nothing is changed of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fedcl
from fedcl.config import parse
from fedcl.decomposition import by_task, client_losses, loss_decomposition, mean
from tests.probed import KEYS, ON, PERSONAL, local_rows, union
from tests.ray_house import RayHouse
from tests.tiny import (
    Interrupted,
    assert_same_folders,
    assert_same_runs,
    interrupt_after,
    rows,
    same,
    stream_of,
    tiny,
)

HIDDEN = {"channel": [{"name": "secure_aggregation"}]}
ENGINES = ("serial", "vectorized")

# --- The identity. ---


@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize(
    ("name", "changes", "tables"),
    [
        ("fedavg", {}, {}),
        ("fot", {}, {}),
        ("replay", {}, {}),
        ("joint", {}, {}),
        (PERSONAL, {}, {}),
        ("tests.plugins:Twice", {}, {}),
        ("tests.plugins:Peek", {}, {}),
        ("fot", {}, HIDDEN),
        ("fedavg", {"engine.name": "vectorized"}, {}),
        ("replay", {"engine.name": "vectorized"}, HIDDEN),
        ("fedavg", {"stream.name": "class_incremental", "dataset.classes": 6}, {}),
        ("fot", {"training.availability": 0.5, "training.shortfall": "repeat"}, {}),
        ("fedavg", {"evaluation.splits": ["validation", "test"], "stream.validation": 0.2}, {}),
    ],
)
def test_both_losses_are_what_was_forgotten(
    name: str, changes: dict[str, Any], tables: dict[str, Any], every: int
) -> None:
    changes = {**ON, "method.name": name, "evaluation.every": every, **changes}
    record = fedcl.run(tiny(changes, **tables))
    accuracy = union(record)
    found = client_losses(record.evaluations)
    assert {(task, number) for task, number, _ in found} == {
        (task, number) for number in range(4, 10) for task in range((number - 1) // 3)
    }
    for (task, number, _), loss in found.items():
        assert loss.total == accuracy[task, number - 1] - accuracy[task, number]
    lost = by_task(loss_decomposition(record.evaluations))
    for task, loss in lost.items():
        assert loss.total == accuracy[task, 3 * (task + 1)] - accuracy[task, 9]
    summary = record.summary
    exact = mean(lost.values())
    assert [summary["local_update_loss"], summary["aggregation_loss"]] == list(map(float, exact))
    assert summary["forgetting_first_last"] == pytest.approx(float(exact.total), abs=1e-12)
    for half, key in enumerate(KEYS[2:]):
        assert summary[key] == [float(lost[0][half]), float(lost[1][half]), None]


def test_losses_of_orders_of_their_own() -> None:
    """Everybody's last tasks are somebody's first: all four are old from stage 1 on."""
    changes = {"stream.tasks": 4, "stream.order": {"name": "shuffled"}, "evaluation.every": 0}
    record = fedcl.run(tiny({**ON, **changes}))
    accuracy, stream = union(record), stream_of(tiny({**ON, **changes}))
    for (task, number, client), loss in client_losses(record.evaluations).items():
        assert loss.total == accuracy[task, number - 1] - accuracy[task, number]
        assert client in stream.members((number - 1) // 3)
    met = {task: next(s for s in range(4) if task in stream.present(s)) for task in range(4)}
    for task, loss in by_task(loss_decomposition(record.evaluations)).items():
        assert loss.total == accuracy[task, 3 * (met[task] + 1)] - accuracy[task, 12]
    stages = {(r["client"], r["stage"]): r["client_stage"] for r in local_rows(record)}
    assert all(own == len(stream.history(*at)) - 1 for at, own in stages.items())


# --- Nothing else changes. ---


@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("name", ["fot", "replay", PERSONAL])
def test_the_run_is_the_one_without(name: str, every: int) -> None:
    changes = {**ON, "method.name": name, "evaluation.every": every}
    on, off = fedcl.run(tiny(changes)), fedcl.run(tiny({**changes, "evaluation.decompose": 0}))
    assert same(dict(on.params), dict(off.params))
    numbers = [
        {k: v for k, v in run.summary.items() if k not in (*KEYS, "seconds")} for run in (on, off)
    ]
    assert numbers[0] == numbers[1]
    assert [off.summary[key] for key in KEYS] == [None] * 4
    plain = {json.dumps(dict(row)) for row in off.evaluations}
    further = [dict(row) for row in on.evaluations if json.dumps(dict(row)) not in plain]
    assert len(further) == len(on.evaluations) - len(off.evaluations)
    # In whole rounds: an evaluation more is as complete as any other inside a stage.
    points = {row["round"] for row in further if row["model"] == "global"}
    assert points == ({4, 5, 7, 8} if every == 0 else {5, 7})
    for number in points:
        tasks = {row["task"] for row in rows(on, round=number)}
        assert tasks == set(range((number - 1) // 3 + 1))
    assert {row["model"] for row in further} == {"global", "local"}
    dearer = [row for row in on.costs if row["payload"] != "decomposition"]
    assert len(dearer) == len(off.costs) < len(on.costs)


def test_off_and_in_a_single_stage_nothing_is_evaluated() -> None:
    single = tiny({**ON, "stream.tasks": 1, "evaluation.decompose": 3})
    record = fedcl.run(single)
    assert not local_rows(record)
    assert all(row["payload"] != "decomposition" for row in record.costs)
    assert [record.summary[key] for key in KEYS] == [None] * 4


# --- Engines, resume. ---


@pytest.mark.parametrize("name", ["fedavg", "fot", "replay"])
def test_vectorized_agrees_with_serial(name: str) -> None:
    """In float64 no answer flips, so the counts, and with them all rows, are the same."""
    changes = {**ON, "method.name": name, "training.dtype": "float64"}
    serial, batched = (fedcl.run(tiny({**changes, "engine.name": e})) for e in ENGINES)
    for row, other in zip(local_rows(serial), local_rows(batched), strict=True):
        assert row == other
    assert [serial.summary[k] for k in KEYS] == [batched.summary[k] for k in KEYS]


@pytest.mark.ray
@pytest.mark.parametrize("inner", ENGINES)
def test_ray_agrees_with_its_inner_engine(inner: Any, ray_house: RayHouse) -> None:
    experiment = tiny({**ON, "method.name": "replay", "engine.name": inner}, **HIDDEN)
    assert_same_runs(fedcl.run(ray_house.on(experiment, 2, inner)), fedcl.run(experiment))


@pytest.mark.flower
def test_flower_agrees_with_serial(tmp_path: Path) -> None:
    """A client's memory lies with the client there, in a resumed run from the beginning."""
    experiment = tiny({**ON, "method.name": "replay"})
    flower = parse({**experiment.resolved, "engine": {"name": "flower", "workers": 2}})
    with pytest.raises(Interrupted):
        fedcl.run(flower, tmp_path, watch=interrupt_after(4))
    assert_same_runs(fedcl.run(flower, tmp_path, resume=True), fedcl.run(experiment))


@pytest.mark.parametrize("rounds", [3, 4, 8])
@pytest.mark.parametrize("seconds", [0, 3600])
def test_a_resumed_run_has_the_same_rows(tmp_path: Path, rounds: int, seconds: int) -> None:
    changes = {**ON, "method.name": "replay", "evaluation.every": 0, "checkpoint.seconds": seconds}
    experiment = tiny(changes)
    fedcl.run(experiment, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fedcl.run(experiment, tmp_path / "cut", watch=interrupt_after(rounds))
    fedcl.run(experiment, tmp_path / "cut", resume=True)
    assert_same_folders(tmp_path / "whole", tmp_path / "cut")
