"""FOT: the invariants of orthogonal training, and what is protected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedcl
from fedcl.config import parse
from fedcl.core.errors import ConfigError
from fedcl.core.params import Params
from tests.fot_tools import (
    DOUBLE,
    MLP,
    flat,
    fot,
    linear,
    mlp_inputs,
    write_domains,
)
from tests.tiny import (
    CNN,
    assert_same_runs,
    same,
    scenario,
    tiny,
    trace,
)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("server", ["mean", "momentum", "adam"])
@pytest.mark.parametrize("model", [MLP, CNN, {**CNN, "groups": 0, "dropout": 0.2}])
def test_old_bases_are_never_moved(
    model: dict[str, Any], server: str, biases: bool, tmp_path: Path
) -> None:
    adam = {"server_lr": 0.03} if server == "adam" else {}
    experiment = fot({"stream.tasks": 3}, model, energy=0.8, server=server, biases=biases, **adam)
    _, states = trace(experiment, tmp_path / "run")
    assert states[0].basis == {}
    moved = 0.0
    for end in (1, 3):  # after the last round of stages 0 and 1
        for name, basis in states[end].basis.items():
            start = flat(states[end].params, name, biases)
            for later in states[end + 1 :]:
                change = flat(later.params, name, biases) - start
                assert float(torch.linalg.norm(change @ basis)) < 1e-10, name
                moved = max(moved, float(torch.linalg.norm(change)))
    assert moved > 1e-2, "something must have been learnt beside the bases"
    for before, after in ((states[1], states[3]), (states[3], states[5])):
        assert list(before.basis) == list(after.basis)
        for name, basis in after.basis.items():
            d, k = basis.shape
            bias = biases and name.removesuffix("weight") + "bias" in after.params
            assert d == flat(after.params, name, biases).shape[1]
            assert d == after.params[name][0].numel() + bias
            assert before.basis[name].shape[1] <= k <= d
            assert float((basis.T @ basis - torch.eye(k)).abs().max()) < 1e-10
            old = before.basis[name]
            assert torch.equal(basis[:, : old.shape[1]], old)


def test_old_bases_are_hardly_moved_in_float32(tmp_path: Path) -> None:
    experiment = fot({"training.dtype": "float32", "training.rounds": 5}, energy=0.8)
    _, states = trace(experiment, tmp_path / "run")
    for name, basis in states[4].basis.items():
        change = flat(states[9].params, name) - flat(states[4].params, name)
        assert basis.dtype == torch.float64
        assert float((basis.T @ basis - torch.eye(basis.shape[1])).abs().max()) < 1e-10
        assert float(torch.linalg.norm(change @ basis)) < 1e-6 < float(torch.linalg.norm(change))


def test_secure_aggregation_changes_no_bit() -> None:
    for options in ({}, {"gpse": "sketch", "eps_rule": "paper_code"}):
        method = {"name": "fot", **options}
        plain = fedcl.run(tiny({}, method=method))
        hidden = fedcl.run(tiny({}, method=method, channel=[{"name": "secure_aggregation"}]))
        assert same(dict(plain.params), dict(hidden.params))
        assert same(plain.summary["accuracy_matrix"], hidden.summary["accuracy_matrix"])


@pytest.mark.parametrize("options", [{}, {"biases": True}, {"gpse": "sketch"}])
@pytest.mark.parametrize("model", [MLP, CNN])
def test_reduces_to_fedavg_with_energy_zero(model: dict[str, Any], options: dict[str, Any]) -> None:
    for changes in ({}, DOUBLE, {"training.local.momentum": 0.5}):
        nothing = tiny(changes, method={"name": "fot", "energy": 0.0, **options}, model=model)
        found, plain = fedcl.run(nothing), fedcl.run(tiny(changes, model=model))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])


def test_the_first_task_is_learnt_as_by_fedavg() -> None:
    changes = {"stream.tasks": 1, "training.rounds": 3}
    found = fedcl.run(tiny(changes, method={"name": "fot"}))
    assert same(dict(found.params), dict(fedcl.run(tiny(changes)).params))


@pytest.mark.parametrize("biases", [False, True])
def test_a_full_basis_freezes_its_layer(biases: bool, tmp_path: Path) -> None:
    experiment = fot(model={"name": "mlp", "hidden": [6]}, energy=1.0, biases=biases)
    _, states = trace(experiment, tmp_path / "run")
    basis = states[1].basis["fc1.weight"]
    assert basis.shape == (16 + biases, 16 + biases)  # 160 blobs span all 16 dimensions
    change = flat(states[3].params, "fc1.weight", biases) - flat(
        states[1].params, "fc1.weight", biases
    )
    assert float(change.abs().max()) < 1e-13
    # At the end nothing is left to add, and that must not fail.
    assert states[3].basis["fc1.weight"].shape == basis.shape
    if not biases:
        bias = states[3].params["fc1.bias"] - states[1].params["fc1.bias"]
        assert float(bias.abs().min()) > 1e-6


# --- What is protected. ---


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_heads_are_protected_where_the_classes_stay(kind: str, tmp_path: Path) -> None:
    for head, protected in (("auto", kind == "domain"), ("protect", True), ("free", False)):
        experiment = fot({**scenario(kind), "training.rounds": 1}, head=head)
        _, states = trace(experiment, tmp_path / head)
        assert ("head.weight" in states[0].basis) == protected
        assert {"fc1.weight", "fc2.weight"} <= set(states[0].basis)


def test_protected_biases_keep_old_answers(tmp_path: Path) -> None:
    """With all the energy of few inputs held their logits stay; with free biases they do not."""
    generator = np.random.default_rng(0)
    x = [generator.normal(size=(rows, 16)).astype(np.float32) for rows in (6, 60)]
    write_domains(tmp_path, x)
    moved = {}
    for biases in (False, True):
        table = dict(linear(tmp_path, 2, energy=1.0, biases=biases).resolved)
        table["model"] = {"name": "mlp", "hidden": [20, 20]}
        table["training"] = {**table["training"], "rounds": 4}
        _, states = trace(parse(table), tmp_path / f"run {biases}")
        assert states[3].basis["fc1.weight"].shape == (16 + biases, 6)

        def logits(params: Params) -> Tensor:
            hidden = mlp_inputs(params, torch.from_numpy(x[0]).double())["head.weight"]
            return hidden @ params["head.weight"].T + params["head.bias"]

        before = logits(states[3].params)
        moved[biases] = max(float((logits(s.params) - before).abs().max()) for s in states[4:])
        learnt = states[7].params["fc1.weight"] - states[3].params["fc1.weight"]
        assert float(learnt.abs().max()) > 1e-3
    assert moved[True] < 1e-9
    assert moved[False] > 1e-3


def test_it_forgets_less_than_fedavg() -> None:
    changes = {"stream.tasks": 3, "training.rounds": 6, "training.cohort": 0}
    fot_run = fedcl.run(tiny(changes, method={"name": "fot", "energy": 0.9}))
    fedavg = fedcl.run(tiny(changes))
    assert fot_run.summary["forgetting"] < fedavg.summary["forgetting"]


def test_each_of_its_routes_runs_twice_alike() -> None:
    for options in (
        {"gpse": "sketch", "sketch_noise": "uniform", "sketch_columns": 0.5},
        {"statistics_clients": "cohort", "statistics_model": "local", "eps_rule": "paper_code"},
    ):
        experiment = tiny(method={"name": "fot", **options})
        assert_same_runs(fedcl.run(experiment), fedcl.run(experiment))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 1.5}, "energy"),
        ({"sketch_columns": 0.0}, "sketch_columns"),
        ({"statistics_model": "local"}, "cohort"),
        ({"gpse": "gramm"}, "gpse"),
        ({"server_lr": -1.0}, "server_lr"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(method={"name": "fot", **options})
