"""CFeD: who learns and who reviews, a round by hand, and public rows whose labels mean nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.config import Experiment
from fedcl.core.client import Client
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.losses.distillation import Taught
from fedcl.core.method import Sizes
from fedcl.core.params import Params
from fedcl.core.seeds import seed_of
from fedcl.core.sgd import Settings, batches
from fedcl.core.task import Examples
from fedcl.methods.cfed import CFeD, half
from tests.core import toys
from tests.tiny import Watching, distance, logits, same, scenario, stream_of, tiny, trace, watched

DOUBLE = {"training.dtype": "float64"}
PUBLIC = {"stream.public": 0.2}
MODEL = 4 * (16 * 12 + 12 + 12 * 4 + 4)  # bytes of the tiny network 16-12-4 in float32
CENTRAL = {
    **DOUBLE,
    **PUBLIC,
    "training.cohort": 0,
    "training.local": {"name": "sgd", "lr": 0.3, "batch_size": 10_000},
}
KINDS = ("class", "task", "domain")


def cfed(changes: dict[str, Any] | None = None, **options: Any) -> Experiment:
    """The tiny experiment with CFeD."""
    engine = {"name": options.pop("engine", "serial")}
    return tiny(changes, method={"name": "cfed", **options}, engine=engine)


def roles(engine: Watching) -> dict[tuple[int, int], list[tuple[str, tuple[int, ...]]]]:
    """Returns what was asked of whom in each stage and round."""
    found: dict[tuple[int, int], list[tuple[str, tuple[int, ...]]]] = {}
    for request, ids in engine.requests:
        at = (request.position.stage, request.position.round)
        found.setdefault(at, []).append((request.name, ids))
    return found


# --- Identities. ---


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("masked", [False, True])
def test_reduces_to_fedavg_without_public_data(masked: bool, engine: str) -> None:
    for kind in KINDS:
        changes = scenario(kind)
        found = fedcl.run(cfed(changes, masked=masked, engine=engine))
        fedavg = {"name": "fedavg", "masked": masked}
        plain = fedcl.run(tiny(changes, method=fedavg, engine={"name": engine}))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])
        assert found.summary["bytes_by_payload"] == plain.summary["bytes_by_payload"]


def test_reduces_to_fedavg_if_all_learn_and_the_server_takes_no_step() -> None:
    changes = {**DOUBLE, **PUBLIC, **scenario("class")}
    found = fedcl.run(cfed(changes, learners=1.0, steps=0))
    assert distance(found.params, fedcl.run(tiny(changes)).params) < 1e-12


def test_the_first_stage_is_learnt_as_by_fedavg() -> None:
    changes = {**PUBLIC, "stream.tasks": 1}
    found, plain = fedcl.run(cfed(changes)), fedcl.run(tiny(changes))
    assert same(dict(found.params), dict(plain.params))


def own_data(folder: Path, name: str, relabel: Tensor | None = None) -> Path:
    """Writes 120 training rows of four classes; those of `relabel` get another label each."""
    generator = torch.Generator().manual_seed(5)
    labels = {"train": torch.arange(120) % 4, "test": torch.arange(40) % 4}
    centres = 3 * torch.randn(4, 16, generator=generator)
    arrays: dict[str, Any] = {}
    for split, y in labels.items():
        x = centres[y] + torch.randn(len(y), 16, generator=generator)
        if split == "train" and relabel is not None:
            y = y.clone()
            y[relabel] = (y[relabel] + 1 + relabel % 3) % 4
        arrays |= {f"x_{split}": x.numpy(), f"y_{split}": y.numpy()}
    np.savez(folder / name, **arrays)
    return folder / name


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_public_labels_are_not_looked_at(engine: str, tmp_path: Path) -> None:
    """Two data sets that differ in the labels of public rows alone give one model, to the bit."""

    def on(file: Path) -> Experiment:
        return tiny(
            {**PUBLIC, "stream.partition": {"name": "iid"}},
            dataset={"name": "npz", "root": str(tmp_path), "file": file.name},
            method={"name": "cfed"},
            engine={"name": engine},
        )

    first = on(own_data(tmp_path, "first.npz"))
    public = torch.from_numpy(np.concatenate([t.public for t in stream_of(first).tasks])).unique()
    assert len(public) >= 20
    other = on(own_data(tmp_path, "other.npz", public))
    streams = [stream_of(first), stream_of(other)]
    rows = [stream.public(1) for stream in streams]
    assert rows[0] is not None
    assert rows[1] is not None
    assert same(rows[0].x, rows[1].x)
    assert bool((rows[0].y != rows[1].y).all())
    assert all(same(streams[0].train(k, 1), streams[1].train(k, 1)) for k in range(5))
    found, plain = fedcl.run(other), fedcl.run(first)
    assert same(dict(found.params), dict(plain.params))
    fedavg = fedcl.run(tiny(None, **{**first_tables(first), "method": {"name": "fedavg"}}))
    assert distance(plain.params, fedavg.params) > 1e-3


def first_tables(experiment: Experiment) -> dict[str, Any]:
    """Returns the tables of a resolved experiment."""
    return {k: v for k, v in experiment.resolved.items() if isinstance(v, dict)}


# --- Who learns and who reviews. ---


@pytest.mark.parametrize(
    ("clients", "share", "count"),
    [(5, 0.6, 3), (10, 0.6, 6), (3, 0.6, 2), (4, 0.01, 1), (1, 0.6, 1), (4, 1.0, 4)],
)
def test_a_share_of_the_cohort_learns_and_the_others_review(
    clients: int, share: float, count: int
) -> None:
    changes = {**PUBLIC, "stream.clients": clients, "training.cohort": 0, "training.rounds": 3}
    partition = {"stream.partition": {"name": "iid"}}
    _, engine = watched(cfed({**changes, **partition}, learners=share, steps=0))
    everyone = tuple(range(clients))
    found = roles(engine)
    for turn in range(3):
        assert found[0, turn] == [("train", everyone)]
        (learn, learners), *rest = found[1, turn]
        assert (learn, len(learners)) == ("train", count)
        assert [name for name, _ in rest] == ["review"] * (count < clients)
        reviewers = rest[0][1] if rest else ()
        assert sorted([*learners, *reviewers]) == list(everyone)


def test_roles_change_from_round_to_round_and_with_the_seed_alone() -> None:
    changes: dict[str, Any] = {"stream.clients": 8, "training.cohort": 0, "training.rounds": 6}
    changes |= {**PUBLIC, "stream.partition": {"name": "iid"}}
    drawn = []
    for seed, engine in ((0, "serial"), (0, "vectorized"), (1, "serial")):
        _, watch = watched(cfed({**changes, "seed": seed}, steps=0, engine=engine))
        drawn.append([roles(watch)[1, turn][0][1] for turn in range(6)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 2
    assert {id for learners in drawn[0] for id in learners} == set(range(8))


# --- Whole rounds by hand. ---


def step(params: Params, gradients: Any, lr: float) -> dict[str, Tensor]:
    return {k: v - lr * g for (k, v), g in zip(params.items(), gradients, strict=True)}


def kept(teacher: Tensor, student: Tensor, heads: list[list[int]]) -> Tensor:
    """T^2 KL at T = 3, written out for logits, added over heads; the mean over rows."""
    total = torch.zeros((), dtype=torch.float64)
    for head in heads:
        p, q = (teacher[:, head] / 3).softmax(1), (student[:, head] / 3).softmax(1)
        total = total + 9 * (p * (p.log() - q.log())).sum(1).mean()
    return total


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_rounds_by_hand(kind: str, engine: str, tmp_path: Path) -> None:
    """Learners take a step of cross-entropy on their own rows, reviewers one of distillation on
    public rows 0, 2, ...; their weighted mean then takes steps towards the mean soft answer of all
    five on rows 1, 3, ..., in batches of the size and order of the clients' loop."""
    changes = {**CENTRAL, **scenario(kind)}
    options = {"strength": 0.7, "temperature": 3.0, "steps": 4, "lr": 0.2, "batch": 6}
    experiment = cfed(changes, **options, engine=engine)
    _, watch = watched(experiment)
    _, states = trace(experiment, tmp_path / "run")
    stream = stream_of(experiment)
    public = stream.public(1)
    assert public is not None
    x = public.x.double()
    new = {"domain": [0, 1, 2, 3]}.get(kind, [2, 3])
    every = [[0, 1, 2, 3]]
    old, now = ([[0, 1]], [[0, 1], [2, 3]]) if kind == "task" else (every, every)
    own = new if kind == "task" else every[0]
    for turn in (0, 1):
        start, after = states[1 + turn].params, states[2 + turn].params
        (_, learners), (_, reviewers) = roles(watch)[1, turn]
        locals_, sizes = [], []
        for id in (*learners, *reviewers):
            leaves = {k: v.clone().requires_grad_() for k, v in start.items()}
            data = stream.train(id, 1)
            if id in learners:
                loss = F.cross_entropy(logits(leaves, data.x.double())[:, own], data.y - own[0])
            else:
                teacher = logits(states[1].params, x[0::2])
                loss = 0.7 * kept(teacher, logits(leaves, x[0::2]), old)
            locals_.append(step(start, torch.autograd.grad(loss, list(leaves.values())), 0.3))
            sizes.append(len(data))
        mean = {
            k: sum(n * p[k] for n, p in zip(sizes, locals_, strict=True)) / sum(sizes)
            for k in start
        }
        answers = torch.stack([logits(p, x[1::2]) for p in locals_])
        soft = torch.zeros_like(answers[0])
        for head in now:
            soft[:, head] = 3 * (answers[:, :, head] / 3).softmax(2).mean(0).log()
        params: dict[str, Tensor] = mean  # type: ignore[assignment]
        seed = seed_of(experiment.seed, 1, turn, "server", "distil")
        for rows in batches(len(soft), Settings(4, 6, 0.2, steps=4), seed):
            leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
            loss = kept(soft[rows], logits(leaves, x[1::2][rows]), now)
            params = step(params, torch.autograd.grad(loss, list(leaves.values())), 0.2)
        assert distance(after, params) < 1e-11
        assert distance(params, mean) > 1e-5, "the server's steps matter"  # type: ignore[arg-type]


def test_reviewers_and_server_share_no_public_row() -> None:
    data = toys.client(torch.nn.Linear(6, 3), 7).data
    public = Examples(data.x, torch.arange(7))
    assert half(public, 0).y.tolist() == [0, 2, 4, 6]
    assert half(public, 1).y.tolist() == [1, 3, 5]


def test_a_single_public_row_is_the_reviewers() -> None:
    """The server has none, and leaves the average."""
    changes = {**scenario("class"), "stream.public": 1 / 160}
    public = stream_of(cfed(changes)).public(1)
    assert public is not None
    assert len(public) == 1
    runs = [fedcl.run(cfed(changes, steps=steps)).params for steps in (0, 20)]
    assert same(dict(runs[0]), dict(runs[1]))


# --- What it costs. ---


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_goes_to_reviewers_where_it_is_not_the_model(kind: str, engine: str) -> None:
    """Cohorts of three have two learners; in stage 1 there is one head of four classes. A
    reviewer passes its public rows once for the teacher and once for training; the server's steps
    are in no costs."""
    changes = {**PUBLIC, **scenario(kind), "training.rounds": 3}
    record, watch = watched(cfed(changes, engine=engine))
    stream = stream_of(cfed(changes))
    public = stream.public(1)
    assert public is not None
    rows = (len(public) + 1) // 2
    for number in range(6):
        stage, turn = divmod(number, 3)
        costs = [row for row in record.costs if row["round"] == number + 1]
        down: dict[str, int] = {}
        for row in costs:
            if row["direction"] == "down":
                down[row["payload"]] = down.get(row["payload"], 0) + row["bytes"]
        later = {"heads": 4} if stage else {}
        if stage and turn:
            later["teacher"] = MODEL
        assert down == {"model": 3 * MODEL, **later}
        up = sum(row["bytes"] for row in costs if row["payload"] == "model") - 3 * MODEL
        assert up == 3 * MODEL
        work = {row["payload"]: row for row in costs if row["direction"] == ""}
        (_, learners), *rest = roles(watch)[stage, turn]
        own = sum(len(stream.train(id, stage)) for id in learners)
        assert work["train"]["examples"] == own
        assert ("review" in work) == bool(rest) == bool(stage)
        if rest:
            assert (work["review"]["examples"], work["review"]["steps"]) == (
                2 * rows,
                -(-rows // 8),
            )


def test_needs_are_the_teacher_heads_and_sums() -> None:
    sizes = Sizes(MODEL, {"head.weight": (12, 4)}, {}, 0, 30, 5, 0, 4)
    needs = CFeD().needs(sizes)
    # In float64 a sum and a mean; the average, a local model, one at work and its gradients.
    assert (needs.state, needs.server) == (MODEL + 5 * 4, 4 * MODEL + 4 * MODEL)


def test_single_replies_are_refused_where_they_are_hidden() -> None:
    with pytest.raises(ExposureError, match="cfed"):
        tiny(method={"name": "cfed"}, channel=[{"name": "secure_aggregation"}])


# --- What it is for. ---


def test_it_forgets_less_than_fedavg() -> None:
    changes = {**PUBLIC, **scenario("class"), "training.rounds": 6, "training.cohort": 0}
    found, plain = fedcl.run(cfed(changes, masked=True)), fedcl.run(tiny(changes))
    assert found.summary["average_accuracy"] > plain.summary["average_accuracy"] + 0.1
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.1


@pytest.mark.parametrize("order", ["shuffled", "staggered"])
@pytest.mark.parametrize("kind", KINDS)
def test_clients_with_orders_of_their_own_review(kind: str, order: str) -> None:
    changes = {**DOUBLE, **PUBLIC, **scenario(kind), "stream.order": {"name": order}}
    serial, vectorized = (
        fedcl.run(cfed(changes, engine=engine)).params for engine in ("serial", "vectorized")
    )
    assert distance(serial, vectorized) < 1e-9


def test_a_reviewer_is_asked_about_public_data_alone() -> None:
    model = torch.nn.Linear(6, 3).double()
    alone: Client = toys.client(model, 4)
    client = replace(alone, public=toys.client(model, 5, id=1).data)
    message = Taught(toys.parameters(model), torch.ones(1, 3, dtype=torch.bool))
    rows = CFeD().review(client, message)
    assert client.public is not None
    assert same(rows.x, client.public.x[[0, 2, 4]])
    assert CFeD().looked_at(client, message) == 3
    with pytest.raises(AssertionError, match="public"):
        CFeD().review(alone, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learners": 0.0}, "learners"),
        ({"learners": 1.1}, "learners"),
        ({"strength": -0.1}, "strength"),
        ({"temperature": 0.0}, "temperature"),
        ({"steps": -1}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"batch": 0}, "batch"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cfed(**options)
