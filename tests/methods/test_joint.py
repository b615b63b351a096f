"""Joint training: starts anew at each stage, on all examples so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import fedcl
from fedcl.core.params import subtract
from tests.tiny import (
    CNN,
    distance,
    first_parameters,
    same,
    scenario,
    stream_of,
    tiny,
    trace,
    watched,
)

JOINT = {"name": "joint"}
THREE = {"stream.tasks": 3, "training.cohort": 0}


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_reduces_to_fedavg_on_one_task(kind: str, engine: str) -> None:
    changes = {**scenario(kind), "stream.tasks": 1, "training.rounds": 3}
    for model in ({"name": "mlp", "hidden": [12], "dropout": [0.2]}, CNN):
        tables = {"model": model, "engine": {"name": engine}}
        plain = fedcl.run(tiny(changes, **tables))
        found = fedcl.run(tiny(changes, method=JOINT, **tables))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])


def test_every_stage_starts_from_the_first_parameters(tmp_path: Path) -> None:
    experiment = tiny({**THREE, "training.local.lr": 1e-6}, method=JOINT)
    record, states = trace(experiment, tmp_path / "run")
    start = first_parameters(experiment)
    for state in states:
        assert same(dict(state.start), start)
        assert 0 < distance(state.params, start) < 1e-4
    assert same(dict(states[-1].params), dict(record.params))


def test_each_stage_trains_on_all_examples_so_far() -> None:
    experiment = tiny({**THREE, "training.local.epochs": 2}, method=JOINT)
    record, _ = watched(experiment)
    passed = [row["examples"] for row in record.costs if row["payload"] == "train"]
    assert passed == [2 * 160 * (stage + 1) for stage in range(3) for _ in range(2)]


def test_a_stage_is_gradient_descent_on_the_union_of_its_stages(tmp_path: Path) -> None:
    """One client, full batches: the slow way on the concatenated data, from the start again."""
    local = {"name": "sgd", "lr": 0.3, "batch_size": 10_000}
    experiment = tiny(
        {
            **THREE,
            "stream.clients": 1,
            "stream.partition": {"name": "iid"},
            "training.dtype": "float64",
        },
        method=JOINT,
        training={"rounds": 2, "dtype": "float64", "local": local},
    )
    _, states = trace(experiment, tmp_path / "run")
    stream = stream_of(experiment)
    for stage in range(3):
        parts = [stream.train(0, earlier) for earlier in range(stage + 1)]
        x, y = torch.cat([p.x for p in parts]).double(), torch.cat([p.y for p in parts])
        params = first_parameters(experiment)
        for _ in range(2):
            leaves = {name: value.requires_grad_() for name, value in params.items()}
            hidden = F.relu(x.flatten(1) @ leaves["fc1.weight"].T + leaves["fc1.bias"])
            logits = hidden @ leaves["head.weight"].T + leaves["head.bias"]
            steps = torch.autograd.grad(F.cross_entropy(logits, y), list(leaves.values()))
            params = {
                name: (value - 0.3 * step).detach()
                for (name, value), step in zip(leaves.items(), steps, strict=True)
            }
        assert distance(states[2 * stage + 1].params, params) < 1e-12


def test_all_members_keep_their_examples_not_the_cohort_alone() -> None:
    experiment = tiny({"stream.tasks": 2}, method=JOINT)
    record, engine = watched(experiment)
    asked = [(request.name, ids) for request, ids in engine.requests]
    kept = [ids for name, ids in asked if name == "keep"]
    assert kept == [(0, 1, 2, 3, 4)] * 2
    assert all(len(ids) == 3 for name, ids in asked if name == "train")
    up = {row["payload"] for row in record.costs if row["direction"] == "up"}
    assert up == {"model", "metrics"}, "the examples stay where they are"


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_it_hardly_forgets(kind: str) -> None:
    changes = {**scenario(kind), "training.rounds": 8, "training.cohort": 0}
    found = fedcl.run(tiny(changes, method=JOINT)).summary
    plain = fedcl.run(tiny(changes)).summary
    assert found["forgetting"] <= plain["forgetting"]
    assert found["average_accuracy"] > 0.85
    if kind == "class":
        assert plain["forgetting"] > 0.5 and found["forgetting"] < 0.15


def test_a_client_that_was_not_reached_trains_on_what_it_has() -> None:
    changes: dict[str, Any] = {**THREE, "training.availability": 0.5, "training.rounds": 1}
    experiment = tiny(changes, method=JOINT)
    record, engine = watched(experiment)
    stream = stream_of(experiment)
    kept: dict[int, set[int]] = {i: set() for i in range(5)}
    expected = []
    for request, ids in engine.requests:
        stage = request.position.stage
        if request.name == "keep":
            for i in ids:
                kept[i].add(stage)
        else:
            sizes = [len(stream.train(i, s)) for i in ids for s in kept[i] | {stage}]
            expected.append(sum(sizes))
    assert any(len(own) < 3 for own in kept.values())
    passed = [row["examples"] for row in record.costs if row["payload"] == "train"]
    assert passed == expected


def test_the_start_does_not_change_with_what_is_learnt(tmp_path: Path) -> None:
    _, states = trace(tiny(THREE, method=JOINT), tmp_path / "run")
    moved = subtract(states[-1].params, states[-1].start)
    assert max(float(value.abs().max()) for value in moved.values()) > 1e-2
