"""PRD: its three losses by slow loops over a run, what each leaves alone, and what goes down."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError
from fedcl.core.method import Sizes
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.methods.prd import PRD, State
from tests.tiny import (
    distance,
    first_parameters,
    rows,
    same,
    scenario,
    stream_of,
    tiny,
    trace,
)

DOUBLE = {"training.dtype": "float64"}
MODEL = 4 * (16 * 12 + 12 + 12 * 4 + 4)  # bytes of the tiny network 16-12-4 in float32
HEAD = ("head.weight", "head.bias")
BODY = ("fc1.weight", "fc1.bias")
# Every client takes one step a round, on all of its examples.
FULL = {
    **DOUBLE,
    "training.cohort": 0,
    "training.local": {"name": "sgd", "lr": 0.3, "batch_size": 10_000},
}
CENTRAL = {**FULL, "stream.clients": 1, "stream.partition": {"name": "iid"}}
ROUNDING = 1e-14  # of sums over clients
ENGINES = pytest.mark.parametrize("engine", ["serial", "vectorized"])


def prd(
    changes: dict[str, Any] | None = None, engine: str = "serial", **options: Any
) -> Experiment:
    """The tiny experiment with PRD."""
    return tiny(changes, method={"name": "prd", **options}, engine={"name": engine})


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def features(params: Params, x: Tensor) -> Tensor:
    return F.relu(x.double().flatten(1) @ params["fc1.weight"].T + params["fc1.bias"])


def similarities(params: Params, x: Tensor) -> Tensor:
    """Cosines by PyTorch's own function, prototype by prototype."""
    h = features(params, x)
    return torch.stack([F.cosine_similarity(h, row[None]) for row in params["head.weight"]], dim=1)


def descend(params: Params, loss: Any) -> dict[str, Tensor]:
    """One step of size 0.3."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    found = torch.autograd.grad(
        loss(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return {k: v.detach() - 0.3 * g for (k, v), g in zip(leaves.items(), found, strict=True)}


# --- The losses, the slow way. ---


@ENGINES
def test_reduces_to_fedavg_with_a_cosine_head(engine: str) -> None:
    """Without contrast and distillation, and with gradients through the pull: gradient descent on
    1 - cos(h, w_y) of all clients' examples together, whatever the stage."""
    options = {"contrastive": 0.0, "distillation": 0.0, "prototype": 1.0, "stop": False}
    for kind in ("domain", "class"):
        experiment = prd({**scenario(kind), **FULL, "training.rounds": 3}, engine, **options)
        params, stream = first_parameters(experiment), stream_of(experiment)
        for stage in range(2):
            data = [stream.train(client, stage) for client in stream.members(stage)]
            x, y = torch.cat([d.x for d in data]), torch.cat([d.y for d in data])
            for _ in range(3):
                params = descend(
                    params,
                    lambda p, x=x, y=y: (
                        sum(
                            1 - F.cosine_similarity(h, p["head.weight"][c], dim=0)
                            for h, c in zip(features(p, x), y, strict=True)
                        )
                        / len(y)
                    ),
                )
        assert distance(fedcl.run(experiment).params, params) < 1e-12


def slow_contrast(h: Tensor, y: Tensor, temperature: float) -> Tensor:
    losses = [h.new_zeros(())] * len(y)
    z = [row / row.norm() for row in h]
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        total = torch.logsumexp(torch.stack([z[i] @ z[j] / temperature for j in others]), 0)
        terms = [total - z[i] @ z[j] / temperature for j in others if y[j] == y[i]]
        if terms:
            losses[i] = torch.stack(terms).mean()
    return torch.stack(losses).mean()


def slow_relations(new: Tensor, old: Tensor, temperature: float) -> Tensor:
    """The mean over columns of the divergence of softmaxes down each column."""
    found = []
    for k in range(new.shape[1]):
        q = (old[:, k] / temperature).exp() / (old[:, k] / temperature).exp().sum()
        p = (new[:, k] / temperature).exp() / (new[:, k] / temperature).exp().sum()
        found.append(sum(a * (a / b).log() for a, b in zip(q, p, strict=True)))
    return torch.stack(found).mean()


@ENGINES
@pytest.mark.parametrize("relation", ["samples", "classes"])
def test_two_stages_of_all_losses_by_slow_loops(relation: str, engine: str) -> None:
    options = {"contrastive": 0.7, "prototype": 1.5, "distillation": 3.0, "temperature": 0.5}
    changes = {**scenario("class"), **CENTRAL, "dataset.train": 60, "training.rounds": 2}
    table = {**options, "relation": relation, "relation_temperature": 0.2}
    experiment = prd(changes, engine, **table)
    params, stream = first_parameters(experiment), stream_of(experiment)
    for stage in range(2):
        x, y = (data := stream.train(0, stage)).x, data.y
        old = sorted(stream.train(0, 0).y.unique().tolist())
        taught = similarities(params, x)[:, old]

        def loss(
            p: Params,
            x: Tensor = x,
            y: Tensor = y,
            taught: Tensor = taught,
            stage: int = stage,
            old: list[int] = old,
        ) -> Tensor:
            h, own = features(p, x), p["head.weight"]
            pulls = [1 - F.cosine_similarity(a.detach(), own[c], 0) for a, c in zip(h, y)]  # noqa: B905
            value = 0.7 * slow_contrast(h, y, 0.5) + 1.5 * torch.stack(pulls).mean()
            if stage == 0:
                return value
            new = similarities(p, x)[:, old]
            sides = (new, taught) if relation == "samples" else (new.T, taught.T)
            return value + 3.0 * slow_relations(*sides, 0.2)

        for _ in range(2):
            params = descend(params, loss)
    assert old == [0, 1]
    assert distance(fedcl.run(experiment).params, params) < 1e-11


@ENGINES
def test_a_student_that_equals_its_teacher_feels_no_distillation(
    engine: str, tmp_path: Path
) -> None:
    """So the first step after a stage is that of a run without it; the second is not."""
    changes = {**scenario("class"), **FULL}
    _, with_it = trace(prd(changes, engine), tmp_path / "a")
    _, without = trace(prd(changes, engine, distillation=0.0), tmp_path / "b")
    gaps = [distance(a.params, b.params) for a, b in zip(with_it, without, strict=True)]
    assert gaps[0] == gaps[1] == 0.0
    assert gaps[2] < 1e-13 < 1e-3 < gaps[3]


# --- What each loss leaves alone. ---


@ENGINES
def test_the_pull_alone_moves_only_prototypes_that_have_examples(
    engine: str, tmp_path: Path
) -> None:
    options = {"contrastive": 0.0, "distillation": 0.0}
    changes = {**scenario("class"), **DOUBLE}
    _, states = trace(prd(changes, engine, **options), tmp_path / "run")
    first = first_parameters(prd(changes))
    for name in (*BODY, "head.bias"):
        assert all(gap(state.params[name], first[name]) < ROUNDING for state in states)
    rows = [first["head.weight"], *(state.params["head.weight"] for state in states)]
    for before, after, own, other in (
        (0, 2, slice(0, 2), slice(2, 4)),
        (2, 4, slice(2, 4), slice(0, 2)),
    ):
        assert gap(rows[after][other], rows[before][other]) < ROUNDING
        assert float((rows[after][own] - rows[before][own]).abs().amax(1).min()) > 1e-3


@ENGINES
def test_contrast_alone_moves_no_prototype(engine: str) -> None:
    experiment = prd(DOUBLE, engine, prototype=0.0, distillation=0.0)
    found, first = fedcl.run(experiment).params, first_parameters(experiment)
    assert all(gap(found[name], first[name]) < ROUNDING for name in HEAD)
    assert all(gap(found[name], first[name]) > 1e-3 for name in BODY)


@ENGINES
def test_batches_of_one_teach_no_features(engine: str, tmp_path: Path) -> None:
    """There is no positive, and a softmax over one sample says nothing."""
    local = {"name": "sgd", "lr": 0.2, "batch_size": 1}
    found = fedcl.run(prd({**DOUBLE, "training.local": local}, engine, relation="samples")).params
    first = first_parameters(prd(DOUBLE))
    assert all(gap(found[name], first[name]) < ROUNDING for name in BODY)
    assert gap(found["head.weight"], first["head.weight"]) > 1e-3


def test_the_teacher_is_the_last_stages_end(tmp_path: Path) -> None:
    changes = {**scenario("class"), "stream.tasks": 4, "training.rounds": 1}
    _, states = trace(prd(changes), tmp_path / "run")
    for number, state in enumerate(states):
        assert same(dict(state.teacher), dict(state.params))
        assert state.learnt == tuple(range(number + 1))
    _, plain = trace(prd(changes, distillation=0.0), tmp_path / "plain")
    assert all(not state.teacher and not state.learnt for state in plain)


# --- Predictions. ---


def test_the_nearest_prototype_wins() -> None:
    experiment = prd(DOUBLE)
    params, x = first_parameters(experiment), stream_of(experiment).train(0, 0).x.double()
    method, net = PRD(temperature=0.2), Net(build_site(experiment).model, params)
    everything = torch.ones(4, dtype=torch.bool)
    found = method.predict(State(params), net, x, everything).detach()
    assert float((0.2 * found - similarities(params, x)).abs().max()) < 1e-14
    # Only directions count, and the bias does not.
    scale = torch.tensor([[1.0], [9.0], [0.1], [3.0]], dtype=torch.float64)
    other = {**params, "head.weight": params["head.weight"] * scale, "head.bias": scale[:, 0]}
    again = method.predict(State(other), Net(net.model, other), x, everything).detach()
    assert float((again - found).abs().max()) < 1e-13
    allowed = torch.tensor([False, True, False, True])
    chosen = method.predict(State(params), net, x, allowed).argmax(1)
    assert torch.equal(chosen, 1 + 2 * similarities(params, x)[:, [1, 3]].argmax(1))


def test_evaluations_are_of_the_nearest_prototype() -> None:
    experiment = prd(DOUBLE)
    record, stream = fedcl.run(experiment), stream_of(experiment)
    for row in rows(record, stage=1, round=4, model="global", split="test"):
        test = stream.held_out(row["task"], "test")
        right = similarities(record.params, test.x).argmax(1) == test.y
        assert row["value"] == pytest.approx(float(right.double().mean()), abs=1e-12)


# --- Streams and costs. ---


@ENGINES
@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_clients_with_orders_of_their_own(kind: str, engine: str) -> None:
    changes = {**scenario(kind), "stream.order": {"name": "shuffled"}, "stream.tasks": 4}
    found = fedcl.run(prd(changes, engine))
    assert all(math.isfinite(float(value.sum())) for value in found.params.values())


@ENGINES
def test_the_teacher_goes_down_and_looks_once_at_each_example(engine: str) -> None:
    changes = {**scenario("class"), "training.local.epochs": 3}
    record = fedcl.run(prd(changes, engine))
    plain = fedcl.run(prd(changes, engine, distillation=0.0))
    fedavg = fedcl.run(tiny(changes, engine={"name": engine}))
    assert plain.summary["bytes_by_payload"] == fedavg.summary["bytes_by_payload"]
    down = [row for row in record.costs if row["direction"] == "down"]
    for number in range(1, 5):
        found = {row["payload"]: row["bytes"] for row in down if row["round"] == number}
        assert found == {"model": 3 * MODEL, **({"teacher": 3 * MODEL} if number > 2 else {})}
    assert record.summary["bytes_by_payload"]["up"] == fedavg.summary["bytes_by_payload"]["up"]
    passed = [
        {row["round"]: row["examples"] for row in run.costs if row["payload"] == "train"}
        for run in (record, plain)
    ]
    assert [passed[0][k] * 3 for k in (1, 2)] == [passed[1][k] * 3 for k in (1, 2)]
    assert [passed[0][k] * 3 for k in (3, 4)] == [passed[1][k] * 4 for k in (3, 4)]


def test_it_knows_more_than_fedavg_where_classes_come_one_after_the_other() -> None:
    """Five tasks of two digits each: 0.38 against 0.18."""
    changes = {
        **scenario("class"),
        "stream.tasks": 5,
        "training.rounds": 8,
        "training.cohort": 0,
        "training.local": {"name": "sgd", "lr": 0.1, "batch_size": 16},
    }
    tables = {
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [64]},
        "engine": {"name": "vectorized"},
    }
    found, fedavg = (
        fedcl.run(tiny(changes, method={"name": name}, **tables)).summary
        for name in ("prd", "fedavg")
    )
    assert found["average_accuracy"] > fedavg["average_accuracy"] + 0.08
    assert found["forgetting"] < fedavg["forgetting"] - 0.1


def test_needs_are_the_teacher_and_its_answers() -> None:
    layers = {"fc1.weight": (16, 12), "head.weight": (12, 4)}
    needs = PRD().needs(Sizes(MODEL, layers, {}, 0, 100, 2, 0, 4))
    assert (needs.state, needs.client) == (MODEL, 2 * 100 * 4 * 4)
    assert needs.training == "plain" and not (needs.memory or needs.reply)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrastive": -0.1}, "contrastive"),
        ({"distillation": float("nan")}, "distillation"),
        ({"temperature": 0.0}, "temperature"),
        ({"relation_temperature": -1.0}, "relation_temperature"),
        ({"relation": "pixels"}, "relation"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prd(**options)
