"""LANDER: TARGET with anchors for features; its losses, weights and payloads, exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fedcl
from fedcl.config import Experiment
from fedcl.core.client import Model
from fedcl.core.errors import ConfigError
from fedcl.core.features.layers import head_inputs
from fedcl.core.losses.anchors import Anchors, Bounded
from fedcl.core.losses.distillation import Taught
from fedcl.core.losses.prototypes import ClassVectors
from fedcl.core.method import Sizes
from fedcl.core.model import Net
from fedcl.core.task import Examples
from fedcl.methods.lander import Lander
from fedcl.models.mlp import Mlp
from tests.core import toys
from tests.tiny import CNN, distance, same, scenario, stream_of, tiny, trace, watched

MODEL = 4 * (16 * 12 + 12 + 12 * 4 + 4)  # bytes of the tiny network 16-12-4 in float32
KINDS = ("class", "task", "domain")
FAST: dict[str, Any] = {"images": 24, "steps": 3, "rounds": 3, "width": 4}


def lander(
    changes: dict[str, Any] | None = None, *, tables: Any = None, **options: Any
) -> Experiment:
    """The tiny experiment with LANDER, its generator hardly trained."""
    return tiny(changes, method={"name": "lander", **FAST, **options}, **(tables or {}))


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("option", [{"previous": 0.0}, {"images": 0}])
def test_reduces_to_fedavg_without_anchors_and_images(option: dict[str, Any], engine: str) -> None:
    for kind in KINDS:
        changes = {"training.dtype": "float64", **scenario(kind)}
        tables = {"engine": {"name": engine}}
        found = fedcl.run(lander(changes, tables=tables, bounding=0.0, **option))
        plain = fedcl.run(tiny(changes, method={"name": "fedavg", "masked": True}, **tables))
        if engine == "serial":
            assert same(dict(found.params), dict(plain.params))
        assert distance(found.params, plain.params) < 1e-10
        assert found.summary["bytes_by_payload"] == plain.summary["bytes_by_payload"]


@pytest.mark.parametrize("kind", KINDS)
def test_reduces_to_target_without_anchors_to_the_bit(kind: str) -> None:
    bare = {"bounding": 0.0, "anchored": 0.0, "features": 0.0, "growing": False}
    weights = {"current": 1.0, "previous": 0.7}
    found = fedcl.run(lander(scenario(kind), **bare, **weights))
    other = fedcl.run(tiny(scenario(kind), method={"name": "target", "strength": 0.7, **FAST}))
    assert same(dict(found.params), dict(other.params))
    assert found.summary["bytes_by_payload"] == other.summary["bytes_by_payload"]


def test_the_first_stage_s_loss_by_hand() -> None:
    net, rows, task = _world(6)
    anchors = Anchors(size=0.5, radius=0.01)
    loss = Bounded(anchors, masked=True, bounding=3.0)
    found = loss(net, rows, task, Model(net.params or {}))
    inner = head_inputs(net, rows.x)
    for number, value in enumerate(found):
        logits = net(rows.x)[number]
        away = (inner[number] - anchors(3, 5)[rows.y[number]]).square().mean() - 0.01
        expected = F.cross_entropy(logits, rows.y[number]) + 3.0 * away.clamp(min=0)
        assert float(value) == pytest.approx(float(expected), abs=1e-12)


def test_the_later_stages_loss_by_hand() -> None:
    """Row by row: an own one has the present task's loss, a synthetic one the teacher's."""
    net, rows, task = _world(5)
    teacher = torch.randn(5, 3, generator=torch.Generator().manual_seed(4)).double()
    features = torch.randn(5, 5, generator=torch.Generator().manual_seed(5)).double()
    own, old = torch.tensor([1.5, 1.5, 0, 0, 0]).double(), torch.tensor([0, 0, 2, 2, 2]).double()
    columns = {"teacher": teacher, "features": features, "own": own, "old": old}
    batch = Examples(rows.x, rows.y, columns)
    heads = torch.tensor([[True, True, False]])
    loss = Bounded(Anchors(), True, 2.0, current=0.3, previous=0.6, features=0.7, temperature=3.0)
    found = loss(net, batch, task, Taught(net.params or {}, heads))
    logits, inner = net(rows.x), head_inputs(net, rows.x)
    away = (inner - Anchors()(3, 5)[rows.y]).square().mean(1) - 0.015
    present = F.cross_entropy(logits, rows.y, reduction="none") + 2.0 * away.clamp(min=0)
    p, q = ((t[:, :2] / 3).log_softmax(1) for t in (teacher, logits))
    held = 9 * (p.exp() * (p - q)).sum(1) + 0.7 * (inner - features).square().mean(1)
    expected = 0.3 * own * present + 0.6 * old * held
    assert float((found - expected).abs().max()) < 1e-12


def _world(n: int) -> tuple[Net, Examples, Any]:
    model = Mlp(hidden=(5,)).build((1, 2, 2), 3).double()
    client = toys.client(model, n, (1, 2, 2))
    return Net(model, toys.parameters(model)), client.data, client.task


@pytest.mark.parametrize(("old", "seen"), [(2, 4), (8, 10), (1, 2), (4, 4)])
def test_factors_follow_the_number_of_old_classes(old: int, seen: int) -> None:
    a, b = math.log2(seen / 2 + 1), math.sqrt(old / seen)
    current, previous = Lander()._factors(old, seen)
    assert current == pytest.approx(0.2 * (1 + 1 / a) / b, abs=1e-15)
    assert previous == pytest.approx(0.4 * a * b, abs=1e-15)
    assert Lander(growing=False)._factors(old, seen) == (0.2, 0.4)


def test_vectors_come_from_a_file_and_make_another_run(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 6))
    np.savez(tmp_path / "vectors.npz", rows)
    changes = scenario("class")
    named = fedcl.run(lander(changes, vectors=str(tmp_path / "vectors.npz")))
    plain = fedcl.run(lander(changes))
    assert distance(named.params, plain.params) > 1e-4
    expected = ClassVectors(str(tmp_path / "vectors.npz"))(4, 12).clamp(min=0)
    anchors = Anchors(ClassVectors(str(tmp_path / "vectors.npz")))(4, 12)
    assert torch.allclose(F.normalize(anchors), F.normalize(expected), atol=1e-12)
    with pytest.raises(ConfigError, match="missing"):
        lander(vectors=str(tmp_path / "none.npz"))


def test_bounding_brings_features_to_their_anchors(tmp_path: Path) -> None:
    found = {}
    for weight in (0.0, 20.0):
        changes = {**scenario("class"), "training.rounds": 6, "training.dtype": "float64"}
        run = tmp_path / str(weight)
        record, _ = trace(lander(changes, bounding=weight, images=0), run)
        model = Mlp(hidden=(12,)).build((1, 4, 4), 4).double()
        data = stream_of(lander(changes)).train(0, 1)
        inner = head_inputs(Net(model, record.params), data.x.double())
        found[weight] = float((inner - Anchors()(4, 12)[data.y]).square().mean())
    assert found[20.0] < 0.5 * found[0.0]


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_what_goes_up_and_down(engine: str) -> None:
    """TARGET's payloads, and 12 features in float32 with each image."""
    changes = {**scenario("class"), "stream.tasks": 2}
    record, _ = watched(lander(changes, tables={"engine": {"name": engine}}))
    members, total = 5, record.summary["bytes_by_payload"]
    assert total["up"]["moments"] == 2 * members * 4 * 2 * (16 + 12)
    assert total["up"]["model"] == 4 * 3 * MODEL
    assert total["down"]["pictures"] == members * (24 * (16 + 8 + 4 * 4 + 4 * 12) + 4 + 4)
    assert total["down"]["heads"] == 4 * (members + 2 * 3)


def test_needs_hold_what_it_keeps_and_sends() -> None:
    layers = {"fc1.weight": (16, 12), "head.weight": (12, 4)}
    sizes = Sizes(MODEL, layers, dict.fromkeys(layers, 1), 4 * 16 + 8, 30, 5, 300, 4)
    needs, images = Lander(**FAST).needs(sizes), 24 * (16 + 8 + 16 + 48)
    assert images + 4 <= needs.memory <= 1.5 * images and needs.everyone
    assert needs.state >= MODEL + images and needs.reply >= 4 * 2 * 28 + 8
    nothing = Lander(previous=0.0).needs(sizes)
    assert (nothing.state, nothing.memory, nothing.reply) == (MODEL, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolutional_network_rehearses_too(kind: str) -> None:
    changes = {"training.dtype": "float64", **scenario(kind)}
    runs = [
        fedcl.run(lander(changes, previous=p, tables={"model": CNN, "engine": {"name": e}})).params
        for p, e in ((1.0, "serial"), (1.0, "vectorized"), (1e-6, "serial"))
    ]
    assert distance(runs[0], runs[1]) < 1e-9
    assert distance(runs[0], runs[2]) > 1e-6


def test_it_forgets_less_than_fedavg() -> None:
    changes = {**scenario("class"), "training.rounds": 6, "training.cohort": 0}
    changed = {"current": 1.0, "previous": 1.0, "growing": False, "bounding": 0.1}
    options = {"steps": 30, "images": 128, **changed}
    found = fedcl.run(lander(changes, **options))
    plain = fedcl.run(tiny(changes))
    assert found.summary["average_accuracy"] > plain.summary["average_accuracy"] + 0.2
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.2


@pytest.mark.parametrize(
    "options",
    [{"bounding": -0.1}, {"radius": -1.0}, {"size": 0.0}, {"ratio": 0.0}, {"rounds": 1}],
)
def test_refuses_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        lander(**options)
