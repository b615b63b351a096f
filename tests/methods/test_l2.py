"""L2: FedAvg plus a pull towards the last stage's model, in exact numbers; what goes down."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedcl
from fedcl.config import Experiment
from fedcl.core.client import Client
from fedcl.core.errors import ConfigError
from fedcl.core.local import Local
from fedcl.core.method import Sizes
from fedcl.core.model import Net
from fedcl.core.sgd import Settings, train_one
from fedcl.core.task import ClientTask, Examples
from fedcl.methods.l2 import L2, Anchored, Pull
from tests.core import toys
from tests.core.blocks import block_by
from tests.tiny import CNN, distance, same, scenario, stream_of, tiny, trace

DOUBLE = {"training.dtype": "float64"}
MODEL = 4 * (16 * 12 + 12 + 12 * 4 + 4)  # bytes of the tiny network 16-12-4 in float32
BODY = 4 * (16 * 12 + 12)


def l2(changes: dict[str, Any] | None = None, *, tables: Any = None, **options: Any) -> Experiment:
    """The tiny experiment with L2."""
    return tiny(changes, method={"name": "l2", **options}, **(tables or {}))


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize(
    "options", [{}, {"masked": True}, {"server": "momentum"}, {"server": "adam", "server_lr": 0.03}]
)
def test_reduces_to_fedavg_with_strength_zero(options: dict[str, Any], engine: str) -> None:
    for changes in (scenario("domain"), scenario("class")):
        tables = {"engine": {"name": engine}}
        found = fedcl.run(l2(changes, tables=tables, strength=0.0, **options))
        plain = fedcl.run(tiny(changes, method={"name": "fedavg", **options}, **tables))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])
        # Nor does it cost more.
        assert found.summary["bytes_by_payload"] == plain.summary["bytes_by_payload"]


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_the_first_stage_is_learnt_as_by_fedavg(engine: str) -> None:
    changes, tables = {"stream.tasks": 1}, {"engine": {"name": engine}}
    found = fedcl.run(l2(changes, tables=tables, strength=0.5))
    assert same(dict(found.params), dict(fedcl.run(tiny(changes, **tables)).params))


# --- Steps by hand. ---


def quadratic(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """The loss of each example is sum_i h_i / 2 (theta_i - x_i)^2, with h = (2, 0.5)."""
    assert net.params is not None
    curvature = torch.tensor([2.0, 0.5], dtype=torch.float64)
    return 0.5 * ((net.params["weight"][0] - batch.x).square() * curvature).sum(1)


def two_parameters(start: list[float], anchor: list[float]) -> tuple[Client, Anchored]:
    """One client whose two examples have the mean (1, -3), and the message that it gets."""
    model = torch.nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[0.0, -2.0], [2.0, -4.0]], dtype=torch.float64)
    examples = Examples(x, torch.zeros(2, dtype=torch.int64))
    client = Client(0, model, examples, toys.client_task(2), None, seed=1)
    values = [{"weight": torch.tensor([value], dtype=torch.float64)} for value in (start, anchor)]
    return client, Anchored(*values)


@pytest.mark.parametrize("path", ["loop", "vmap"])
def test_one_step_by_hand(path: Any) -> None:
    """theta = (2, 2), theta* = (4, -1): g = (2 (2 - 1), 0.5 (2 + 3)) = (2, 2.5), and the change is
    -0.1 (g + 0.5 (theta - theta*)) = -0.1 (2 - 1, 2.5 + 1.5) = (-0.1, -0.4)."""
    client, message = two_parameters([2.0, 2.0], [4.0, -1.0])
    local = Local(quadratic, penalty=Pull(0.5))
    (one,) = block_by(path, local, Settings(1, 2, 0.1), [client], message)
    assert one.params["weight"][0].tolist() == pytest.approx([1.9, 1.6], abs=1e-15)


@pytest.mark.parametrize("strength", [0.0, 0.5, 3.0])
def test_the_fixed_point_of_a_quadratic_loss(strength: float) -> None:
    """(H + s I)^-1 (H theta_1 + s theta*), with theta_1 = (1, -3) the loss's own minimum; each step
    brings the error in direction i down by 1 - lr (h_i + s), so 400 steps of 0.2 are the end."""
    client, message = two_parameters([0.0, 0.0], [4.0, -1.0])
    found = train_one(
        Local(quadratic, penalty=Pull(strength)), Settings(400, 2, 0.2), client, message
    ).params["weight"][0]
    expected = [
        (h * own + strength * old) / (h + strength)
        for h, own, old in ((2.0, 1.0, 4.0), (0.5, -3.0, -1.0))
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_from_twice_one_over_lr_on_it_diverges() -> None:
    """1 - lr (h + s) leaves (-1, 1) in the stiffest direction at s = 2 / lr - h = 8."""
    client, message = two_parameters([0.0, 0.0], [4.0, -1.0])
    sizes = []
    for strength in (7.9, 8.1):
        trained = train_one(
            Local(quadratic, penalty=Pull(strength)), Settings(400, 2, 0.2), client, message
        )
        sizes.append(float(trained.params["weight"].abs().max()))
    assert sizes[0] < 10 < 1000 < sizes[1]


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_one_round_of_full_batches_by_hand(engine: str, tmp_path: Path) -> None:
    """In the round after the anchor was set theta = theta*, and one full-batch step of all clients
    is FedAvg's; in the next one the pull adds -lr strength (theta - theta*) to FedAvg's step."""
    changes = {
        **DOUBLE,
        "training.cohort": 0,
        "training.local": {"name": "sgd", "lr": 0.3, "batch_size": 10_000},
    }
    tables = {"engine": {"name": engine}}
    _, states = trace(l2(changes, tables=tables, strength=0.7), tmp_path / "run")
    stream = stream_of(l2(changes, tables=tables))
    everyone = [stream.train(i, 1) for i in range(5)]
    x = torch.cat([data.x for data in everyone]).double().flatten(1)
    y = torch.cat([data.y for data in everyone])
    anchor = states[1].params
    for before, after in ((states[1], states[2]), (states[2], states[3])):
        leaves = {k: v.clone().requires_grad_() for k, v in before.params.items()}
        hidden = torch.relu(x @ leaves["fc1.weight"].T + leaves["fc1.bias"])
        answers = hidden @ leaves["head.weight"].T + leaves["head.bias"]
        loss = torch.nn.functional.cross_entropy(answers, y)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        expected = {
            k: v - 0.3 * (gradients[k] + 0.7 * (v - anchor[k])) for k, v in before.params.items()
        }
        assert distance(after.params, expected) < 1e-12
    assert distance(states[2].params, anchor) > 1e-2
    assert same(dict(states[3].anchor), dict(anchor)) is False, "a new stage's end, a new anchor"
    assert same(dict(states[3].anchor), dict(states[3].params))


def test_a_strong_pull_keeps_near_the_anchor(tmp_path: Path) -> None:
    """Softmax's error has norm at most sqrt(2), so that a linear model's gradient has at most
    G = sqrt(2) max ||[x; 1]||. With lr s <= 1 a step takes a distance r to theta* to at most
    (1 - lr s) r + lr G, so r <= G / s stays true, in means of clients as well."""
    strength, lr = 50.0, 0.02
    local = {"name": "sgd", "lr": lr, "batch_size": 8, "epochs": 5}
    changes = {**DOUBLE, "training.local": local, "training.rounds": 6}
    tables = {"model": {"name": "mlp", "hidden": []}}
    experiment = l2(changes, tables=tables, strength=strength)
    _, states = trace(experiment, tmp_path / "run")
    stream = stream_of(experiment)
    longest = max(
        float(stream.train(i, 1).x.double().flatten(1).square().sum(1).max()) for i in range(5)
    )
    bound = math.sqrt(2) * math.sqrt(longest + 1) / strength
    free = fedcl.run(tiny(changes, **tables)).params
    anchor = states[5].params

    def away(params: Any) -> float:
        return math.sqrt(sum(float((params[k] - v).square().sum()) for k, v in anchor.items()))

    assert all(0 < away(state.params) <= bound for state in states[6:])
    assert away(free) > 2 * bound


# --- What is pulled. ---


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_heads_are_pulled_where_the_classes_stay(kind: str, tmp_path: Path) -> None:
    for head, pulled in (("auto", kind == "domain"), ("protect", True), ("free", False)):
        changes = {**DOUBLE, **scenario(kind), "training.rounds": 1}
        _, states = trace(l2(changes, head=head), tmp_path / head)
        body = ["fc1.weight", "fc1.bias"]
        heads = ["head.weight", "head.bias"] if pulled else []
        assert list(states[0].anchor) == body + heads
        assert all(same(v, states[0].params[k]) for k, v in states[0].anchor.items())


def test_norms_are_pulled_and_a_free_head_is_all_that_is_not(tmp_path: Path) -> None:
    changes = {**scenario("class"), "training.rounds": 1}
    _, states = trace(l2(changes, tables={"model": CNN}), tmp_path / "run")
    free = set(states[0].params) - set(states[0].anchor)
    assert free == {"head.weight", "head.bias"}
    assert any("norm" in name for name in states[0].anchor)


def test_a_model_that_is_a_free_head_has_no_anchor() -> None:
    changes = scenario("task")
    tables = {"model": {"name": "mlp", "hidden": []}}
    found = fedcl.run(l2(changes, tables=tables, strength=1.0))
    plain = fedcl.run(tiny(changes, **tables))
    assert same(dict(found.params), dict(plain.params))
    assert found.summary["bytes_by_payload"] == plain.summary["bytes_by_payload"]


# --- What it costs. ---


@pytest.mark.parametrize(("kind", "size"), [("domain", MODEL), ("class", BODY)])
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_the_anchor_goes_down_in_every_round_of_later_stages(
    kind: str, size: int, engine: str
) -> None:
    changes = {**scenario(kind), "stream.tasks": 2 if kind == "class" else 3}
    record = fedcl.run(l2(changes, tables={"engine": {"name": engine}}))
    stages = changes["stream.tasks"]
    plain = fedcl.run(tiny(changes, engine={"name": engine}))
    down = [row for row in record.costs if row["direction"] == "down"]
    for number in range(1, 2 * stages + 1):
        found = {row["payload"]: row["bytes"] for row in down if row["round"] == number}
        later = {"anchor": 3 * size} if number > 2 else {}
        assert found == {"model": 3 * MODEL, **later}
    summary = record.summary["bytes_by_payload"]
    assert summary["down"]["anchor"] == (stages - 1) * 2 * 3 * size
    assert summary["up"] == plain.summary["bytes_by_payload"]["up"]
    assert (record.summary["steps"], len(record.costs)) == (
        plain.summary["steps"],
        len(plain.costs) + 2 * (stages - 1),
    )


def test_needs_are_the_anchor_and_the_moments() -> None:
    sizes = Sizes(4 * 256, {}, {}, 0, 0, 2, 0, 4)
    assert L2().needs(sizes).state == 4 * 256
    assert L2(strength=0.0).needs(sizes).state == 0
    assert L2(server="momentum").needs(sizes).state == (4 + 8) * 256


def test_it_forgets_less_than_fedavg() -> None:
    changes = {"stream.tasks": 3, "training.rounds": 6, "training.cohort": 0}
    found, plain = fedcl.run(l2(changes, strength=0.3)), fedcl.run(tiny(changes))
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -0.1}, "strength"),
        ({"strength": float("inf")}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"head": "guard"}, "head"),
        ({"server_lr": 0.0}, "server_lr"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        l2(**options)
