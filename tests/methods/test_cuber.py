"""CUBER: which spaces are open by hand, whole runs the slow way, and old tasks that get better."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.config import Experiment, parse
from fedcl.core.errors import ConfigError
from fedcl.core.features.moments import grown_basis, own_space
from fedcl.core.features.subspace import agreeing_room
from fedcl.core.params import Params
from fedcl.methods.cuber import State
from tests.fot_tools import DOUBLE, MLP, flat, fot, mlp_inputs, pooled, slow_basis
from tests.tiny import CNN, angles, distance, same, stream_of, tiny, trace

OPEN: dict[str, Any] = {"overlap": 0.0, "agreement": -1.0}  # every space is
ONE_CLIENT = {
    "stream.clients": 1,
    "stream.partition": {"name": "iid"},
    "training.cohort": 0,
    "training.local": {"name": "sgd", "lr": 0.5, "batch_size": 10_000},
}


def cuber(
    changes: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **options: Any
) -> Experiment:
    """The tiny experiment with CUBER, in float64."""
    method = {"name": "cuber", **options}
    return tiny({**DOUBLE, **(changes or {})}, method=method, model=model or MLP)


# --- The regimes. ---


def vector(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


FIRST, SECOND = vector(1, 0), vector(0, 1)
DIAGONAL = vector(1, 1) / 2**0.5


@pytest.mark.parametrize(
    ("old", "overlap", "agreement", "room"),
    [
        # g = (3, 4) has 3 of its length 5 along the first input: 0.6.
        ([(FIRST, vector(1, 0))], 0.5, 0.0, FIRST),
        ([(FIRST, vector(1, 0))], 0.6, 0.0, None),
        ([(FIRST, vector(1, 0))], 0.59, 0.6 - 1e-12, FIRST),  # its cosine with (1, 0) is 0.6
        ([(FIRST, vector(1, 0))], 0.59, 0.61, None),
        ([(FIRST, vector(-1, 0))], 0.5, 0.0, None),  # they disagree
        ([(FIRST, vector(-1, 0))], 0.5, -0.61, FIRST),
        ([(FIRST, vector(-4, 3))], 0.5, 0.0, FIRST),  # <(3, 4), (-4, 3)> is 0
        ([(FIRST, vector(-4, 2.9))], 0.5, 0.0, None),
        # A closed space wins: what of (1, 0) is orthogonal to (1, 1) is (1, -1) / 2.
        ([(FIRST, vector(1, 0)), (DIAGONAL, vector(-1, -1))], 0.5, 0.0, vector(1, -1) / 2**0.5),
        ([(DIAGONAL, vector(-1, -1)), (FIRST, vector(1, 0))], 0.5, 0.0, vector(1, -1) / 2**0.5),
        ([(FIRST, vector(1, 0)), (FIRST, vector(-1, 0))], 0.5, 0.0, None),
        ([(FIRST, vector(1, 0)), (SECOND, vector(0, 1))], 0.5, 0.0, torch.eye(2).double()),
        ([(torch.eye(2).double(), vector(3, 4))], 1.0, 0.0, None),  # nothing lies wholly in it
        ([(torch.eye(2).double(), vector(3, 4))], 0.5, 1.01, None),  # no cosine is above 1
        ([], 0.5, 0.0, None),
    ],
)
def test_what_is_open_by_hand(
    old: Sequence[tuple[Tensor, Tensor]], overlap: float, agreement: float, room: Tensor | None
) -> None:
    """Rows of spaces are directions here; a room is compared as a projection."""
    given = [(space.T, gradient) for space, gradient in old]
    found = agreeing_room(vector(3, 4), given, overlap, agreement)
    wanted = torch.zeros(2, 2).double() if room is None else room.T @ room
    assert found.shape == (2, 0 if room is None else len(room))
    assert torch.allclose(found @ found.T, wanted, atol=1e-12)


def test_a_task_without_gradient_opens_nothing() -> None:
    found = agreeing_room(vector(0, 0), [(FIRST.T, vector(1, 0))], 0.0, -1.0)
    assert found.shape == (2, 0)


# --- Whole runs the slow way. ---


def forward(params: Params, x: Tensor) -> Tensor:
    return F.linear(
        mlp_inputs(params, x)["head.weight"], params["head.weight"], params["head.bias"]
    )


def gradients_of(params: Params, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Mean loss gradients."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    loss = F.cross_entropy(forward(leaves, x), y)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def projector(columns: Tensor) -> Tensor:
    """The projection onto the span of columns, by singular values."""
    left, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    kept: Tensor = left[:, sizes > 1e-9]
    return kept @ kept.T


def leading(x: Tensor, onto: Tensor, energy: float) -> Tensor:
    """The fewest directions within a span that hold a share of the inputs' energy."""
    _, singular, vectors = torch.linalg.svd(x @ onto, full_matrices=False)
    k = 0
    while float(singular[:k].square().sum()) < energy * (1 - 1e-9) * float(x.square().sum()):
        k += 1
    directions: Tensor = vectors[:k].T
    return directions


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("pull", [0.0, 0.5, 1e15])
def test_a_run_is_that_of_the_slow_way(pull: float, biases: bool, tmp_path: Path) -> None:
    """One client whose rounds are one step each: every number can be had without the method."""
    energy, overlap = 0.6, 0.4
    changes = {**ONE_CLIENT, "stream.tasks": 4, "training.rounds": 4}
    options: dict[str, Any] = {"energy": energy, "overlap": overlap, "pull": pull, "biases": biases}
    experiment = cuber(changes, **options)
    _, states = trace(experiment, tmp_path / "run")
    stream, names = stream_of(experiment), ("fc1.weight", "fc2.weight", "head.weight")
    union: dict[str, Tensor] = {}
    old: list[dict[str, tuple[Tensor, Tensor]]] = []
    opened: list[bool] = []
    for stage in range(1, 4):
        # What the last stage left behind.
        last = states[4 * stage - 1].params
        x, y = stream.train(0, stage - 1).x.double(), stream.train(0, stage - 1).y
        slow = gradients_of(last, x, y)
        own = {}
        for name, inputs in mlp_inputs(last, x).items():
            rows = F.pad(inputs, (0, 1), value=1.0) if biases else inputs
            union[name], _ = slow_basis(rows, union.get(name), energy)
            space = leading(rows, projector(union[name]), energy)
            own[name] = space, flat(slow, name, biases)
            saved = states[4 * stage - 1].old[-1]
            assert angles(saved.spaces[name], space) < 1e-6
            off = saved.gradients[name] / len(y) - own[name][1]
            assert float(torch.linalg.norm(off)) < 1e-9 * float(torch.linalg.norm(own[name][1]))
        old.append(own)
        # What the new one may do.
        x, y = stream.train(0, stage).x.double(), stream.train(0, stage).y
        first, room = gradients_of(last, x, y), {}
        for name in names:
            g = flat(first, name, biases)
            closed, entered = [torch.zeros(g.shape[1], 1).double()], list[Tensor]()
            for task in old:
                space, before = task[name]
                strong = torch.linalg.norm(g @ projector(space)) > overlap * torch.linalg.norm(g)
                agrees = bool(strong) and float((g * before).sum()) >= 0
                (entered if agrees else closed).append(space)
                opened.append(agrees)
            away = torch.eye(g.shape[1]).double() - projector(torch.cat(closed, 1))
            room[name] = projector(away @ torch.cat(entered, 1)) if entered else away * 0
        # Its rounds.
        now = {name: value.clone() for name, value in last.items()}
        for number in range(4):
            slow = gradients_of(now, x, y)
            for name in names:
                step = -0.5 * flat(slow, name, biases)
                p, q = room[name], projector(union[name])
                moved = flat(now, name, biases) + step - step @ q + step @ p
                far = (moved - flat(last, name, biases)) @ p
                moved = moved - far + far / (1 + pull)
                if biases:
                    now[name.replace("weight", "bias")], moved = moved[:, -1], moved[:, :-1]
                now[name] = moved
            if not biases:
                for name in now:
                    if name.endswith("bias"):
                        now[name] = now[name] - 0.5 * slow[name]
            assert distance(now, states[4 * stage + number].params) < 1e-8
    assert 0 < sum(opened) < len(opened), "both kinds of spaces must have occurred"


@pytest.mark.parametrize("model", [MLP, CNN])
@pytest.mark.parametrize("biases", [False, True])
def test_closed_spaces_are_never_moved(model: dict[str, Any], biases: bool, tmp_path: Path) -> None:
    changes = {"stream.tasks": 4, "training.local.momentum": 0.5}
    _, states = trace(cuber(changes, model, energy=0.7, biases=biases), tmp_path / "run")
    rooms, inside = 0, 0.0
    for end in (1, 3, 5):
        start, later = states[end], states[end + 1 : end + 3]
        assert isinstance(start, State) and start.allowed == {}
        for name, basis in start.basis.items():
            room = later[0].allowed[name]
            off = room - basis @ (basis.T @ room)
            assert float(torch.linalg.norm(off)) < 1e-9
            closed = basis - room @ (room.T @ basis)
            rooms += room.shape[1]
            for state in later:
                change = flat(state.params, name, biases) - flat(start.params, name, biases)
                assert float(torch.linalg.norm(change @ closed)) < 1e-10, name
                inside += float(torch.linalg.norm(change @ room))
    assert rooms > 0 and inside > 1e-3, "some old space must have been entered"


# --- Against other methods. ---


@pytest.mark.parametrize("nothing", [{"overlap": 1.0}, {"agreement": 1.01}, {**OPEN, "pull": 1e15}])
@pytest.mark.parametrize("model", [MLP, CNN])
@pytest.mark.parametrize("biases", [False, True])
def test_reduces_to_fot_where_nothing_is_open(
    model: dict[str, Any], nothing: dict[str, Any], biases: bool, tmp_path: Path
) -> None:
    """Nor where all is, with an infinite pull: in all stages, though no basis goes to clients."""
    own = {"energy": 0.8, "energy_step": 0.02, "biases": biases}
    changes = {"stream.tasks": 3}
    _, found = trace(cuber(changes, model, **own, **nothing), tmp_path / "cuber")
    _, server = trace(fot(changes, model, **own), tmp_path / "fot")
    for a, b in zip(found, server, strict=True):
        assert distance(a.params, b.params) < 1e-9
        for name, basis in b.basis.items():
            assert angles(a.basis[name], basis) < 1e-6


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("model", [MLP, CNN])
def test_reduces_to_fedavg_with_energy_zero(model: dict[str, Any], biases: bool) -> None:
    for changes in ({}, DOUBLE, {"training.local.momentum": 0.5}):
        method = {"name": "cuber", "energy": 0.0, "biases": biases}
        found = fedcl.run(tiny(changes, method=method, model=model))
        plain = fedcl.run(tiny(changes, model=model))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])


def test_two_tasks_are_learnt_as_by_fedavg_where_all_is_open_and_nothing_pulls() -> None:
    found = fedcl.run(cuber(energy=0.8, **OPEN, pull=0.0))
    assert distance(found.params, fedcl.run(tiny(DOUBLE, model=MLP)).params) < 1e-10
    assert distance(found.params, fedcl.run(cuber(energy=0.8, pull=0.0)).params) > 1e-4


def agreeing(folder: Path, seed: int, method: dict[str, Any]) -> dict[str, Any]:
    """Runs two tasks that are the same problem: the first with few examples, then with many."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(4, 16))

    both: dict[str, np.ndarray] = {}
    for split, sizes in (("train", (24, 600)), ("test", (300, 300))):
        parts: dict[str, list[np.ndarray]] = {"x": [], "y": [], "domain": []}
        for domain, size in enumerate(sizes):
            y = np.arange(size) % 4
            parts["x"].append(centres[y] + 1.5 * generator.normal(size=(size, 16)))
            parts["y"].append(y)
            parts["domain"].append(np.full(size, domain))
        for column, values in parts.items():
            kind = np.float32 if column == "x" else np.int64
            both[f"{column}_{split}"] = np.concatenate(values).astype(kind)
    folder.mkdir()
    np.savez(folder / "crafted.npz", **both)  # type: ignore[arg-type]
    table = {
        "seed": seed,
        "dataset": {"name": "npz", "root": str(folder), "file": "crafted.npz"},
        "stream": {
            "name": "domain_incremental",
            "transform": "column",
            "tasks": 0,
            "clients": 4,
        },
        "model": {"name": "mlp", "hidden": [16]},
        "method": method,
        "training": {"rounds": 10, "local": {"name": "sgd", "lr": 0.1, "batch_size": 8}},
        "engine": {"name": "serial"},
    }
    return fedcl.run(parse(table)).summary


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_old_task_gets_better_where_a_new_one_agrees(seed: int, tmp_path: Path) -> None:
    own = {"energy": 0.95}
    found = agreeing(tmp_path / "a", seed, {"name": "cuber", **own})
    server = agreeing(tmp_path / "b", seed, {"name": "fot", **own})
    assert found["forgetting_first_last"] <= 0
    assert found["accuracy_matrix"][1][0] > server["accuracy_matrix"][1][0]
    assert found["average_accuracy"] > server["average_accuracy"] + 0.02


# --- The basis, from whole Gram matrices. ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_what_travelled_is_no_new_direction(dtype: torch.dtype) -> None:
    """Two tasks in one space of six directions, all of whose energy is wanted."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        mix = torch.randn(6, 40, generator=generator).double() * torch.logspace(0, -1, 6)[:, None]
        basis = None
        for _ in range(2):
            x = torch.randn(300, 6, generator=generator).double() @ mix
            gram = (x.T @ x).to(dtype).double()
            basis = grown_basis(gram, basis, 1.0, torch.finfo(dtype).eps)
            assert basis.shape == (40, 6)
            assert float(torch.linalg.norm(x - x @ basis @ basis.T)) < 1e-3


def test_own_directions_within_a_basis_by_hand() -> None:
    """Inputs with energies 6, 3, 1 along the axes: half of all lies in one of them, 0.9 in two."""
    gram = torch.diag(torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64))
    for energy, axes in ((0.5, [0]), (0.6, [0]), (0.7, [0, 1]), (0.9, [0, 1]), (1.0, [0, 1, 2])):
        space = own_space(gram, torch.eye(3).double()[:, [2, 0, 1]], energy)
        wanted = torch.zeros(3).double()
        wanted[axes] = 1.0
        assert torch.allclose(space @ space.T, torch.diag(wanted), atol=1e-12)
    assert own_space(gram * 0, torch.eye(3).double(), 0.5).shape == (3, 0)
    # Of what lies outside the basis nothing can be held: all of the basis is taken then.
    assert own_space(gram, torch.eye(3).double()[:, :1], 0.9).shape == (3, 1)


# --- Costs, and what is refused. ---


def test_costs_by_hand() -> None:
    """MLP 16-12-4 in float32; the head is guarded. Bases never travel; gradients of both weights,
    16 * 12 + 12 * 4 numbers, go up at a stage's end and, from the second on, at its beginning."""
    record = fedcl.run(tiny({"stream.tasks": 3}, method={"name": "cuber"}))
    model, cohort, members = 4 * (16 * 12 + 12 + 12 * 4 + 4), 3, 5
    gradient = 4 * (16 * 12 + 12 * 4)
    for number in range(1, 7):
        cost: dict[str, dict[str, int]] = {"up": {}, "down": {}}
        for row in record.costs:
            if row["round"] == number and row["direction"]:
                kinds = cost[row["direction"]]
                kinds[row["payload"]] = kinds.get(row["payload"], 0) + row["bytes"]
        stage, last = divmod(number - 1, 2)
        first = int(stage > 0 and not last)
        assert cost["down"] == {"model": (cohort + members * (last + first)) * model}
        assert cost["up"]["model"] == cohort * model
        assert cost["up"].get("gradient", 0) == (last + first) * members * gradient
        assert cost["up"].get("gram", 0) == last * members * 4 * (136 + 78)
        assert set(cost["up"]) <= {"model", "metrics", "gradient", "gram"}


def test_gradients_are_sums_over_all_members(tmp_path: Path) -> None:
    experiment = cuber()
    _, states = trace(experiment, tmp_path / "run")
    for stage, state in enumerate((states[1], states[3])):
        stream = stream_of(experiment)
        y = torch.cat([stream.train(i, stage).y for i in stream.members(stage)])
        slow = gradients_of(state.params, pooled(experiment, stage), y)
        for name, value in state.old[stage].gradients.items():
            assert torch.allclose(value, len(y) * slow[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 1.5}, "energy"),
        ({"overlap": -0.1}, "overlap"),
        ({"pull": -1.0}, "pull"),
        ({"head": "none"}, "head"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(method={"name": "cuber", **options})
