"""MFCL: clients draw old classes from a generator that they were sent; all terms by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import fedcl
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError
from fedcl.core.generative.carried import Carried, beside_drawn, rows_drawn
from fedcl.core.generative.generator import Generator
from fedcl.core.method import Sizes
from fedcl.core.model import Net
from fedcl.core.seeds import seed_of
from fedcl.methods.mfcl import MFCL
from fedcl.models.mlp import Mlp
from tests.core import toys
from tests.tiny import CNN, distance, logits, same, scenario, stream_of, tiny, trace, watched

MODEL = 4 * (16 * 12 + 12 + 12 * 4 + 4)  # bytes of the tiny network 16-12-4 in float32
KINDS = ("class", "task", "domain")
FAST: dict[str, Any] = {"steps": 5, "batch": 8, "width": 4}
# Every round is one step on all examples of a client.
CENTRAL = {
    "training.dtype": "float64",
    "training.cohort": 0,
    "training.local": {"name": "sgd", "lr": 0.3, "batch_size": 10_000},
}
DRAWS = Generator((1, 4, 4), 4, width=4)


def mfcl(
    changes: dict[str, Any] | None = None, *, tables: Any = None, **options: Any
) -> Experiment:
    """The tiny experiment with MFCL, its generator hardly trained."""
    return tiny(changes, method={"name": "mfcl", **FAST, **options}, **(tables or {}))


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("masked", [False, True])
def test_reduces_to_fedavg_without_rehearsal(masked: bool, engine: str) -> None:
    for kind in KINDS:
        changes, tables = scenario(kind), {"engine": {"name": engine}}
        none = {"strength": 0.0, "balance": 0.0}
        found = fedcl.run(mfcl(changes, tables=tables, masked=masked, **none))
        plain = fedcl.run(tiny(changes, method={"name": "fedavg", "masked": masked}, **tables))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])
        assert found.summary["bytes_by_payload"] == plain.summary["bytes_by_payload"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_of_the_second_stage_by_hand(kind: str, tmp_path: Path) -> None:
    """Every client takes one step on all its rows; what it draws follows from its seed."""
    changes = {**CENTRAL, **scenario(kind), "stream.partition": {"name": "iid"}}
    experiment = mfcl(changes, strength=0.7, balance=0.4, ratio=0.5)
    _, watch = watched(experiment)
    _, states = trace(experiment, tmp_path / "run")
    stream, before, after = stream_of(experiment), states[2], states[3]
    carried = before.carried
    assert carried is not None and same(dict(carried.teacher), dict(states[1].params))
    old, new = ([0, 1], [2, 3]) if kind != "domain" else ([0, 1, 2, 3],) * 2
    seen = {"class": [0, 1, 2, 3], "task": new, "domain": old}[kind]
    assert list(carried.classes) == old
    request = next(r for r, _ in watch.requests if (r.position.stage, r.position.round) == (1, 1))
    at = request.position
    steps = []
    for id in range(5):
        data = stream.train(id, 1)
        x, y = data.x.double(), data.y
        seed = seed_of(experiment.seed, at.stage, at.round, at.exchange, id)
        drawn = carried.draw(round(0.5 * len(y)), seed_of(seed, "draw"))
        assert set(drawn.y.tolist()) <= set(old)
        leaves = {k: v.clone().requires_grad_() for k, v in before.params.items()}
        both, labels = torch.cat([x, drawn.x]), torch.cat([y, drawn.y])
        own = F.cross_entropy(logits(leaves, x)[:, new], y - new[0])
        frozen = {k: v if k.startswith("head") else v.detach() for k, v in leaves.items()}
        answers = logits(frozen, both)
        even = []
        for row, label, mine in zip(
            answers, labels, [True] * len(y) + [False] * len(drawn.y), strict=True
        ):
            over = seen if mine or kind != "task" else old
            even.append(F.cross_entropy(row[over], label - over[0]))
        held = (_through_old(carried, leaves, both) - logits(carried.teacher, both))[:, old]
        loss = own + 0.4 * torch.stack(even).mean() + 0.7 * held.square().mean()
        steps.append(torch.autograd.grad(loss, list(leaves.values())))
    for (name, value), *gradients in zip(before.params.items(), *steps, strict=True):
        expected = value - 0.3 * torch.stack(gradients).mean(0)
        assert distance({name: after.params[name]}, {name: expected}) < 1e-11, name


def _through_old(carried: Carried, params: Any, x: torch.Tensor) -> torch.Tensor:
    """The features of a model through the old one's last layer."""
    mixed = {**params, **{k: v for k, v in carried.teacher.items() if k.startswith("head")}}
    return logits(mixed, x)


def carrying(**changes: Any) -> tuple[Any, Carried]:
    """A client of four examples of class 2 that carries a generator of classes 0 and 1."""
    model = Mlp(hidden=(5,)).build((1, 4, 4), 4).double()
    zeros = torch.zeros((), dtype=torch.float64)
    drawing = DRAWS.init(3, zeros, torch.ones_like(zeros))
    heads = torch.tensor([[True, True, False, False]])
    carried = Carried(DRAWS, drawing, toys.parameters(model), heads, (0, 1))
    given: dict[str, Any] = {"head": (0, 1, 2, 3), "state": carried, **changes}
    return toys.client(model, 4, (1, 4, 4), 4, **given), carried


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 4), (0.5, 2), (2.5, 10), (0.01, 1)])
def test_rows_are_own_ones_and_balanced_drawn_ones_with_the_old_model_s_answers(
    ratio: float, count: int
) -> None:
    client, carried = carrying()
    rows = beside_drawn(client, carried.heads, ratio)
    assert len(rows) == 4 + count == 4 + rows_drawn(client, carried.heads, ratio)
    assert torch.equal(rows.x[:4], client.data.x)
    assert rows.extra["own"].tolist() == [(4 + count) / 4] * 4 + [0.0] * count
    assert bool(rows.extra["allowed"].all()) and bool((rows.extra["carried"] == 1.0).all())
    labels = rows.y[4:].bincount(minlength=4)
    assert labels[2:].tolist() == [0, 0] and abs(int(labels[0] - labels[1])) <= 1
    with torch.no_grad():
        assert torch.equal(rows.extra["teacher"], Net(client.model, carried.teacher)(rows.x))


def test_without_a_generator_or_with_an_old_one_a_client_has_its_own_examples() -> None:
    client, carried = carrying(state=None)
    stale, _ = carrying()
    for given, heads in ((client, carried.heads), (stale, ~carried.heads)):
        rows = beside_drawn(given, heads, 1.0)
        assert rows_drawn(given, heads, 1.0) == 0 and torch.equal(rows.x, given.data.x)
        assert rows.extra["own"].tolist() == [1.0] * 4
        assert rows.extra["carried"].tolist() == [0.0] * 4
        assert not bool(rows.extra["teacher"].any())


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_what_goes_up_and_down(engine: str) -> None:
    """A stage's end: 2 * (16 pixels + 12 features) float32 numbers and a float64 count from every
    member. A stage's beginning, but the first: the generator, the old model and the heads to every
    member. Rounds of the second stage: a model, the heads and the old model's last layer."""
    changes = {**scenario("class"), "stream.tasks": 2}
    record, watch = watched(mfcl(changes, tables={"engine": {"name": engine}}))
    members, total = 5, record.summary["bytes_by_payload"]
    assert total["up"]["moments"] == 2 * members * 4 * 2 * (16 + 12)
    assert total["up"]["count"] == 2 * members * 8
    assert total["up"]["model"] == 4 * 3 * MODEL
    assert set(total["up"]) == {"count", "metrics", "model", "moments"}
    assert total["down"]["drawing"] == members * 4 * DRAWS.size
    assert total["down"]["teacher"] == members * MODEL
    assert total["down"]["heads"] == 4 * (members + 2 * 3)
    assert total["down"]["head"] == 2 * 3 * 4 * (12 * 4 + 4)
    memories = [m for result in watch.results for m in result.memories.values()]
    assert len(memories) == members and all(isinstance(m, Carried) for m in memories)


def test_passes_are_own_and_drawn_examples_by_both_models() -> None:
    changes = {**scenario("class"), "training.cohort": 0}
    record = fedcl.run(mfcl(changes, ratio=1.0))
    plain = fedcl.run(tiny(changes))
    stream = stream_of(tiny(changes))
    second = sum(len(stream.train(i, 1).y) for i in range(5))
    first = sum(len(stream.train(i, 0).y) for i in range(5))
    # Two rounds of the second stage: as many drawn ones, and the old model's look at both; and
    # each stage's data once for the statistics.
    extra = 2 * (second + 2 * second) + first + second
    found, base = (r.summary["examples"] for r in (record, plain))
    assert found - base == extra


def test_needs_hold_what_it_keeps_and_sends() -> None:
    layers = {"fc1.weight": (16, 12), "head.weight": (12, 4)}
    sizes = Sizes(MODEL, layers, dict.fromkeys(layers, 1), 4 * 16 + 8, 30, 5, 300, 4)
    needs, drawing = MFCL(**FAST).needs(sizes), 4 * DRAWS.size
    assert needs.memory >= drawing + MODEL + 4 and needs.everyone
    assert needs.memory <= 1.5 * (drawing + MODEL + 20)
    assert needs.state >= MODEL + drawing and needs.reply >= 4 * 2 * 28 + 8
    nothing = MFCL(strength=0.0, balance=0.0).needs(sizes)
    assert (nothing.state, nothing.memory, nothing.reply) == (MODEL, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolutional_network_rehearses_too(kind: str) -> None:
    changes = {"training.dtype": "float64", **scenario(kind)}
    runs = [
        fedcl.run(mfcl(changes, strength=s, tables={"model": CNN, "engine": {"name": e}})).params
        for s, e in ((1.0, "serial"), (1.0, "vectorized"), (1e-6, "serial"))
    ]
    assert distance(runs[0], runs[1]) < 1e-9
    assert distance(runs[0], runs[2]) > 1e-6


def test_flat_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"images.*\(16,\)"):
        fedcl.run(mfcl({"dataset.features": [16]}))


def test_a_generator_that_diverges_is_an_error() -> None:
    with pytest.raises(ConfigError, match="generator holds NaN"):
        fedcl.run(mfcl(scenario("class"), lr=1e30))


def test_it_forgets_less_than_fedavg() -> None:
    changes = {**scenario("class"), "training.rounds": 6, "training.cohort": 0}
    found = fedcl.run(mfcl(changes, steps=80, strength=1.0))
    plain = fedcl.run(tiny(changes))
    assert found.summary["average_accuracy"] > plain.summary["average_accuracy"] + 0.2
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.2


@pytest.mark.parametrize(
    "options",
    [{"strength": -0.1}, {"balance": -1.0}, {"ratio": 0.0}, {"lr": 0.0}, {"variety": -1.0}],
)
def test_refuses_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        mfcl(**options)
