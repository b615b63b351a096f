"""GPM: what clients may not change, one step against FOT, and what is kept as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedcl
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError
from fedcl.methods.gpm import GPM, Guarded
from tests.fot_tools import DOUBLE, MLP, flat, fot, mlp_inputs, pooled, slow_basis
from tests.tiny import CNN, angles, distance, rows, same, scenario, tiny, trace, watched

HEAVY = {
    "training.local.momentum": 0.9,
    "training.local.weight_decay": 0.01,
    "training.local.epochs": 2,
    "training.local.lr": 0.05,
}
# One step on all examples of a client: what is projected is the client's whole change.
ONE_STEP = {"training.local": {"name": "sgd", "lr": 0.3, "batch_size": 10_000}}


def gpm(
    changes: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    engine: str = "serial",
    **options: Any,
) -> Experiment:
    """The tiny experiment with GPM, in float64."""
    tables = {"model": model or MLP, "engine": {"name": engine}}
    return tiny({**DOUBLE, **(changes or {})}, method={"name": "gpm", **options}, **tables)


# --- The invariants. ---


@pytest.mark.parametrize("biases", ["freeze", "project", "free"])
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("model", [MLP, CNN])
def test_old_bases_are_never_moved(
    model: dict[str, Any], engine: str, biases: str, tmp_path: Path
) -> None:
    """Neither momentum nor weight decay leaves the space that is left."""
    changes = {"stream.tasks": 3, **HEAVY}
    experiment = gpm(changes, model, engine, energy=0.8, biases=biases)
    _, states = trace(experiment, tmp_path / "run")
    assert states[0].basis == {}
    moved = 0.0
    for end in (1, 3):  # after the last round of stages 0 and 1
        for name, basis in states[end].basis.items():
            start = flat(states[end].params, name, biases == "project")
            for later in states[end + 1 :]:
                change = flat(later.params, name, biases == "project") - start
                assert float(torch.linalg.norm(change @ basis)) < 1e-10, name
                moved = max(moved, float(torch.linalg.norm(change)))
    assert moved > 1e-2, "something must have been learnt beside the bases"
    for before, after in ((states[1], states[3]), (states[3], states[5])):
        for name, basis in after.basis.items():
            d, k = basis.shape
            assert d == flat(after.params, name, biases == "project").shape[1]
            assert before.basis[name].shape[1] <= k <= d
            assert float((basis.T @ basis - torch.eye(k)).abs().max()) < 1e-10
            assert torch.equal(basis[:, : before.basis[name].shape[1]], before.basis[name])


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_old_bases_are_hardly_moved_in_float32(engine: str, tmp_path: Path) -> None:
    changes = {"training.dtype": "float32", "training.rounds": 5}
    _, states = trace(gpm(changes, engine=engine, energy=0.8), tmp_path / "run")
    for name, basis in states[4].basis.items():
        change = flat(states[9].params, name) - flat(states[4].params, name)
        assert basis.dtype == torch.float64
        assert states[9].params[name].dtype == torch.float32
        assert float(torch.linalg.norm(change @ basis)) < 3e-6 < float(torch.linalg.norm(change))


def test_the_basis_is_that_of_the_pooled_inputs_and_its_threshold_grows(tmp_path: Path) -> None:
    experiment = gpm({"stream.tasks": 3}, energy=0.6, energy_step=0.15)
    _, states = trace(experiment, tmp_path / "run")
    old: dict[str, Tensor] = {}
    for stage, state in enumerate(states[1::2]):
        for name, x in mlp_inputs(state.params, pooled(experiment, stage)).items():
            slow, _ = slow_basis(x, old.get(name), 0.6 + 0.15 * stage)
            assert state.basis[name].shape == slow.shape, name
            assert angles(state.basis[name], slow) < 1e-6
        old = dict(state.basis)


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_a_full_basis_freezes_its_layer(engine: str, tmp_path: Path) -> None:
    experiment = gpm(model={"name": "mlp", "hidden": [6]}, engine=engine, energy=1.0)
    _, states = trace(experiment, tmp_path / "run")
    assert states[1].basis["fc1.weight"].shape == (16, 16)  # 160 blobs span all 16 dimensions
    change = states[3].params["fc1.weight"] - states[1].params["fc1.weight"]
    assert float(change.abs().max()) < 1e-13
    assert states[3].basis["fc1.weight"].shape == (16, 16)


# --- Against other methods. ---


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("model", [MLP, CNN])
def test_reduces_to_fedavg_with_energy_zero(model: dict[str, Any], engine: str) -> None:
    tables = {"model": model, "engine": {"name": engine}}
    for changes in ({}, DOUBLE, HEAVY):
        options = {"energy": 0.0, "energy_step": 0.0, "biases": "free"}
        found = fedcl.run(tiny(changes, method={"name": "gpm", **options}, **tables))
        plain = fedcl.run(tiny(changes, **tables))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])


def test_the_first_task_is_learnt_as_by_fedavg() -> None:
    changes = {"stream.tasks": 1, "training.rounds": 3}
    found = fedcl.run(tiny(changes, method={"name": "gpm"}))
    assert same(dict(found.params), dict(fedcl.run(tiny(changes)).params))


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("model", [MLP, CNN])
def test_with_one_step_a_round_it_is_fot(model: dict[str, Any], engine: str, biases: bool) -> None:
    """The mean of projected steps is the projection of the mean step; several steps differ."""
    own = {"energy": 0.7, "energy_step": 0.05}
    options = {**own, "biases": "project" if biases else "free"}
    apart = []
    for local in (ONE_STEP, {"training.local.batch_size": 8}):
        changes = {"stream.tasks": 3, **local}
        found = fedcl.run(gpm(changes, model, engine, **options))
        server = fedcl.run(fot({**changes, "engine.name": engine}, model, biases=biases, **own))
        apart.append(distance(found.params, server.params))
    assert apart[0] < 1e-10
    assert apart[1] > 1e-4


def test_it_forgets_less_than_fedavg() -> None:
    changes = {"stream.tasks": 3, "training.rounds": 6, "training.cohort": 0}
    found = fedcl.run(tiny(changes, method={"name": "gpm", "energy": 0.9}))
    assert found.summary["forgetting"] < fedcl.run(tiny(changes)).summary["forgetting"]


# --- What is projected, and what stays. ---


def test_projecting_by_hand() -> None:
    """Along u = (3, 4) / 5, the row (5, 0) keeps (5, 0) - 3 (3, 4) / 5 = (3.2, -2.4).

    With the bias as a third input and u = (1, 0, 1) / sqrt(2), the row (2, 5; 4) has 6 / sqrt(2)
    along u and keeps (2, 5; 4) - (3, 0; 3) = (-1, 5; 1).
    """
    gradients = {
        "a.weight": torch.tensor([[5.0, 0.0], [0.6, 0.8]]),
        "a.bias": torch.tensor([1.0, 2.0]),
        "head.weight": torch.tensor([[7.0, 8.0]]),
        "head.bias": torch.tensor([3.0]),
    }
    u = torch.tensor([[0.6], [0.8]])
    found = GPM().project(gradients, Guarded({}, {"a.weight": u}, ("a.bias",)))
    assert list(found) == list(gradients)
    assert torch.allclose(found["a.weight"], torch.tensor([[3.2, -2.4], [0.0, 0.0]]), atol=1e-6)
    assert torch.equal(found["a.bias"], torch.zeros(2))
    assert found["head.weight"] is gradients["head.weight"]
    assert found["head.bias"] is gradients["head.bias"]
    assert {value.dtype for value in found.values()} == {torch.float32}
    gradients = {"a.weight": torch.tensor([[2.0, 5.0]]), "a.bias": torch.tensor([4.0])}
    u = torch.tensor([[1.0], [0.0], [1.0]]) / 2**0.5
    found = GPM(biases="project").project(gradients, Guarded({}, {"a.weight": u}, ()))
    assert torch.allclose(found["a.weight"], torch.tensor([[-1.0, 5.0]]), atol=1e-6)
    assert torch.allclose(found["a.bias"], torch.tensor([1.0]), atol=1e-6)


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
@pytest.mark.parametrize("biases", ["freeze", "project", "free"])
def test_which_vectors_stay_after_the_first_task(biases: str, kind: str, tmp_path: Path) -> None:
    """With `freeze` all vectors do, but for the bias of a head that new classes must move."""
    _, states = trace(gpm(scenario(kind), CNN, energy=0.5, biases=biases), tmp_path / "run")
    first, last = states[1].params, states[3].params
    assert ("head.weight" in states[1].basis) == (kind == "domain")
    for name, value in last.items():
        if value.ndim == 1:
            stays = biases == "freeze" and (name != "head.bias" or kind == "domain")
            assert torch.equal(value, first[name]) == stays, name
    # In the first task nothing stays.
    assert all(not torch.equal(states[0].params[name], first[name]) for name in first)


# --- Costs. ---


def test_costs_by_hand(tmp_path: Path) -> None:
    """MLP 16-12-4 in float32; head guarded. Bases go down in every later round in float32, and in
    float64, as FOT's, once a stage for the Gram matrices: 16 * 17 / 2 + 12 * 13 / 2 numbers up."""
    experiment = tiny({"stream.tasks": 3}, method={"name": "gpm", "energy": 0.9})
    record, states = trace(experiment, tmp_path / "run")
    directions = [0, *(sum(u.numel() for u in s.basis.values()) for s in states[1::2])]
    assert directions[0] < directions[1] < directions[2] <= directions[3] <= 16 * 16 + 12 * 12
    model, cohort, members = 4 * (16 * 12 + 12 + 12 * 4 + 4), 3, 5
    for number in range(1, 7):
        cost: dict[str, dict[str, int]] = {"up": {}, "down": {}}
        for row in record.costs:
            if row["round"] == number and row["direction"]:
                kinds = cost[row["direction"]]
                kinds[row["payload"]] = kinds.get(row["payload"], 0) + row["bytes"]
        stage, last = divmod(number - 1, 2)
        down = {"model": (cohort + members * last) * model}
        if stage:
            down["basis"] = (4 * cohort + 8 * members * last) * directions[stage]
        assert cost["down"] == down
        assert cost["up"]["model"] == cohort * model
        assert cost["up"].get("gram", 0) == last * members * 4 * (136 + 78)
        assert cost["up"].get("norms", 0) == last * members * 2 * 4 * 8
    assert set(cost["up"]) == {"model", "metrics", "gram", "norms"}


def test_bases_that_go_down_hold_the_type_of_the_model() -> None:
    _, engine = watched(tiny({"training.dtype": "float32"}, method={"name": "gpm"}))
    messages = [r.message for r, _ in engine.requests if r.position.round < 2]
    assert [isinstance(message, Guarded) for message in messages] == [False, False, True, True]
    for message in messages[2:]:
        assert {u.dtype for u in message.basis.values()} == {torch.float32}
        assert message.frozen == ("fc1.bias", "head.bias")


def test_the_last_stage_is_learnt_beside_the_bases() -> None:
    """There is room left: the second task is learnt, not only the first one kept."""
    changes = {"training.rounds": 8, "training.cohort": 0}
    record = fedcl.run(tiny(changes, method={"name": "gpm", "energy": 0.8}))
    found = {row["task"]: row["value"] for row in rows(record, round=16, split="test")}
    assert found[0] > 0.6 and found[1] > 0.6, "chance is 0.25"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 1.5}, "energy"),
        ({"energy_step": -0.1}, "energy_step"),
        ({"biases": "keep"}, "biases"),
        ({"head": "none"}, "head"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(method={"name": "gpm", **options})
