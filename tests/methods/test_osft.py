"""OSFT: what is frozen stays a part of the weights' singular value decomposition, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedcl
from fedcl.config import Experiment
from fedcl.core.consolidation.weightspace import project_sides, strongest
from fedcl.core.errors import ConfigError
from fedcl.core.features.subspace import layer_matrix
from fedcl.core.method import Sizes
from fedcl.methods.osft import OSFT
from tests.fot_tools import MLP, flat
from tests.tiny import (
    CNN,
    Interrupted,
    assert_same_runs,
    distance,
    interrupt_after,
    same,
    scenario,
    tiny,
    trace,
)

DOUBLE = {"training.dtype": "float64"}
THREE = {**DOUBLE, "stream.tasks": 3}


def osft(
    changes: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    engine: str = "serial",
    **options: Any,
) -> Experiment:
    """The tiny experiment with OSFT, in float64."""
    return tiny(
        {**DOUBLE, **(changes or {})},
        method={"name": "osft", **options},
        model=model or MLP,
        engine={"name": engine},
    )


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize(
    "options", [{}, {"biases": True}, {"server": "momentum"}, {"server": "adam", "server_lr": 0.03}]
)
def test_reduces_to_fedavg_with_energy_zero(options: dict[str, Any], engine: str) -> None:
    server = {key: value for key, value in options.items() if key != "biases"}
    for model, dtype in ((MLP, "float32"), (CNN, "float64")):
        changes = {"training.dtype": dtype}
        found = fedcl.run(osft(changes, model, engine, energy=0.0, **options))
        method = {"name": "fedavg", **server}
        plain = fedcl.run(tiny(changes, method=method, model=model, engine={"name": engine}))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_the_first_stage_is_learnt_as_by_fedavg(engine: str) -> None:
    changes = {**DOUBLE, "stream.tasks": 1}
    plain = fedcl.run(tiny(changes, model=MLP, engine={"name": engine}))
    assert same(dict(fedcl.run(osft(changes, engine=engine)).params), dict(plain.params))


# --- The invariants. ---


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("server", ["mean", "momentum", "adam"])
@pytest.mark.parametrize("model", [MLP, CNN])
def test_frozen_triplets_stay_singular_triplets(
    model: dict[str, Any], server: str, biases: bool, engine: str, tmp_path: Path
) -> None:
    adam = {"server_lr": 0.03} if server == "adam" else {}
    options = {"energy": 0.6, "server": server, "biases": biases, **adam}
    _, states = trace(osft(THREE, model, engine, **options), tmp_path / "run")
    assert states[0].left == {} == states[0].right
    moved = 0.0
    for end in (1, 3):  # after the last round of stages 0 and 1
        names = states[end].left.keys()
        assert names == states[end].right.keys() == {k for k in states[end].params if _guarded(k)}
        for name in names:
            u, v = states[end].left[name], states[end].right[name]
            old = flat(states[end].params, name, biases)
            k = u.shape[1]
            assert 0 < k < min(old.shape) and v.shape == (old.shape[1], k)
            for directions in (u, v):
                assert float((directions.T @ directions - torch.eye(k)).abs().max()) < 1e-10
            frozen = torch.diag(torch.linalg.svdvals(old)[:k])
            for later in states[end + 1 : end + 3]:  # the next stage, and its decomposition
                new = flat(later.params, name, biases)
                assert float((u.T @ (new - old)).abs().max()) < 1e-10
                assert float(((new - old) @ v).abs().max()) < 1e-10
                # Singular triplets: S_h on the diagonal, nothing beside it.
                assert float((u.T @ new - frozen @ v.T).abs().max()) < 1e-10
                assert float((new @ v - u @ frozen).abs().max()) < 1e-10
                assert float((u.T @ new @ v - frozen).abs().max()) < 1e-10
                found = torch.linalg.svdvals(new)
                for value in frozen.diagonal():
                    assert float((found - value).abs().min()) < 1e-10
                moved = max(moved, float(torch.linalg.norm(new - old)))
    assert moved > 1e-2, "something must have been learnt beside them"


def _guarded(name: str) -> bool:
    return name.endswith("weight") and "norm" not in name


def test_directions_are_those_of_the_present_weights(tmp_path: Path) -> None:
    """Each stage's end starts anew: no direction is kept for having been frozen once."""
    _, states = trace(osft(THREE, energy=0.6), tmp_path / "run")
    for end in (1, 3, 5):
        for name, left in states[end].left.items():
            weight = states[end].params[name]
            u, s, vh = torch.linalg.svd(weight)
            k = left.shape[1]
            share = s.square().cumsum(0) / s.square().sum()
            assert share[k - 1] >= 0.6 > (share[k - 2] if k > 1 else 0.0)
            for found, slow in ((left, u[:, :k]), (states[end].right[name], vh[:k].T)):
                assert float((found @ found.T - slow @ slow.T).abs().max()) < 1e-9
    assert not same(dict(states[3].left), dict(states[1].left))
    # Between stages' ends nothing is decomposed.
    assert same(dict(states[2].left), dict(states[1].left))


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("model", [MLP, CNN])
def test_all_energy_freezes_guarded_layers(
    model: dict[str, Any], biases: bool, engine: str, tmp_path: Path
) -> None:
    _, states = trace(osft(THREE, model, engine, energy=1.0, biases=biases), tmp_path / "run")
    start = states[1].params
    for name, value in states[5].params.items():
        bias = biases and name.endswith("bias") and _guarded(name.removesuffix("bias") + "weight")
        moved = float((value - start[name]).abs().max())
        if _guarded(name) or bias:
            assert moved < 1e-12, name
        else:
            assert moved > 1e-4, name


def test_hardly_anything_moves_in_float32(tmp_path: Path) -> None:
    changes = {"training.dtype": "float32", "training.rounds": 5}
    _, states = trace(osft(changes, energy=0.6), tmp_path / "run")
    for name, left in states[4].left.items():
        change = flat(states[9].params, name) - flat(states[4].params, name)
        assert left.dtype == states[4].right[name].dtype == torch.float64
        assert float((left.T @ change).abs().max()) < 1e-6 < float(change.abs().max())
        assert float((change @ states[4].right[name]).abs().max()) < 1e-6


# --- Numbers by hand. ---


def known(energies: list[float], out: int = 5, width: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a matrix with these squared singular values, and its singular vectors."""
    torch.manual_seed(3)
    u, _ = torch.linalg.qr(torch.randn(out, len(energies), dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(width, len(energies), dtype=torch.float64))
    return u @ torch.diag(torch.tensor(energies, dtype=torch.float64).sqrt()) @ v.T, u, v


@pytest.mark.parametrize(
    ("share", "k"),
    [
        (0.0, 0),
        (0.001, 1),
        (0.5, 1),
        (0.501, 2),
        (0.75, 2),
        (0.8, 3),
        (0.875, 3),
        (0.9, 4),
        (1.0, 4),
    ],
)
def test_how_many_directions_hold_a_share(share: float, k: int) -> None:
    """Shares of 1/2, 1/4, 1/8 and 1/8 in a (5, 7) matrix, so that one direction holds nothing."""
    matrix, u, v = known([8.0, 4.0, 2.0, 2.0])
    left, right = strongest({"a.weight": matrix}, "a.weight", share, False)
    assert left.shape == (5, k) and right.shape == (7, k)
    if k != 3:  # the third and the fourth are not told apart
        assert float((left @ left.T - u[:, :k] @ u[:, :k].T).abs().max()) < 1e-12
        assert float((right @ right.T - v[:, :k] @ v[:, :k].T).abs().max()) < 1e-12


def test_a_weight_without_energy_freezes_nothing() -> None:
    left, right = strongest({"a.weight": torch.zeros(3, 2)}, "a.weight", 1.0, False)
    assert (left.shape, right.shape) == ((3, 0), (2, 0))


@pytest.mark.parametrize("biases", [False, True])
def test_a_step_by_hand(biases: bool) -> None:
    """W = diag(3, 2, 1) and energy 9/14: e_1 is frozen on both sides, so that the first row and the
    first column of a step become 0. The bias is one more column: only its first row is frozen."""
    params = {"a.weight": torch.diag(torch.tensor([3.0, 2.0, 1.0])), "a.bias": torch.zeros(3)}
    left, right = strongest(params, "a.weight", 9 / 14, biases)
    assert left.abs().T.tolist() == [pytest.approx([1, 0, 0])]
    assert right.abs().T.tolist() == [pytest.approx([1, 0, 0, 0][: 3 + biases])]
    step = {"a.weight": torch.arange(1.0, 10.0).view(3, 3), "a.bias": torch.ones(3)}
    found = project_sides(step, {"a.weight": left}, {"a.weight": right}, biases)
    expected = torch.tensor([[0.0, 0.0, 0.0], [0.0, 5.0, 6.0], [0.0, 8.0, 9.0]]).double()
    assert torch.allclose(found["a.weight"], expected, atol=1e-14)
    bias = torch.tensor([0.0 if biases else 1.0, 1.0, 1.0])
    assert torch.allclose(found["a.bias"].float(), bias)
    assert biases or found["a.bias"] is step["a.bias"]
    assert float(step["a.weight"].sum()) == 45.0, "what came in is left alone"


def test_a_convolution_is_a_matrix_with_a_row_for_each_output() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    left, right = strongest({"c.weight": weight}, "c.weight", 0.5, True)  # it has no bias
    step = {"c.weight": torch.randn(4, 3, 2, 2, dtype=torch.float64)}
    found = project_sides(step, {"c.weight": left}, {"c.weight": right}, True)["c.weight"]
    assert found.shape == (4, 3, 2, 2)
    u, _, vh = torch.linalg.svd(weight.reshape(4, 12), full_matrices=False)
    k = left.shape[1]
    assert 0 < k < 4
    # Slowly, entry by entry of what is left: coordinates in the low directions.
    slow = sum(
        torch.outer(a, b) * (a @ step["c.weight"].reshape(4, 12) @ b)
        for a in _complement(u[:, :k]).T
        for b in _complement(vh[:k].T).T
    )
    assert torch.allclose(found.reshape(4, 12), torch.as_tensor(slow), atol=1e-12)


def _complement(directions: Tensor) -> Tensor:
    """Returns an orthonormal basis of what is orthogonal to directions (d, k)."""
    u, _, _ = torch.linalg.svd(directions, full_matrices=True)
    rest: Tensor = u[:, directions.shape[1] :]
    return rest


def test_it_is_what_training_the_low_factors_can_reach() -> None:
    """The paper's own steps in U_l, S_l and V_l, with its projected gradients, make a change that
    the server's projection leaves alone; and any projected change fits into the low factors."""
    matrix, *_ = known([9.0, 5.0, 1.0, 0.5, 0.2])
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    k = 2
    high = u[:, :k], vh[:k].T
    goal = torch.randn(5, 7, dtype=torch.float64)
    low = [part.clone() for part in (u[:, k:], s[k:], vh[k:])]
    fixed = high[0] @ torch.diag(s[:k]) @ high[1].T
    for _ in range(50):
        leaves = [part.requires_grad_() for part in low]
        weight = fixed + leaves[0] @ torch.diag(leaves[1]) @ leaves[2]
        gradients = torch.autograd.grad((weight - goal).square().sum(), leaves)
        du = gradients[0] - high[0] @ (high[0].T @ gradients[0])
        dv = gradients[2] - (gradients[2] @ high[1]) @ high[1].T
        low = [
            part.detach() - 0.02 * step
            for part, step in zip(low, (du, gradients[1], dv), strict=True)
        ]
    change = fixed + low[0] @ torch.diag(low[1]) @ low[2] - matrix
    sides = {"w": high[0]}, {"w": high[1]}
    assert float(change.abs().max()) > 0.1
    assert float((project_sides({"w": change}, *sides, False)["w"] - change).abs().max()) < 1e-12
    # The other way round: three low triplets, as many as were trained, are enough.
    other = torch.randn(5, 7, dtype=torch.float64)
    projected = project_sides({"w": other}, *sides, False)["w"]
    rest = matrix - fixed + projected
    a, sizes, bh = torch.linalg.svd(rest, full_matrices=False)
    assert float(sizes[5 - k :].max()) < 1e-12
    assert float((high[0].T @ a[:, : 5 - k]).abs().max()) < 1e-12
    assert float((bh[: 5 - k] @ high[1]).abs().max()) < 1e-12
    # And it is the closest: what was taken away is orthogonal to all that is allowed.
    third = project_sides({"w": torch.randn(5, 7, dtype=torch.float64)}, *sides, False)["w"]
    assert abs(float(((other - projected) * third).sum())) < 1e-12


def test_the_servers_step_is_fedavgs_projected(tmp_path: Path) -> None:
    """The first round of stage 1 starts where FedAvg's does, and so do its clients."""
    _, states = trace(osft(energy=0.7), tmp_path / "osft")
    _, plain = trace(tiny(DOUBLE, model=MLP), tmp_path / "fedavg")
    assert same(dict(states[1].params), dict(plain[1].params))
    for name, value in states[2].params.items():
        step = (plain[2].params[name] - plain[1].params[name]).double()
        if name in states[1].left:
            u, v = states[1].left[name], states[1].right[name]
            step = (torch.eye(len(u)) - u @ u.T) @ step @ (torch.eye(len(v)) - v @ v.T)
        assert float((value - states[1].params[name] - step).abs().max()) < 1e-13
        assert float(step.abs().max()) > 1e-4


# --- What is guarded, and what it costs. ---


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_heads_are_guarded_where_the_classes_stay(kind: str, tmp_path: Path) -> None:
    for head, guarded in (("auto", kind == "domain"), ("protect", True), ("free", False)):
        _, states = trace(
            osft({**scenario(kind), "training.rounds": 1}, head=head), tmp_path / head
        )
        heads = ["head.weight"] if guarded else []
        assert list(states[0].left) == list(states[0].right) == ["fc1.weight", "fc2.weight", *heads]


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_it_costs_what_fedavg_costs(engine: str) -> None:
    """Nothing extra crosses the wire, and clients do nothing else."""
    found = fedcl.run(osft(THREE, engine=engine))
    plain = fedcl.run(tiny(THREE, model=MLP, engine={"name": engine}))
    exact = ("round", "direction", "payload", "bytes", "steps", "examples")
    costs = [[{k: row[k] for k in exact} for row in run.costs] for run in (found, plain)]
    assert costs[0] == costs[1]
    assert OSFT.travels == "nothing"


def test_needs_hold_all_directions() -> None:
    layers = {"fc1.weight": (16, 12), "head.weight": (12, 4)}
    sizes = Sizes(4 * 256, layers, {}, 0, 0, 2, 0, 4)
    assert OSFT().needs(sizes).state == 8 * (12 * (12 + 16) + 4 * (4 + 12))
    assert OSFT(biases=True).needs(sizes).state == 8 * (12 * (12 + 17) + 4 * (4 + 13))
    assert OSFT(server="adam").needs(sizes).state == OSFT().needs(sizes).state + 16 * 256


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_a_layer_with_few_directions_keeps_few_numbers(share: float) -> None:
    """A view would keep all singular vectors alive, and in every checkpoint."""
    for side in strongest({"w": known([8.0, 4.0, 2.0])[0]}, "w", share, False):
        assert side.untyped_storage().nbytes() == side.numel() * 8
        assert side.is_contiguous(), "a file gives them row by row"


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_a_run_that_goes_on_has_the_bits_of_one_that_did_not_stop(
    engine: str, tmp_path: Path
) -> None:
    experiment = osft(model=CNN, engine=engine, energy=0.6)
    with pytest.raises(Interrupted):
        fedcl.run(experiment, tmp_path, watch=interrupt_after(3))
    assert_same_runs(fedcl.run(experiment, tmp_path, resume=True), fedcl.run(experiment))


def test_a_bias_is_a_column() -> None:
    params = {"a.weight": torch.ones(2, 3), "a.bias": torch.full((2,), 7.0), "b": torch.ones(2)}
    assert layer_matrix(params, "a.weight", False).tolist() == [[1, 1, 1]] * 2
    assert layer_matrix(params, "a.weight", True).tolist() == [[1, 1, 1, 7]] * 2
    assert layer_matrix({"a.weight": torch.ones(2, 3)}, "a.weight", True).shape == (2, 3)


def test_serial_and_vectorized_agree() -> None:
    for biases in (False, True):
        runs = [
            fedcl.run(osft(THREE, CNN, engine, energy=0.6, biases=biases))
            for engine in ("serial", "vectorized")
        ]
        assert distance(runs[0].params, runs[1].params) < 1e-9


def test_it_forgets_less_than_fedavg() -> None:
    changes = {"stream.tasks": 3, "training.rounds": 6, "training.cohort": 0}
    found = fedcl.run(tiny(changes, method={"name": "osft"}))
    plain = fedcl.run(tiny(changes))
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 1.5}, "energy"),
        ({"energy": -0.1}, "energy"),
        ({"energy": float("nan")}, "energy"),
        ({"head": "guard"}, "head"),
        ({"server_momentum": 1.0}, "server_momentum"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        osft(**options)
