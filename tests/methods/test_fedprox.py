"""FedProx: FedAvg plus a pull towards the received model, exactly; nothing more travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.config import Experiment
from fedcl.core.client import Client, Model
from fedcl.core.errors import ConfigError
from fedcl.core.local import Local, Proximal
from fedcl.core.method import Sizes
from fedcl.core.model import Net
from fedcl.core.sgd import Settings, train_one
from fedcl.core.task import ClientTask, Examples
from fedcl.methods.fedprox import FedProx
from tests.core import toys
from tests.core.blocks import block_by
from tests.tiny import distance, first_parameters, logits, same, scenario, stream_of, tiny, trace

DOUBLE = {"training.dtype": "float64"}
ENGINES = pytest.mark.parametrize("engine", ["serial", "vectorized"])


def prox(
    changes: dict[str, Any] | None = None, *, tables: Any = None, **options: Any
) -> Experiment:
    """The tiny experiment with FedProx."""
    return tiny(changes, method={"name": "fedprox", **options}, **(tables or {}))


@ENGINES
@pytest.mark.parametrize(
    "options", [{}, {"masked": True}, {"server": "momentum"}, {"server": "adam", "server_lr": 0.03}]
)
def test_reduces_to_fedavg_with_mu_zero(options: dict[str, Any], engine: str) -> None:
    for changes in (scenario("domain"), scenario("class")):
        tables = {"engine": {"name": engine}}
        found = fedcl.run(prox(changes, tables=tables, mu=0.0, **options))
        plain = fedcl.run(tiny(changes, method={"name": "fedavg", **options}, **tables))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])


@ENGINES
def test_reduces_to_fedavg_where_clients_take_one_step(engine: str) -> None:
    """The first step is taken at the received model, where the pull is 0: up to rounding, and from
    a second step on they part."""
    for epochs, equal in ((1, True), (2, False)):
        local = {"name": "sgd", "lr": 0.3, "batch_size": 10_000, "epochs": epochs}
        changes, tables = {**DOUBLE, "training.local": local}, {"engine": {"name": engine}}
        found = fedcl.run(prox(changes, tables=tables, mu=1.0)).params
        away = distance(found, fedcl.run(tiny(changes, **tables)).params)
        assert (away < 1e-12) if equal else (away > 1e-3)


def quadratic(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """The loss of each example is sum_i h_i / 2 (theta_i - x_i)^2, with h = (2, 0.5)."""
    assert net.params is not None
    curvature = torch.tensor([2.0, 0.5], dtype=torch.float64)
    return 0.5 * ((net.params["weight"][0] - batch.x).square() * curvature).sum(1)


def two_parameters(received: list[float]) -> tuple[Client, Model]:
    """One client whose two examples have the mean (1, -3)."""
    model = torch.nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[0.0, -2.0], [2.0, -4.0]], dtype=torch.float64)
    examples = Examples(x, torch.zeros(2, dtype=torch.int64))
    client = Client(0, model, examples, toys.client_task(2), None, seed=1)
    return client, Model({"weight": torch.tensor([received], dtype=torch.float64)})


@pytest.mark.parametrize("path", ["loop", "vmap"])
def test_two_steps_by_hand(path: Any) -> None:
    """From w = (2, 1): g = (2, 2) and theta = (1.8, 0.8); there g = (1.6, 1.9), the pull is
    0.5 (-0.2, -0.2), and theta = (1.8 - 0.15, 0.8 - 0.18) = (1.65, 0.62)."""
    client, message = two_parameters([2.0, 1.0])
    local = Local(quadratic, penalty=Proximal(0.5))
    (one,) = block_by(path, local, Settings(2, 2, 0.1), [client], message)
    assert one.params["weight"][0].tolist() == pytest.approx([1.65, 0.62], abs=1e-15)


@pytest.mark.parametrize("mu", [0.0, 0.5, 4.0])
def test_many_steps_end_at_the_proximal_point(mu: float) -> None:
    """(H + mu)^-1 (H theta_1 + mu w): a proximal step of the client's loss."""
    client, message = two_parameters([4.0, -1.0])
    found = train_one(
        Local(quadratic, penalty=Proximal(mu)), Settings(400, 2, 0.2), client, message
    ).params["weight"][0]
    expected = [(2 * 1 + mu * 4) / (2 + mu), (0.5 * -3 + mu * -1) / (0.5 + mu)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@ENGINES
def test_a_round_of_two_full_batches_by_hand(engine: str, tmp_path: Path) -> None:
    """Each client's second step has the pull, and changes are weighted by examples; the pull is to
    the round's model and not to a stage's."""
    local = {"name": "sgd", "lr": 0.3, "batch_size": 10_000, "epochs": 2}
    changes = {**DOUBLE, "training.cohort": 0, "training.local": local}
    experiment = prox(changes, tables={"engine": {"name": engine}}, mu=0.8)
    _, states = trace(experiment, tmp_path / "run")
    stream = stream_of(experiment)
    for before, after, stage in ((states[0], states[1], 0), (states[2], states[3], 1)):
        expected = {k: torch.zeros_like(v) for k, v in before.params.items()}
        everyone = [stream.train(id, stage) for id in range(5)]
        total = sum(len(data) for data in everyone)
        for data in everyone:
            theta = dict(before.params)
            for _ in range(2):
                leaves = {k: v.clone().requires_grad_() for k, v in theta.items()}
                loss = F.cross_entropy(logits(leaves, data.x.double()), data.y)
                gradients = torch.autograd.grad(loss, list(leaves.values()))
                theta = {
                    k: theta[k] - 0.3 * (g + 0.8 * (theta[k] - before.params[k]))
                    for k, g in zip(leaves, gradients, strict=True)
                }
            for k, value in expected.items():
                value += len(data) / total * theta[k]
        assert distance(after.params, expected) < 1e-12


def test_clients_stay_nearer_the_stronger_the_pull() -> None:
    local = {"name": "sgd", "lr": 0.1, "batch_size": 8, "epochs": 8}
    changes = {**DOUBLE, "stream.tasks": 1, "training.rounds": 1, "training.local": local}
    start = first_parameters(prox(changes))
    moved = [distance(fedcl.run(prox(changes, mu=mu)).params, start) for mu in (0.0, 0.3, 1.0, 5.0)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.5 * moved[0]


@ENGINES
def test_it_sends_what_fedavg_sends(engine: str) -> None:
    tables = {"engine": {"name": engine}}
    found, plain = fedcl.run(prox(tables=tables)), fedcl.run(tiny(**tables))
    for key in ("bytes_by_payload", "steps"):
        assert found.summary[key] == plain.summary[key]


def test_needs() -> None:
    sizes = Sizes(4 * 256, {}, {}, 0, 0, 2, 0, 4)
    assert (FedProx().needs(sizes).state, FedProx().needs(sizes).training) == (0, "penalty")
    assert FedProx(mu=0.0).needs(sizes).training == "plain"
    assert FedProx(server="adam").needs(sizes).state == 16 * 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": -0.1}, "mu"),
        ({"mu": float("nan")}, "mu"),
        ({"server": "sgd"}, "server"),
        ({"server_momentum": 1.0}, "server_momentum"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prox(**options)
