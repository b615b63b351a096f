"""GLFC: FedAvg with binary cross-entropy, its loss in whole rounds, and what the server learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.config import Experiment
from fedcl.core.attacks.inversion import HISTORY, TOGETHER, Encoder, numbers
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.method import Sizes
from fedcl.core.params import Params
from fedcl.core.task import Examples
from fedcl.methods.glfc import GLFC
from tests.tiny import (
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
ROW = 16 * 4 + 8 + 8 + 4 + 8  # image, label, stage, a byte for each class, rank
GRADIENT = 4 * (12 * (25 + 1) + 2 * 12 * (12 * 25 + 1) + 4 * (12 + 1))  # of one 4 x 4 image
KINDS = ("class", "task", "domain")
ENGINES = pytest.mark.parametrize("engine", ["serial", "vectorized"])
# Every round is one step on all examples of all clients: gradient descent.
CENTRAL = {
    "training.dtype": "float64",
    "training.cohort": 0,
    "training.local": {"name": "sgd", "lr": 0.1, "batch_size": 10_000},
}
PLAIN: dict[str, Any] = {"budget": 0, "compensation": False, "distillation": 0.0}
BLIND: dict[str, Any] = {"select": False}


def glfc(
    changes: dict[str, Any] | None = None, engine: str = "serial", **options: Any
) -> Experiment:
    """The tiny experiment with GLFC."""
    return tiny(changes, method={"name": "glfc", **options}, engine={"name": engine})


def stage_classes(kind: str) -> list[list[int]]:
    """The classes of the tiny stream's two stages."""
    return [[0, 1, 2, 3]] * 2 if kind == "domain" else [[0, 1], [2, 3]]


def entropy(params: Params, x: Tensor, y: Tensor, allowed: list[int]) -> Tensor:
    """Binary cross-entropy summed over allowed classes, class by class: (n,)."""
    z = logits(params, x)
    return torch.stack(
        [-F.logsigmoid(torch.where(y == c, z[:, c], -z[:, c])) for c in allowed]
    ).sum(0)


def descend(params: Params, loss: Any) -> dict[str, Tensor]:
    """One step of size 0.1."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()))
    return {k: v.detach() - 0.1 * g for (k, v), g in zip(leaves.items(), found, strict=True)}


def union(experiment: Experiment, stage: int) -> tuple[Tensor, Tensor]:
    """All clients' examples of a stage."""
    stream = stream_of(experiment)
    data = [stream.train(client, stage) for client in range(5)]
    return torch.cat([d.x for d in data]).double(), torch.cat([d.y for d in data])


# --- The clients' half. ---


@ENGINES
@pytest.mark.parametrize("kind", KINDS)
def test_reduces_to_fedavg_with_binary_cross_entropy(kind: str, engine: str) -> None:
    """Without memory, compensation and teacher: gradient descent by plain PyTorch."""
    experiment = glfc({**scenario(kind), **CENTRAL}, engine, **PLAIN)
    params = first_parameters(experiment)
    parts = stage_classes(kind)
    for stage in range(2):
        x, y = union(experiment, stage)
        allowed = [0, 1, 2, 3] if kind == "class" and stage else parts[stage]
        for _ in range(2):
            params = descend(params, lambda p, x=x, y=y, a=allowed: entropy(p, x, y, a).mean())
    assert distance(fedcl.run(experiment).params, params) < 1e-12


@ENGINES
@pytest.mark.parametrize("kind", KINDS)
def test_two_rounds_of_the_second_stage_by_hand(kind: str, engine: str, tmp_path: Path) -> None:
    """All examples are remembered. Each client has its own batch, so its own weights; the cohort's
    mean weighs clients by their present examples."""
    options = {"budget": 10**6, "distillation": 0.3, **BLIND}
    experiment = glfc({**scenario(kind), **CENTRAL}, engine, **options)
    stream = stream_of(experiment)
    _, states = trace(experiment, tmp_path / "run")
    parts = stage_classes(kind)
    teacher = states[1].params
    sizes = [len(stream.train(client, 1)) for client in range(5)]

    def client_loss(p: Params, client: int) -> Tensor:
        losses = []
        for stage in range(2):
            rows = stream.train(client, stage)
            x, y = rows.x.double(), rows.y
            own = parts[stage] if kind == "task" else [0, 1, 2, 3]
            z, old = logits(p, x), logits(teacher, x).sigmoid()
            lacking = 1 - z.detach().gather(1, y[:, None])[:, 0].sigmoid()
            label = entropy(p, x, y, own) * lacking / lacking.mean()
            relation = z.new_zeros(len(y))
            for c in sorted({*own, *parts[0]}):
                target = old[:, c] if c in parts[0] else (y == c).double()
                relation = relation + F.binary_cross_entropy_with_logits(
                    z[:, c], target, reduction="none"
                )
            losses.append(0.7 * label + 0.3 * relation)
        return torch.cat(losses).mean()

    for before, after in ((states[1], states[2]), (states[2], states[3])):
        expected = descend(
            before.params,
            lambda p: sum(sizes[c] * client_loss(p, c) for c in range(5)) / sum(sizes),
        )
        assert distance(after.params, expected) < 1e-12
    assert same(dict(states[3].teacher), dict(states[3].params))


def test_even_clients_train_together_as_they_do_alone() -> None:
    """Full batches everywhere, so that no client is taken out of the batched computation."""
    changes = {
        **scenario("class"),
        "training.dtype": "float64",
        "stream.partition": {"name": "iid"},
        "training.cohort": 0,
    }
    runs = [fedcl.run(glfc(changes, engine, **BLIND)) for engine in ("serial", "vectorized")]
    assert distance(runs[0].params, runs[1].params) < 1e-9
    plain = fedcl.run(glfc(changes, compensation=False, **BLIND))
    assert distance(runs[0].params, plain.params) > 1e-3


@pytest.mark.parametrize("rows", [3, 9])
def test_the_budget_is_kept_and_nothing_without_one(rows: int) -> None:
    changes = {**scenario("class"), "training.cohort": 0}
    _, engine = watched(glfc(changes, budget=rows * ROW + ROW - 1, **BLIND))
    kept = [memory for result in engine.results for memory in result.memories.values()]
    assert {len(memory) for memory in kept} == {rows}
    assert all(memory.nbytes == rows * ROW for memory in kept)
    _, engine = watched(glfc(changes, budget=0, **BLIND))
    assert not any(result.memories for result in engine.results)


# --- The server's half. ---


def monitors(states: list[Any]) -> list[Examples]:
    """The images of each stage, of two rounds each."""
    found = [state.monitor for state in states[::2]]
    assert all(same(a, b.monitor) for a, b in zip(found, states[1::2], strict=True))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_has_an_example_of_each_class_of_each_client(kind: str, tmp_path: Path) -> None:
    """The labels exactly, in the order of clients; each image next to one of that class."""
    experiment = glfc({**scenario(kind), "training.dtype": "float64"})
    stream = stream_of(experiment)
    for stage, found in enumerate(monitors(trace(experiment, tmp_path / "run")[1])):
        shares = [stream.train(client, stage) for client in range(5)]
        assert found.y.tolist() == [c for share in shares for c in share.y.unique().tolist()]
        place = 0
        for share in shares:
            for label in share.y.unique().tolist():
                theirs = share.x[share.y == label].double()
                errors = (theirs - found.x[place]).square().flatten(1).mean(1)
                assert float(errors.min()) < 1e-3 * float(theirs.square().mean())
                place += 1


def test_it_reconstructs_as_many_as_it_is_told(tmp_path: Path) -> None:
    _, states = trace(glfc(scenario("class"), images=3, iterations=2), tmp_path / "run")
    assert [len(found) for found in monitors(states)] == [3, 3]


def rate(params: Params, data: Examples, allowed: list[int]) -> float:
    z = logits(params, data.x)[:, allowed]
    return float((torch.tensor(allowed)[z.argmax(1)] == data.y).double().mean())


def test_the_best_model_of_a_stage_is_the_next_ones_teacher(tmp_path: Path) -> None:
    """By accuracy on the images, the later one of two that are alike. High rates make models of
    later rounds worse than earlier ones."""
    changes = {**scenario("class"), "training.rounds": 5, "training.local.lr": 1.5, "seed": 1}
    _, states = trace(glfc(changes, iterations=30, distillation=0.2), tmp_path / "run")
    last = []
    for stage in range(2):
        own = states[5 * stage : 5 * stage + 5]
        allowed = list(range(2 * stage + 2))
        scores = [rate(state.params, own[0].monitor, allowed) for state in own]
        for turn, state in enumerate(own):
            best = max(scores[: turn + 1])
            place = max(i for i in range(turn + 1) if scores[i] == best)
            assert state.score == best
            assert same(dict(state.best), dict(own[place].params))
        assert same(dict(own[-1].teacher), dict(own[-1].best))
        last.append(same(dict(own[-1].best), dict(own[-1].params)))
    assert not all(last), "somewhere an earlier model was better than the last one"


def test_without_selection_the_last_model_teaches_and_nothing_is_collected(tmp_path: Path) -> None:
    for options in (BLIND, {"images": 0}, {"distillation": 0.0}):
        record, engine = watched(glfc(scenario("class"), **options))
        assert not any(request.reveal for request, _ in engine.requests)
        assert "gradients" not in record.summary["bytes_by_payload"]["up"]
    _, states = trace(glfc(scenario("class"), **BLIND), tmp_path / "run")
    assert same(dict(states[1].teacher), dict(states[1].params))
    assert all(state.monitor is None for state in states)


def test_hidden_replies_refuse_it() -> None:
    with pytest.raises(ExposureError, match="glfc"):
        tiny(method={"name": "glfc"}, channel=[{"name": "secure_aggregation"}])


def test_examples_that_are_no_images_need_selection_off() -> None:
    changes = {**scenario("class"), "dataset.features": [16]}
    with pytest.raises(ConfigError, match=r"\(16,\): set method.select = false"):
        fedcl.run(glfc(changes))
    assert fedcl.run(glfc(changes, **BLIND)).summary["average_accuracy"] > 0.3


# --- What it costs. ---


@ENGINES
def test_bytes_of_every_payload(engine: str) -> None:
    """Five members at two stages' beginnings, two rows each; cohorts of three in four rounds."""
    options = {"iterations": 1, "distillation": 0.5}
    record, watch = watched(glfc(scenario("class"), engine, **options))
    lessons = [request.message for request, _ in watch.requests if request.name == "train"]
    sent = [bool(lesson.teacher) for lesson in lessons]
    assert sent[:2] == [False, False] and sent[3]
    found = record.summary["bytes_by_payload"]
    sizes = Encoder((1, 4, 4), 4, 0).sizes.values()
    assert 4 * sum(torch.Size(size).numel() for size in sizes) == GRADIENT
    up = {kind: size for kind, size in found["up"].items() if kind != "metrics"}
    assert up == {"model": 12 * MODEL, "gradients": 10 * 2 * GRADIENT, "shape": 10 * 3 * 8}
    down = {"model": (12 + 10) * MODEL, "teacher": 3 * sum(sent) * MODEL, "heads": 6 * 4}
    assert found["down"] == down


def test_a_teacher_that_is_the_model_is_not_sent() -> None:
    record = fedcl.run(glfc({**scenario("class"), "training.rounds": 3}, **BLIND))
    down = record.summary["bytes_by_payload"]["down"]
    assert down["teacher"] == 2 * 3 * MODEL, "the second stage's later rounds"


@ENGINES
@pytest.mark.parametrize("budget", [0, 7 * ROW])
def test_examples_passed_are_booked(budget: int, engine: str) -> None:
    """Features once for the prototypes, once for herding; a teacher's answers to all that is
    trained on; training itself."""
    changes = {**scenario("class"), "training.cohort": 0}
    experiment = glfc(changes, engine, budget=budget, iterations=1)
    (record, watch), stream = watched(experiment), stream_of(experiment)
    own = [[len(stream.train(client, stage)) for client in range(5)] for stage in range(2)]
    # What was kept before the second stage's rounds, of the first stage.
    kept: list[dict[int, Any]] = [{}]
    for result in watch.results:
        if result.memories:
            kept = [*kept, {**kept[-1], **result.memories}]
    blocks = len(kept) // 4  # of a round
    held = [
        sum(int((memory.extra["stage"] == 0).sum()) for memory in memories.values())
        for memories in (kept[2 * blocks], kept[3 * blocks])
    ]
    herding = [sum(part) * (budget > 0) for part in own]
    expected = [sum(own[0]), *[sum(own[0]) + herding[0]] * 2, sum(own[1])]
    expected += [2 * (sum(own[1]) + old) + herding[1] for old in held]
    assert [row["examples"] for row in record.costs if row["direction"] == ""] == expected


def test_needs() -> None:
    layers = {"fc1.weight": (16, 12), "head.weight": (12, 4)}
    sizes = Sizes(MODEL, layers, {}, 84, share=40, stages=3, examples=300, item=4)
    network = 4 * numbers(84 // 4, 4)
    found = GLFC(budget=50 * ROW, images=10).needs(sizes)
    assert found.memory == 50 * ROW
    assert found.reply == 4 * network >= 4 * GRADIENT
    assert found.state == 2 * MODEL + 10 * 84
    assert found.server == TOGETHER * (2 * HISTORY * 84 + 8 * network)
    assert found.client == 3 * 8 * 40 * 16 + (50 + 40) * 4 * 4 + found.reply
    blind = GLFC(budget=10**9, select=False).needs(sizes)
    assert (blind.memory, blind.reply, blind.server) == (3 * 40 * ROW, 0, 0)
    none = GLFC(budget=0, distillation=0.0).needs(sizes)
    assert (none.state, none.client, none.memory, none.reply) == (0, 0, 0, 0)


# --- What it is for. ---


def test_it_forgets_less_than_fedavg() -> None:
    changes = {**scenario("class"), "training.rounds": 6, "training.cohort": 0}
    found, plain = fedcl.run(glfc(changes, **BLIND)), fedcl.run(tiny(changes))
    assert found.summary["average_accuracy"] > plain.summary["average_accuracy"] + 0.2
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1}, "budget"),
        ({"images": -1}, "images"),
        ({"iterations": -1}, "iterations"),
        ({"distillation": 1.1}, "distillation"),
        ({"distillation": float("nan")}, "distillation"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        glfc(**options)
