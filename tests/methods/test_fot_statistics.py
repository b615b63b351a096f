"""FOT's bases and sketches against singular values by hand, and whose inputs they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.client import Client
from fedcl.core.features.moments import Inputs
from fedcl.core.features.subspace import unpack
from fedcl.core.params import Params
from fedcl.core.task import ClientTask, Examples
from fedcl.methods.fot import FOT
from tests.fot_tools import (
    DOUBLE,
    MLP,
    fot,
    held_share,
    mlp_inputs,
    pooled,
    slow_basis,
)
from tests.tiny import (
    CNN,
    Watching,
    angles,
    first_parameters,
    stream_of,
    tiny,
    trace,
    watched,
)

# --- The basis, the slow way. ---


def conv_inputs(x: Tensor) -> Tensor:
    """The 3x3 patches of zero-padded images, place by place; x is (n, channels, 4, 4)."""
    padded = F.pad(x, (1, 1, 1, 1))
    rows = [
        padded[n, :, i : i + 3, j : j + 3].flatten()
        for n in range(len(x))
        for i in range(x.shape[2])
        for j in range(x.shape[3])
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.95])
def test_the_federated_basis_is_that_of_the_pooled_inputs(energy: float, tmp_path: Path) -> None:
    experiment = fot(energy=energy)
    _, states = trace(experiment, tmp_path / "run")
    old: dict[str, Tensor] = {}
    for stage, state in enumerate((states[1], states[3])):
        inputs = mlp_inputs(state.params, pooled(experiment, stage))
        for name, x in inputs.items():
            slow, energies = slow_basis(x, old.get(name), energy)
            basis = state.basis[name]
            assert basis.shape == slow.shape, name
            assert angles(basis, slow) < 1e-6
            assert held_share(x, basis) >= energy - 1e-12
            before = old[name].shape[1] if name in old else 0
            if basis.shape[1] > before:
                assert held_share(x, basis[:, :-1]) < energy
            assert float(energies.sum()) <= 1 + 1e-12
        old = dict(state.basis)


def test_the_basis_of_a_convolution_is_that_of_its_patches(tmp_path: Path) -> None:
    experiment = fot(model={**CNN, "groups": 0}, energy=0.7, biases=True)
    _, states = trace(experiment, tmp_path / "run")
    x = conv_inputs(pooled(experiment, 0))
    slow, _ = slow_basis(F.pad(x, (0, 1), value=1.0), None, 0.7)
    assert angles(states[1].basis["conv1.weight"], slow) < 1e-6
    hidden = F.conv2d(pooled(experiment, 0), states[1].params["conv1.weight"], padding=1)
    hidden = hidden + states[1].params["conv1.bias"][:, None, None]
    x = F.max_pool2d(F.relu(hidden), 2).flatten(1)
    slow, _ = slow_basis(F.pad(x, (0, 1), value=1.0), None, 0.7)
    assert angles(states[1].basis["fc.weight"], slow) < 1e-6


def client_of(experiment: Experiment, data: Examples, id: int = 0, seed: int = 0) -> Client:
    site = build_site(experiment)
    task = ClientTask(*(torch.tensor(0) for _ in range(5)))
    return Client(id, site.model, data, task, None, seed)


def test_the_sum_of_clients_gram_matrices_is_that_of_their_union() -> None:
    experiment = fot()
    method, stream = FOT(), stream_of(experiment)
    params = first_parameters(experiment)
    shares = [stream.train(i, 0) for i in range(5)]
    shares = [Examples(part.x.double(), part.y) for part in shares]
    generator = torch.Generator().manual_seed(0)
    basis = {"fc1.weight": torch.linalg.qr(torch.randn(16, 3, generator=generator).double()).Q}
    message = Inputs(params, basis, ("fc1.weight", "fc2.weight"))
    union = Examples(torch.cat([s.x for s in shares]), torch.cat([s.y for s in shares]))
    whole = method.gram(client_of(experiment, union), message)
    parts = [method.gram(client_of(experiment, part), message) for part in shares]
    x = mlp_inputs(params, union.x)
    for name in message.layers:
        gram = sum(part.tensors[f"gram/{name}"] for part in parts)
        assert isinstance(gram, Tensor)
        assert torch.allclose(gram, whole.tensors[f"gram/{name}"], rtol=1e-12, atol=1e-10)
        u = basis.get(name, torch.zeros(x[name].shape[1], 0).double())
        rest = x[name] - x[name] @ u @ u.T
        assert torch.allclose(unpack(gram), rest.T @ rest, rtol=1e-10, atol=1e-9)
        n, total, residual, n_rho = sum(part.tensors[f"norms/{name}"] for part in parts).tolist()  # type: ignore[union-attr]
        assert n == 160
        assert total == pytest.approx(float(x[name].square().sum()), rel=1e-12)
        assert residual == pytest.approx(float(rest.square().sum()), rel=1e-10)
        # The code's ratio is one of norms, averaged by numbers of examples.
        rhos = []
        for part in shares:
            own = mlp_inputs(params, part.x)[name]
            rhos.append(len(part) * float((own - own @ u @ u.T).norm() / own.norm()))
        assert n_rho == pytest.approx(sum(rhos), rel=1e-10)
    assert whole.weight == 1.0 and whole.state is None


# --- The sketch. ---


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_each_client_draws_a_matrix_of_its_own(noise: Any) -> None:
    """With the unit vectors as data, the first layer's sketch is the random matrix itself."""
    experiment = fot()
    method = FOT(gpse="sketch", sketch_noise=noise, sketch_columns=2.0)
    units = Examples(
        torch.eye(16).double().reshape(16, 1, 4, 4), torch.zeros(16, dtype=torch.int64)
    )
    message = Inputs(first_parameters(experiment), {}, ("fc1.weight", "head.weight"))

    def drawn(seed: int) -> Tensor:
        reply = method.sketch(client_of(experiment, units, seed=seed), message)
        assert reply.tensors["sketch/head.weight"].shape == (8, 16)
        return reply.tensors["sketch/fc1.weight"]

    matrices = [drawn(seed) for seed in (0, 1)]
    assert torch.equal(drawn(0), matrices[0])
    assert matrices[0].shape == (16, 32)
    assert float((matrices[0] - matrices[1]).abs().min()) > 0
    values = torch.cat(matrices).flatten()
    if noise == "uniform":
        assert float(values.abs().max()) <= 1
        assert float(values.std()) == pytest.approx(1 / 3**0.5, abs=0.05)
    else:
        assert float(values.abs().max()) > 2
        assert float(values.std()) == pytest.approx(1, abs=0.08)
    # No two columns and no two rows of a matrix are the same draws.
    assert len(set(values.tolist())) == len(values)


def test_matrices_differ_between_clients_and_stages() -> None:
    _, engine = watched(fot(gpse="sketch"))
    seeds = set()
    site = build_site(fot())
    for request, ids in engine.requests:
        if request.name == "sketch":
            assert ids == (0, 1, 2, 3, 4)
            seeds |= {client.seed for client in site.clients(request, ids, {})}
    assert len(seeds) == 2 * 5


# --- Where the statistics come from. ---


def test_statistics_of_members_or_of_the_cohort() -> None:
    for clients in ("members", "cohort"):
        _, engine = watched(fot(statistics_clients=clients))
        asked = [ids for request, ids in engine.requests if request.name == "gram"]
        last = [
            ids
            for request, ids in engine.requests
            if request.name == "train" and request.position.round == 1
        ]
        assert asked == ([(0, 1, 2, 3, 4)] * 2 if clients == "members" else last)
        assert all(len(ids) == 3 for ids in last)


def local_inputs(
    experiment: Experiment, watching: Watching
) -> list[tuple[dict[str, Tensor] | None, set[int]]]:
    """Returns, for each stage, the layers' inputs behind its statistics, and whose they are.

    Each client's inputs go through the model that it kept in the stage's last round.
    """
    found: list[tuple[dict[str, Tensor] | None, set[int]]] = []
    trained: dict[int, Params] = {}
    results = iter(watching.results)
    for request, ids in watching.requests:
        memories: dict[int, Any] = {}
        for _ in range(-(-len(ids) // experiment.training.fold)):
            memories |= dict(next(results).memories)
        if request.name == "train":
            if request.position.round == experiment.training.rounds - 1:
                trained = {i: memory.params for i, memory in memories.items()}
            continue
        if not ids:  # nobody answered: the question is repeated
            continue
        # After the statistics a local model is forgotten again.
        assert all(memories[i] is None for i in set(ids) & set(trained))
        behind = sorted(set(ids) & set(trained))
        parts = [
            mlp_inputs(trained[i], pooled(experiment, request.position.stage, [i])) for i in behind
        ]
        inputs = {n: torch.cat([part[n] for part in parts]) for n in parts[0]} if parts else None
        found.append((inputs, set(behind)))
        trained = {}
    return found


LOCAL = {
    "name": "fot",
    "statistics_model": "local",
    "statistics_clients": "cohort",
    "energy": 0.8,
}


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_statistics_of_the_local_models(engine: str, tmp_path: Path) -> None:
    """The basis is that of the cohort's inputs, each through its own model after the last round."""
    experiment = tiny(DOUBLE, method=LOCAL, model=MLP, engine={"name": engine})
    _, states = trace(experiment, tmp_path / "run")
    (inputs, behind), _ = local_inputs(experiment, watched(experiment)[1])
    assert inputs is not None and len(behind) == 3
    for name, x in inputs.items():
        slow, _ = slow_basis(x, None, 0.8)
        assert angles(states[1].basis[name], slow) < 1e-6, name
    x = mlp_inputs(states[1].params, pooled(experiment, 0, sorted(behind)))["head.weight"]
    basis = states[1].basis["head.weight"]
    common = torch.linalg.svd(x, full_matrices=False).Vh[: basis.shape[1]].T
    assert angles(basis, common) > 1e-4, "it must not be the global model"


@pytest.mark.parametrize("seed", [0, 3])  # with seed 3 an old model meets a later stage
def test_who_missed_the_last_round_adds_nothing_to_local_statistics(
    seed: int, tmp_path: Path
) -> None:
    """Nor does a model kept from an earlier stage, whose statistics the client missed."""
    changes = {**DOUBLE, "seed": seed, "stream.tasks": 4, "training.availability": 0.6}
    experiment = tiny(changes, method=LOCAL, model=MLP)
    _, states = trace(experiment, tmp_path / "run")
    found = local_inputs(experiment, watched(experiment)[1])
    assert min(len(behind) for _, behind in found) < 3
    old: dict[str, Tensor] = {}
    for state, (inputs, _) in zip(states[1::2], found, strict=True):
        for name, basis in state.basis.items():
            if inputs is None:
                assert torch.equal(basis, old.get(name, basis[:, :0]))
            else:
                slow, _ = slow_basis(inputs[name], old.get(name), 0.8)
                assert angles(basis, slow) < 1e-6
        old = dict(state.basis)


def test_a_convolution_of_no_examples_has_zero_statistics() -> None:
    changes = {"training.availability": 0.5}
    for options in ({}, {"gpse": "sketch", "biases": True}):
        fedcl.run(tiny(changes, method={**LOCAL, **options}, model=CNN))
