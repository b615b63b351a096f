"""FedAvg: against central training by hand, exact weights, and the server optimizers' formulas."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError
from fedcl.core.params import subtract
from tests.tiny import distance, first_parameters, same, scenario, stream_of, tiny, trace

DOUBLE = {"training.dtype": "float64"}
# One client, whose every round is one step on all of its examples: gradient descent.
CENTRAL = {
    **DOUBLE,
    "stream.clients": 1,
    "stream.partition": {"name": "iid"},
    "training.cohort": 0,
    "training.local": {"name": "sgd", "lr": 0.3, "batch_size": 10_000},
}


def forward(params: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network by hand: one hidden layer with ReLU."""
    hidden = F.relu(x.flatten(1) @ params["fc1.weight"].T + params["fc1.bias"])
    return hidden @ params["head.weight"].T + params["head.bias"]


def gradient(params: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    loss = F.cross_entropy(forward(leaves, x), y)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_reduces_to_central_gradient_descent_with_one_client(engine: str) -> None:
    experiment = tiny({**CENTRAL, "training.rounds": 5}, engine={"name": engine})
    params = first_parameters(experiment)
    stream = stream_of(experiment)
    for stage in range(2):
        data = stream.train(0, stage)
        assert len(data) == 160
        for _ in range(5):
            step = gradient(params, data.x.double(), data.y)
            params = {name: value - 0.3 * step[name] for name, value in params.items()}
    assert distance(fedcl.run(experiment).params, params) < 1e-12


def test_a_cohort_of_full_batches_is_one_batch_of_all_their_examples() -> None:
    local = {"name": "sgd", "lr": 0.3, "batch_size": 10_000}
    spread = {**CENTRAL, "stream.clients": 5, "training.local": local}
    spread["stream.partition"] = {"name": "quantity", "exponent": 1.0}
    together = fedcl.run(tiny(CENTRAL)).params
    assert distance(fedcl.run(tiny(spread)).params, together) < 1e-12
    # Equal weights do not give the gradient of the union, as sizes differ.
    unequal = fedcl.run(tiny(spread, aggregation={"weights": "equal"})).params
    assert distance(unequal, together) > 1e-3


def two_points(folder: Path, weights: str) -> Experiment:
    """One feature, two classes, no biases: W is (2, 1). Client 0 holds (x=1, y=0), client 1 the
    three examples (x=2, y=1). Full batches, one step of size 1, one round."""
    x, y, owner = [[1.0], [2.0], [2.0], [2.0]], [0, 1, 1, 1], [0, 1, 1, 1]
    arrays = {
        f"{key}_{split}": np.array(value, dtype=kind)
        for split in ("train", "test")
        for key, value, kind in (
            ("x", x, np.float32),
            ("y", y, np.int64),
            ("subject", owner, np.int64),
        )
    }
    np.savez(folder / "points.npz", **arrays)  # type: ignore[arg-type]
    return tiny(
        {"stream.tasks": 1, **DOUBLE},
        dataset={"name": "npz", "root": str(folder), "file": "points.npz"},
        stream={
            "name": "domain_incremental",
            "tasks": 1,
            "partition": {"name": "natural", "column": "subject"},
        },
        model={"name": "mlp", "hidden": [], "bias": False},
        training={
            "rounds": 1,
            "dtype": "float64",
            "local": {"name": "sgd", "lr": 1.0, "batch_size": 8},
        },
        aggregation={"weights": weights},
    )


@pytest.mark.parametrize(
    ("weights", "share"), [("examples", (1 / 4, 3 / 4)), ("equal", (0.5, 0.5))]
)
def test_weights_by_examples_and_equal_in_exact_numbers(
    weights: str, share: tuple[float, float], tmp_path: Path
) -> None:
    """With p = sigmoid((w0 - w1) x) the loss of y = 0 has d/dw0 = (p - 1) x, that of y = 1 has p x;
    d/dw1 is minus that. So client 0 moves w0 by 1 - p(1), client 1 by -2 p(2)."""
    experiment = two_points(tmp_path, weights)
    (w0,), (w1,) = first_parameters(experiment)["head.weight"].tolist()

    def p(x: float) -> float:
        return float(1 / (1 + np.exp(-(w0 - w1) * x)))

    moved = share[0] * (1 - p(1)) - share[1] * 2 * p(2)
    (v0,), (v1,) = fedcl.run(experiment).params["head.weight"].tolist()
    assert (v0, v1) == pytest.approx((w0 + moved, w1 - moved), abs=1e-14)


@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_server_momentum_is_fedavgm(server_lr: float) -> None:
    """v <- 0.8 v + change; w <- w + lr v (Hsu et al., 2019)."""
    method = {
        "name": "fedavg",
        "server": "momentum",
        "server_lr": server_lr,
        "server_momentum": 0.8,
    }
    experiment = tiny({**CENTRAL, "training.rounds": 4, "stream.tasks": 1}, method=method)
    data = stream_of(experiment).train(0, 0)
    params = first_parameters(experiment)
    velocity = {name: torch.zeros_like(value) for name, value in params.items()}
    for _ in range(4):
        step = gradient(params, data.x.double(), data.y)
        velocity = {name: 0.8 * v - 0.3 * step[name] for name, v in velocity.items()}
        params = {name: value + server_lr * velocity[name] for name, value in params.items()}
    assert distance(fedcl.run(experiment).params, params) < 1e-12


def test_server_adam_is_fedadam() -> None:
    """m <- .9 m + .1 d; v <- .99 v + .01 d^2; w <- w + lr m / (sqrt(v) + 1e-3) (Reddi et al.)."""
    method = {"name": "fedavg", "server": "adam", "server_lr": 0.01}
    experiment = tiny({**CENTRAL, "training.rounds": 4, "stream.tasks": 1}, method=method)
    data = stream_of(experiment).train(0, 0)
    params = first_parameters(experiment)
    first = {name: torch.zeros_like(value) for name, value in params.items()}
    second = dict(first)
    for _ in range(4):
        step = {k: -0.3 * g for k, g in gradient(params, data.x.double(), data.y).items()}
        first = {k: 0.9 * m + 0.1 * step[k] for k, m in first.items()}
        second = {k: 0.99 * v + 0.01 * step[k] ** 2 for k, v in second.items()}
        params = {k: w + 0.01 * first[k] / (second[k].sqrt() + 1e-3) for k, w in params.items()}
    assert distance(fedcl.run(experiment).params, params) < 1e-12


def test_momentum_of_zero_is_the_mean_to_the_bit() -> None:
    method = {"name": "fedavg", "server": "momentum", "server_momentum": 0.0}
    assert same(dict(fedcl.run(tiny(method=method)).params), dict(fedcl.run(tiny()).params))


def test_moments_are_kept_from_stage_to_stage(tmp_path: Path) -> None:
    method = {"name": "fedavg", "server": "momentum"}
    _, states = trace(tiny({**DOUBLE}, method=method), tmp_path / "run")
    assert [state.moments.steps for state in states] == [1, 2, 3, 4]
    for before, after in pairwise(states):
        moved = subtract(after.params, before.params)
        assert distance(moved, after.moments.first) < 1e-12


def test_a_masked_loss_leaves_other_classes_heads_alone(tmp_path: Path) -> None:
    """Stage 1 holds classes 2 and 3: unmasked it also pushes classes 0 and 1 down."""
    moved = {}
    for masked in (False, True):
        experiment = tiny(
            {**DOUBLE, **scenario("class"), "training.rounds": 1},
            method={"name": "fedavg", "masked": masked},
        )
        _, (before, after) = trace(experiment, tmp_path / str(masked))
        moved[masked] = subtract(after.params, before.params)["head.bias"].abs()
    assert float(moved[False].min()) > 1e-4
    assert float(moved[True][:2].max()) == 0.0
    assert float(moved[True][2:].min()) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server_lr": 0.0}, "server_lr"),
        ({"server_momentum": 1.0}, "server_momentum"),
        ({"server": "adagrad"}, "server"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(method={"name": "fedavg", **options})
