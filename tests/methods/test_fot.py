"""FOT: the invariants of orthogonal training, and its bases against singular values by hand."""

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
from fedcl.assembly import build_site
from fedcl.config import Experiment, parse
from fedcl.core.client import Client
from fedcl.core.errors import ConfigError
from fedcl.core.params import Params
from fedcl.core.stream import Stream
from fedcl.core.subspace import unpack
from fedcl.core.task import ClientTask, Examples
from fedcl.methods.fot import FOT, Inputs
from tests.tiny import (
    CNN,
    angles,
    assert_same_runs,
    first_parameters,
    same,
    scenario,
    tiny,
    trace,
    watched,
)

DOUBLE = {"training.dtype": "float64"}
MLP = {"name": "mlp", "hidden": [12, 8]}


def fot(
    changes: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **options: Any
) -> Experiment:
    """The tiny experiment with FOT, in float64."""
    return tiny(
        {**DOUBLE, **(changes or {})}, method={"name": "fot", **options}, model=model or MLP
    )


def stream_of(experiment: Experiment) -> Stream:
    stream = build_site(experiment).population.stream  # type: ignore[attr-defined]
    assert isinstance(stream, Stream)
    return stream


def pooled(experiment: Experiment, stage: int, clients: Sequence[int] | None = None) -> Tensor:
    """The inputs of all clients at a stage, in float64."""
    stream = stream_of(experiment)
    ids = stream.members(stage) if clients is None else clients
    return torch.cat([stream.train(i, stage).x for i in ids]).double()


def flat(params: Params, name: str, biases: bool = False) -> Tensor:
    """A layer's weight as an (out, d) matrix, with its bias as the last column."""
    weight = params[name].double().flatten(1)
    bias = params.get(name.removesuffix("weight") + "bias")
    return torch.cat([weight, bias.double()[:, None]], 1) if biases and bias is not None else weight


# --- The invariants (METHODS.md, 1.8). ---


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


# --- The basis, the slow way. ---


def mlp_inputs(params: Params, x: Tensor) -> dict[str, Tensor]:
    """The inputs of the layers of MLP, by hand."""
    found = {"fc1.weight": x.flatten(1)}
    found["fc2.weight"] = F.relu(found["fc1.weight"] @ params["fc1.weight"].T + params["fc1.bias"])
    found["head.weight"] = F.relu(found["fc2.weight"] @ params["fc2.weight"].T + params["fc2.bias"])
    return found


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


def slow_basis(x: Tensor, old: Tensor | None, energy: float) -> tuple[Tensor, Tensor]:
    """Returns the principal directions of the residual that hold the share, and all energies."""
    rest = x if old is None else x - x @ old @ old.T
    _, singular, vectors = torch.linalg.svd(rest, full_matrices=False)
    total = float(x.square().sum())
    held = total - float(rest.square().sum())
    k = 0
    while held + float(singular[:k].square().sum()) < energy * total * (1 - 1e-12):
        k += 1
    new = vectors[:k].T
    return (new if old is None else torch.cat([old, new], 1)), singular.square() / total


def held_share(x: Tensor, basis: Tensor) -> float:
    return float((x @ basis).square().sum() / x.square().sum())


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


def test_a_wide_sketch_finds_the_gram_matrix_subspace(tmp_path: Path) -> None:
    folder = crafted(tmp_path, [[3.0, 2.5, 2.0, 0.1, 0.1, 0.1], [3.0, 2.5, 2.0, 0.1, 0.1, 0.1]])
    found = {}
    for gpse in ("gram", "sketch"):
        options: dict[str, Any] = {"gpse": gpse, "energy": 0.9}
        if gpse == "sketch":
            options["sketch_columns"] = 200.0
        experiment = linear(folder, clients=2, **options)
        _, states = trace(experiment, tmp_path / gpse)
        found[gpse] = states[0].basis["head.weight"]
    assert found["gram"].shape == found["sketch"].shape == (8, 3)
    assert angles(found["gram"], found["sketch"]) < 0.02


# --- Ranks by hand: one linear layer, whose inputs are the data. ---


def write_domains(folder: Path, inputs: Sequence[np.ndarray]) -> None:
    """Writes a data set with a domain for each array of inputs, the same for training and test."""
    x = np.concatenate(inputs)
    y = np.arange(len(x), dtype=np.int64) % 2
    domain = np.repeat(np.arange(len(inputs)), [len(part) for part in inputs])
    columns = {"x": x, "y": y, "domain": domain}
    both: dict[str, Any] = {f"{k}_{s}": v for k, v in columns.items() for s in ("train", "test")}
    np.savez(folder / "crafted.npz", **both)


def crafted(folder: Path, energies: Sequence[Sequence[float]], width: int = 8) -> Path:
    """Writes one domain for each list: its rows are unit vectors times the roots of the energies,
    each twice, so that two clients can share them; its own right singular vectors are the units."""
    inputs = []
    for own in energies:
        rows = np.repeat(np.diag(np.sqrt(np.array(own) / 2)), 2, 0)
        rows = np.pad(rows, ((0, 0), (0, width - len(own))))
        inputs.append(rows.astype(np.float32))
    write_domains(folder, inputs)
    return folder


def linear(folder: Path, clients: int = 1, dtype: str = "float64", **options: Any) -> Experiment:
    return parse(
        {
            "dataset": {"name": "npz", "root": str(folder), "file": "crafted.npz"},
            "stream": {
                "name": "domain_incremental",
                "transform": "column",
                "tasks": 0,
                "clients": clients,
            },
            "model": {"name": "mlp", "hidden": [], "bias": False},
            "method": {"name": "fot", **options},
            "training": {"rounds": 1, "dtype": dtype, "local": {"name": "sgd", "lr": 0.1}},
            "engine": {"name": "serial"},
            "checkpoint": {"seconds": 0},
        }
    )


def ranks(experiment: Experiment, out: Path) -> list[int]:
    _, states = trace(experiment, out)
    return [state.basis["head.weight"].shape[1] for state in states]


# The second domain: 80 % lie in the first one's single direction, 20 % in sixteen others.
EXAMPLE = [
    [1.0],
    [0.8, 0.050, 0.048, 0.0080, 0.0079, 0.0078, 0.0077, 0.0076, 0.0075, *[0.00695] * 8],
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("rule", "added", "held"), [("energy", 2, 0.898), ("paper_code", 8, 0.9445)]
)
def test_the_two_rules_for_the_rank(
    rule: str, added: int, held: float, dtype: str, tmp_path: Path
) -> None:
    """METHODS.md, 1.4: an old basis holds 80 %, and .87 is asked for. rho^2 = .2, rho = .4472.

    energy: c >= 1 - .13 / .2 = .35 of the rest: .050 is 25 %, .050 + .048 is 49 %: two, and
    .8 + .098 = .898 are held. The code: c >= 1 - .13 / .4472 = .7093: with seven directions
    .1370 / .2 = 68.5 %, with eight .1445 / .2 = 72.25 %, and .9445 are held.
    """
    folder = crafted(tmp_path, EXAMPLE, width=20)
    experiment = linear(folder, energy=0.87, eps_rule=rule, dtype=dtype)
    assert float(sum(EXAMPLE[1])) == pytest.approx(1, abs=2e-3)
    _, states = trace(experiment, tmp_path / "run")
    basis = states[1].basis["head.weight"]
    assert [state.basis["head.weight"].shape[1] for state in states] == [1, 1 + added]
    assert held_share(pooled(experiment, 1).flatten(1), basis) == pytest.approx(held, abs=1e-3)


def test_energy_step_raises_what_is_asked_for(tmp_path: Path) -> None:
    """At stage 1 energy .80 + .07 = .87 asks for two directions, .80 for none, 1.0 for all."""
    folder = crafted(tmp_path, EXAMPLE, width=20)
    for number, (step, added) in enumerate(((0.0, 0), (0.07, 2), (0.5, 16))):
        experiment = linear(folder, energy=0.799, energy_step=step)
        assert ranks(experiment, tmp_path / f"run {number}") == [1, 1 + added]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rule", ["energy", "paper_code"])
@pytest.mark.parametrize("energy", [0.9, 0.99999])
def test_nothing_new_adds_nothing(energy: float, rule: str, dtype: str, tmp_path: Path) -> None:
    """Inputs inside the old span add no direction, not even by the rule that takes at least one."""
    folder = crafted(tmp_path, [[3.0, 2.9, 2.8], [0.5, 1.0, 5.0]])
    experiment = linear(folder, clients=2, energy=energy, eps_rule=rule, dtype=dtype)
    assert ranks(experiment, tmp_path / "run") == [3, 3]


def test_the_codes_rule_takes_at_least_one_direction(tmp_path: Path) -> None:
    """99 % are held and .9 is asked for: the energy rule adds nothing, the released code one."""
    folder = crafted(tmp_path, [[1.0], [0.99, 0.01]])
    for rule, added in (("energy", 0), ("paper_code", 1)):
        experiment = linear(folder, energy=0.9, eps_rule=rule)
        assert ranks(experiment, tmp_path / rule) == [1, 1 + added]


@pytest.mark.parametrize("rule", ["energy", "paper_code"])
@pytest.mark.parametrize("gpse", ["gram", "sketch"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_whole_energy_is_the_span_and_no_more(
    dtype: str, gpse: str, rule: str, tmp_path: Path
) -> None:
    """Rounded on their way, Gram matrices of rank 3 and 4 have full rank: the noise is left out."""
    generator = np.random.default_rng(0)
    space = np.linalg.qr(generator.normal(size=(16, 16)))[0]
    x = [generator.normal(size=(40, rank)) @ space[:rank] for rank in (3, 4)]
    write_domains(tmp_path, [part.astype(np.float32) for part in x])
    options = {"energy": 1.0, "gpse": gpse, "eps_rule": rule}
    assert ranks(linear(tmp_path, 2, dtype, **options), tmp_path / "run") == [3, 4]


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


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_statistics_of_the_local_models(engine: str, tmp_path: Path) -> None:
    """The basis is that of the cohort's inputs, each through its own model after the last round."""
    options = {"statistics_model": "local", "statistics_clients": "cohort", "energy": 0.8}
    method = {"name": "fot", **options}
    experiment = tiny(DOUBLE, method=method, model=MLP, engine={"name": engine})
    _, states = trace(experiment, tmp_path / "run")
    _, watching = watched(experiment)
    memories: dict[int, Any] = {}
    kept = [result for result in watching.results if result.memories]
    for result in kept[:2]:  # a cohort of three in fold blocks of two
        memories |= dict(result.memories)
    assert len(memories) == 3
    inputs = {i: mlp_inputs(params, pooled(experiment, 0, [i])) for i, params in memories.items()}
    stacked = {
        name: torch.cat([inputs[i][name] for i in sorted(inputs)]) for name in states[1].basis
    }
    for name, x in stacked.items():
        slow, _ = slow_basis(x, None, 0.8)
        assert angles(states[1].basis[name], slow) < 1e-6, name
    common = mlp_inputs(states[1].params, pooled(experiment, 0, sorted(inputs)))
    x, k = common["head.weight"], states[1].basis["head.weight"].shape[1]
    vectors = torch.linalg.svd(x, full_matrices=False).Vh[:k].T
    assert angles(states[1].basis["head.weight"], vectors) > 1e-4, "it must not be the global model"
    # After the statistics the local models are forgotten again.
    forgotten = [r.memories for r in watching.results if r.memories and None in r.memories.values()]
    assert {i for memory in forgotten for i in memory} >= set(memories)


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
