"""TARGET: FedAvg and rehearsal of images that the server drew; what goes up and down, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError
from fedcl.core.generative.datafree import INPUT, look
from fedcl.core.generative.pictures import Shipment
from fedcl.core.method import Sizes
from fedcl.core.model import Net
from fedcl.methods.target import Target
from tests.tiny import (
    CNN,
    distance,
    first_parameters,
    logits,
    same,
    scenario,
    stream_of,
    tiny,
    trace,
    watched,
)

MODEL = 4 * (16 * 12 + 12 + 12 * 4 + 4)  # bytes of the tiny network 16-12-4 in float32
KINDS = ("class", "task", "domain")
FAST: dict[str, Any] = {"images": 24, "steps": 3, "batch": 8, "rounds": 3, "width": 4}
# Every round is one step on all examples of all clients: gradient descent.
CENTRAL = {
    "training.dtype": "float64",
    "training.cohort": 0,
    "training.local": {"name": "sgd", "lr": 0.3, "batch_size": 10_000},
}


def target(
    changes: dict[str, Any] | None = None, *, tables: Any = None, **options: Any
) -> Experiment:
    """The tiny experiment with TARGET, its generator hardly trained."""
    return tiny(changes, method={"name": "target", **FAST, **options}, **(tables or {}))


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("option", [{"strength": 0.0}, {"images": 0}])
@pytest.mark.parametrize("masked", [False, True])
def test_reduces_to_fedavg_without_strength_or_images(
    masked: bool, option: dict[str, Any], engine: str
) -> None:
    for kind in KINDS:
        changes, tables = scenario(kind), {"engine": {"name": engine}}
        found = fedcl.run(target(changes, tables=tables, masked=masked, **option))
        plain = fedcl.run(tiny(changes, method={"name": "fedavg", "masked": masked}, **tables))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])
        assert found.summary["bytes_by_payload"] == plain.summary["bytes_by_payload"]


def test_the_first_stage_is_learnt_as_by_fedavg() -> None:
    changes, masked = {**scenario("class"), "stream.tasks": 1}, {"name": "fedavg", "masked": True}
    found, plain = fedcl.run(target(changes)), fedcl.run(tiny(changes, method=masked))
    assert same(dict(found.params), dict(plain.params))


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_of_the_second_stage_by_hand(kind: str, engine: str, tmp_path: Path) -> None:
    """Where clients have fewer examples than there are images, each meets others; all of them meet
    them all when each example has as many images as there are, and weights are equal."""
    changes = {**CENTRAL, **scenario(kind), "stream.partition": {"name": "iid"}}
    count = 24
    experiment = target(
        changes,
        tables={"engine": {"name": engine}},
        strength=0.7,
        temperature=3.0,
        ratio=float(count),
    )
    _, states = trace(experiment, tmp_path / "run")
    stream = stream_of(experiment)
    everyone = [stream.train(i, 1) for i in range(5)]
    x, y = torch.cat([d.x for d in everyone]).double(), torch.cat([d.y for d in everyone])
    images = states[2].pictures
    assert len(images) == count
    old, new = ([0, 1], [2, 3]) if kind != "domain" else ([0, 1, 2, 3],) * 2
    known = range(2 if kind != "domain" else 4)
    assert torch.bincount(images.y).tolist() == [count // len(known)] * len(known)
    teacher = logits(states[1].params, images.images)
    assert distance({"": teacher}, {"": images.logits}) < 1e-12
    for before, after, pulls in ((states[1], states[2], False), (states[2], states[3], True)):
        leaves = {k: v.clone().requires_grad_() for k, v in before.params.items()}
        own = torch.nn.functional.cross_entropy(logits(leaves, x)[:, new], y - new[0])
        p = (teacher[:, old] / 3).log_softmax(1)
        q = (logits(leaves, images.images)[:, old] / 3).log_softmax(1)
        held = 9 * (p.exp() * (p - q)).sum(1).mean()
        assert (float(held.detach()) > 1e-6) == pulls
        gradients = torch.autograd.grad(own + 0.7 * held, list(leaves.values()))
        expected = {
            k: v - 0.3 * g for (k, v), g in zip(before.params.items(), gradients, strict=True)
        }
        assert distance(after.params, expected) < 1e-11


def test_the_server_knows_the_statistics_of_all_data_and_replaces_what_is_gone(
    tmp_path: Path,
) -> None:
    """After stage 0 they are the data's in the model; after stage 1 old images stand in for old
    data, except in the pixels."""
    changes = {**CENTRAL, **scenario("class")}
    _, states = trace(target(changes), tmp_path / "run")
    experiment = target(changes)
    stream, model = stream_of(experiment), build_site(experiment).model
    data = [torch.cat([stream.train(i, t).x for i in range(5)]).double() for t in (0, 1)]
    first = states[2].known
    assert first.classes == (0, 1) and first.examples == len(data[0])
    assert first.heads.tolist() == [[True, True, False, False]]
    with torch.no_grad():
        sums = look(Net(model, states[1].params), data[0]).sums
    own = {k: v / len(data[0]) for k, v in sums.items()}
    assert distance(first.moments, own) < 1e-12
    last = states[3].known  # the checkpoint after the last round precedes the stage's end
    assert last is None or last.examples in (len(data[0]), len(data[0]) + len(data[1]))
    assert INPUT in first.moments


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_what_goes_up_and_down(engine: str) -> None:
    """A stage's end: 2 * (16 pixels + 12 features) float32 numbers and a float64 count from every
    member. A stage's beginning, but the first: images at a byte a number, labels, the teacher's
    answers, the scale of the bytes and the heads to every member. Rounds: a model and the heads."""
    changes = {**scenario("class"), "stream.tasks": 2}
    record, watch = watched(target(changes, tables={"engine": {"name": engine}}))
    members = 5
    asked = [(r.position.stage, r.position.round, len(ids)) for r, ids in watch.requests]
    assert (1, -1, members) in asked and (0, -1, members) not in asked
    assert [a for a in asked if a[1] == 2] == [(0, 2, members), (1, 2, members)]
    total = record.summary["bytes_by_payload"]
    assert total["up"]["moments"] == 2 * members * 4 * 2 * (16 + 12)
    assert total["up"]["count"] == 2 * members * 8
    assert total["down"]["pictures"] == members * (24 * (16 + 8 + 4 * 4) + 4 + 4)
    assert total["down"]["heads"] == 4 * (members + 2 * 3)
    assert total["down"]["model"] == (4 * 3 + 2 * members) * MODEL
    assert total["up"]["model"] == 4 * 3 * MODEL
    memories = [m for result in watch.results for m in result.memories.values()]
    assert len(memories) == members and all(isinstance(m, Shipment) for m in memories)


def test_no_images_are_made_after_the_last_stage(tmp_path: Path) -> None:
    _, states = trace(target(scenario("class")), tmp_path / "run")
    made = [state.pictures is not None for state in states]
    assert made == [False, False, True, True]


def test_needs_hold_what_it_keeps_and_sends() -> None:
    layers, rows = (
        {"fc1.weight": (16, 12), "head.weight": (12, 4)},
        {"fc1.weight": 1, "head.weight": 1},
    )
    sizes = Sizes(MODEL, layers, rows, 4 * 16 + 8, 30, 5, 300, 4)
    needs, images = Target(**FAST).needs(sizes), 24 * (16 + 8 + 16)
    assert needs.memory >= images + 4 and needs.everyone
    assert needs.state >= MODEL + images and needs.reply >= 4 * 2 * 28 + 8
    assert needs.training == "plain"
    nothing = Target(strength=0.0).needs(sizes)
    assert (nothing.state, nothing.memory, nothing.reply) == (MODEL, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolutional_network_rehearses_too(kind: str) -> None:
    changes = {"training.dtype": "float64", **scenario(kind)}
    runs = [
        fedcl.run(target(changes, strength=s, tables={"model": CNN, "engine": {"name": e}})).params
        for s, e in ((1.0, "serial"), (1.0, "vectorized"), (1e-6, "serial"))
    ]
    assert distance(runs[0], runs[1]) < 1e-9
    assert distance(runs[0], runs[2]) > 1e-5


def test_flat_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"images.*\(16,\)"):
        fedcl.run(target({"dataset.features": [16]}))


def test_it_forgets_less_than_fedavg() -> None:
    changes = {**scenario("class"), "training.rounds": 6, "training.cohort": 0}
    found = fedcl.run(target(changes, steps=30, images=128))
    plain = fedcl.run(tiny(changes))
    assert found.summary["average_accuracy"] > plain.summary["average_accuracy"] + 0.2
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.2


def test_the_student_starts_from_the_first_parameters(tmp_path: Path) -> None:
    experiment = target()
    _, states = trace(experiment, tmp_path / "run")
    assert all(same(dict(s.first), first_parameters(experiment)) for s in states)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -0.1}, "strength"),
        ({"temperature": 0.0}, "temperature"),
        ({"ratio": 0.0}, "ratio"),
        ({"rounds": 1}, "rounds"),
        ({"width": 0}, "width"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        target(**options)
