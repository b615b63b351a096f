"""Lingo: gradient descent below a frozen head, labels that need no agreement, what travels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.block import Batching, block_of
from fedcl.core.client import Client, Model
from fedcl.core.errors import ConfigError
from fedcl.core.features.analytic import without_head
from fedcl.core.local import Local
from fedcl.core.losses.prototypes import ClassVectors
from fedcl.core.method import Sizes
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.sgd import train_one
from fedcl.core.task import ClientTask, Examples
from fedcl.core.training.together import train_block
from fedcl.methods.lingo import Lingo, State, VectorCrossEntropy
from tests.core import toys
from tests.core.blocks import FULL, PLAIN, SIZES, check, clients, mlp
from tests.tiny import (
    distance,
    first_parameters,
    same,
    scenario,
    stream_of,
    tiny,
    trace,
)

DOUBLE = {"training.dtype": "float64"}
BODY = 4 * (16 * 12 + 12)  # bytes of what lies below the head of 16-12-4, in float32
HEAD = ("head.weight", "head.bias")
ENGINES = pytest.mark.parametrize("engine", ["serial", "vectorized"])


def lingo(
    changes: Mapping[str, Any] | None = None, engine: str = "serial", **options: Any
) -> Experiment:
    """The tiny experiment with Lingo."""
    return tiny(changes, method={"name": "lingo", **options}, engine={"name": engine})


def save(path: Path, rows: Tensor) -> str:
    np.savez(path, vectors=rows.numpy())
    return str(path)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def answers(body: Params, rows: Tensor, x: Tensor, scale: float) -> Tensor:
    """The scaled cosines of the tiny network's features with the vectors, vector by vector."""
    h = F.relu(x.double().flatten(1) @ body["fc1.weight"].T + body["fc1.bias"])
    return scale * torch.stack([F.cosine_similarity(h, row[None]) for row in rows], dim=1)


# --- A frozen head. ---


@ENGINES
@pytest.mark.parametrize(("kind", "masked"), [("domain", True), ("class", True), ("class", False)])
def test_reduces_to_fedavg_below_a_frozen_head(
    kind: str, masked: bool, engine: str, tmp_path: Path
) -> None:
    """Full batches of all clients: gradient descent of the body alone on all their examples."""
    vectors = draw(4, 12)
    options = {"vectors": save(tmp_path / "v.npz", vectors), "scale": 7.0, "masked": masked}
    local = {"name": "sgd", "lr": 0.3, "batch_size": 10_000}
    changes = {**scenario(kind), **DOUBLE, "training.cohort": 0, "training.local": local}
    experiment = lingo({**changes, "training.rounds": 3}, engine, **options)
    stream, first = stream_of(experiment), first_parameters(experiment)
    body = {name: first[name] for name in ("fc1.weight", "fc1.bias")}
    for stage in range(2):
        data = [stream.train(client, stage) for client in stream.members(stage)]
        x, y = torch.cat([d.x for d in data]), torch.cat([d.y for d in data])
        allowed = stream.tasks[stage].classes if masked else stream.seen_classes(stage)
        for _ in range(3):
            leaves = {name: value.detach().requires_grad_() for name, value in body.items()}
            found = answers(leaves, vectors, x, 7.0)[:, list(allowed)]
            place = torch.tensor([allowed.index(int(label)) for label in y])
            slopes = torch.autograd.grad(F.cross_entropy(found, place), list(leaves.values()))
            body = {k: v - 0.3 * g for (k, v), g in zip(body.items(), slopes, strict=True)}
    assert len(allowed) == (2 if kind == "class" and masked else 4)
    found_params = fedcl.run(experiment).params
    assert distance(without_head(found_params), body) < 1e-12
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    assert float((found_params["head.weight"] - unit).abs().max()) < 1e-15


@ENGINES
def test_the_head_is_the_vectors_from_the_beginning_on(engine: str, tmp_path: Path) -> None:
    record, states = trace(lingo(DOUBLE, engine, vectors_seed=4), tmp_path / "run")
    wanted = ClassVectors(seed=4)(4, 12)
    for state in states:
        assert same(state.params["head.weight"], wanted)
        assert not bool(state.params["head.bias"].any())
    assert list(record.params) == ["fc1.weight", "fc1.bias", *HEAD]
    assert float((wanted @ wanted.T - torch.eye(4)).abs().max()) < 1e-14


def test_the_plain_answers_of_the_saved_model_choose_alike() -> None:
    experiment = lingo({**DOUBLE, **scenario("class")})
    params = dict(fedcl.run(experiment).params)
    x = stream_of(experiment).train(0, 1).x.double()
    net = Net(build_site(experiment).model, params)
    method, state = Lingo(scale=7.0), State(params)
    everything = torch.ones(4, dtype=torch.bool)
    found = method.predict(state, net, x, everything).detach()
    assert float((found - answers(params, params["head.weight"], x, 7.0)).abs().max()) < 1e-13
    assert torch.equal(found.argmax(1), net(x).argmax(1))
    allowed = torch.tensor([True, False, False, True])
    chosen = method.predict(state, net, x, allowed).argmax(1)
    assert torch.equal(chosen, 3 * found[:, [0, 3]].argmax(1))


# --- Labels that need no agreement. ---


def renamed(client: Client, order: Tensor) -> Client:
    """The client with class c called order[c]."""
    task = client.task
    masks = {name: torch.empty_like(getattr(task, name)) for name in ("present", "seen", "head")}
    for name, mask in masks.items():
        mask[order] = getattr(task, name)
    data = Examples(client.data.x, order[client.data.y])
    return replace(client, data=data, task=ClientTask(task.index, task.task, **masks))


@pytest.mark.parametrize("masked", [False, True])
def test_labels_of_clients_need_no_agreement(masked: bool, tmp_path: Path) -> None:
    """A client that numbers its classes in its own way learns the same from its own list of
    vectors; under the common list's numbers it would not."""
    model, order = mlp(8, 5), torch.tensor([2, 0, 1])
    vectors = draw(3, 5)
    own = torch.empty_like(vectors)
    own[order] = vectors
    common, private = (
        VectorCrossEntropy(ClassVectors(save(tmp_path / name, rows)), 5.0, masked)
        for name, rows in (("common.npz", vectors), ("own.npz", own))
    )
    client = toys.client(model, 12, head=(0, 2))
    other = renamed(client, order)
    assert not torch.equal(other.data.y, client.data.y)
    message = Model(without_head(toys.parameters(model)))
    found = [
        train_one(Local(loss), FULL, who, message).params
        for loss, who in ((common, client), (private, other), (common, other))
    ]
    assert distance(found[0], message.params) > 1e-3
    assert distance(found[0], found[1]) < 1e-12
    assert distance(found[0], found[2]) > 1e-3


def test_all_clients_may_rename_their_classes(tmp_path: Path) -> None:
    """A whole run on renamed labels with renamed vectors is the same model below the head."""
    order = torch.tensor([3, 1, 0, 2])
    vectors = draw(4, 12)
    own = torch.empty_like(vectors)
    own[order] = vectors
    x = {s: draw(n, 16, seed=i).numpy() for i, (s, n) in enumerate((("train", 80), ("test", 20)))}
    y = {
        s: torch.randint(4, (len(v),), generator=torch.Generator().manual_seed(1))
        for s, v in x.items()
    }
    found = []
    for number, (rows, names) in enumerate(((vectors, torch.arange(4)), (own, order))):
        arrays = {f"x_{s}": x[s] for s in x} | {f"y_{s}": names[y[s]].numpy() for s in y}
        np.savez(tmp_path / f"{number}.npz", **arrays)  # type: ignore[arg-type]
        dataset = {"name": "npz", "root": str(tmp_path), "file": f"{number}.npz"}
        source = save(tmp_path / f"vectors{number}.npz", rows)
        experiment = tiny(
            {**DOUBLE, "stream.partition": {"name": "iid"}},
            dataset=dataset,
            method={"name": "lingo", "vectors": source},
        )
        found.append(fedcl.run(experiment))
    assert distance(without_head(found[0].params), without_head(found[1].params)) < 1e-12
    assert same(found[0].params["head.weight"], found[1].params["head.weight"][order])
    values = [[row["value"] for row in run.evaluations] for run in found]
    assert values[0] == pytest.approx(values[1], abs=1e-9)


# --- Paths of training. ---


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("path", ["vmap", "auto"])
def test_blocks_train_as_single_clients_do(path: Any, masked: bool) -> None:
    model = mlp(8, 5, dropout=(0.3,))
    loss = VectorCrossEntropy(ClassVectors(), 5.0, masked)
    people = [
        toys.client(model, n, id=k, head=head)
        for k, (n, head) in enumerate(zip(SIZES, ((0, 1), (2,), (0, 1, 2), (1, 2)), strict=True))
    ]
    message = Model(without_head(toys.parameters(model)))
    trained = train_block(Local(loss), FULL, block_of(people), message, Batching(path)).trained
    for k, client in enumerate(people):
        alone = train_one(Local(loss), FULL, client, message).params
        assert list(alone) == [name for name in message.params if not name.startswith("head")]
        assert distance(dict(trained.params(k)), alone) < 1e-12


def test_block_layers_refuse_it() -> None:
    model = mlp(8, 5)
    loss = VectorCrossEntropy(ClassVectors(), 5.0, False)
    with pytest.raises(ValueError, match='use "auto" or "vmap"'):
        check("fused", Local(loss), PLAIN, clients(model))


# --- What it costs, and what it refuses. ---


@ENGINES
def test_the_head_never_travels(engine: str) -> None:
    record = fedcl.run(lingo(scenario("class"), engine))
    fedavg = fedcl.run(tiny(scenario("class"), engine={"name": engine}))
    by_payload = record.summary["bytes_by_payload"]
    metrics = fedavg.summary["bytes_by_payload"]["up"]["metrics"]
    assert by_payload == {
        "up": {"model": 4 * 3 * BODY, "metrics": metrics},
        "down": {"model": 4 * 3 * BODY},
    }
    for key in ("steps", "examples"):
        assert record.summary[key] == fedavg.summary[key]


def test_needs_are_the_vectors() -> None:
    layers = {"fc1.weight": (16, 12), "head.weight": (12, 4)}
    needs = Lingo().needs(Sizes(0, layers, {}, 0, 0, 2, 0, 4))
    assert needs.client == 2 * 8 * 12 * 4
    assert not (needs.state or needs.server or needs.memory or needs.reply)


def test_it_knows_more_than_fedavg_where_classes_come_one_after_the_other() -> None:
    """Five tasks of two digits each: 0.31 against 0.18."""
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
        for name in ("lingo", "fedavg")
    )
    assert found["average_accuracy"] > fedavg["average_accuracy"] + 0.08
    assert found["forgetting"] < fedavg["forgetting"] - 0.1


def test_a_model_that_is_a_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="below a layer named head"):
        fedcl.run(tiny(method={"name": "lingo"}, model={"name": "mlp", "hidden": []}))


def test_a_file_of_other_classes_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    experiment = lingo(vectors=save(tmp_path / "v.npz", draw(5, 12)))
    with pytest.raises(ConfigError, match="vectors of 5 classes, but the head has 4"):
        fedcl.run(experiment, tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"vectors": "cat"}, "orthogonal"),
        ({"vectors": "absent.npz"}, "missing"),
        ({"vectors_seed": -1}, "seed"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lingo(**options)
