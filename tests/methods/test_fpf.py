"""k-FPF: FedAvg without finetunings; when they come, what they may change, and what they send."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.consolidation.plasticity import relative_changes
from fedcl.core.errors import ConfigError
from fedcl.core.method import Sizes
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.replay.memory import RowwiseCrossEntropy
from fedcl.methods.fpf import FPF, Finetuning
from tests.tiny import (
    CNN,
    TABLE,
    distance,
    first_parameters,
    same,
    scenario,
    stream_of,
    tiny,
    trace,
    watched,
)

# 16 float32 inputs, an int64 label and stage, and one byte for each of 4 classes.
ROW = 16 * 4 + 8 + 8 + 4
PARAMS, HEAD = 4 * (16 * 12 + 12 + 12 * 4 + 4), 4 * (12 * 4 + 4)


def fpf(changes: dict[str, Any] | None = None, **options: Any) -> Experiment:
    return tiny(changes, method={"name": "fpf", **options})


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("nothing", ["k", "budget"])
def test_reduces_to_fedavg_without_finetunings(engine: str, nothing: str) -> None:
    for kind, model in (("class", TABLE["model"]), ("task", TABLE["model"]), ("domain", CNN)):
        tables = {"model": model, "engine": {"name": engine}}
        plain = fedcl.run(tiny(scenario(kind), **tables))
        found = fedcl.run(tiny(scenario(kind), method={"name": "fpf", nothing: 0}, **tables))
        assert same(dict(found.params), dict(plain.params)), kind
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])
        assert found.summary["bytes_by_payload"] == plain.summary["bytes_by_payload"]


@pytest.mark.parametrize(
    ("rounds", "k", "due"),
    [
        (6, 1, [5]),
        (6, 2, [2, 5]),
        (6, 3, [1, 3, 5]),
        (5, 2, [2, 4]),
        (3, 9, [0, 1, 2]),
    ],
)
def test_finetunings_come_k_times_a_stage_and_after_the_last_round(
    rounds: int, k: int, due: list[int]
) -> None:
    experiment = fpf({"training.rounds": rounds, "stream.tasks": 3}, k=k)
    _, engine = watched(experiment)
    at: dict[str, list[list[int]]] = {"train": [[], [], []], "finetune": [[], [], []]}
    for request, ids in engine.requests:
        at[request.name][request.position.stage].append(request.position.round)
        assert len(ids) == 3
    assert at["train"] == [list(range(rounds))] * 3
    assert at["finetune"] == [[], due, due], "in the first stage nothing can be forgotten"


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_finetuning_changes_nothing_but_its_layers(
    engine: str, decay: float, tmp_path: Path
) -> None:
    """Weight decay and momentum are no way out: bits of the other layers stay."""
    changes: dict[str, Any] = {
        "engine.name": engine,
        "training.local.weight_decay": decay,
        "training.local.momentum": 0.5 if decay else 0.0,
        "training.rounds": 1,
        **scenario("class"),
    }
    _, with_it = trace(fpf(changes, k=1, layers=["head"]), tmp_path / "with")
    _, without = trace(fpf(changes, k=0), tmp_path / "without")
    assert same(dict(with_it[0].params), dict(without[0].params))
    for name, value in with_it[1].params.items():
        if name.startswith("head."):
            assert float((value - without[1].params[name]).abs().max()) > 1e-3
        else:
            assert same(value, without[1].params[name]), name


def test_a_finetuning_is_sgd_of_the_layer_on_the_memory(tmp_path: Path) -> None:
    """One client, full batches, one step: the head takes its gradient's step, row by row."""
    changes = {
        **scenario("class"),
        "training.dtype": "float64",
        "training.rounds": 1,
        "training.cohort": 0,
        "training.local": {"name": "sgd", "lr": 0.3, "batch_size": 10_000},
        "stream.clients": 1,
    }
    rest = {"passes": 3, "layers": ["head"]}
    experiment = fpf(changes, k=1, budget=10**6, **rest)
    _, (_, found) = trace(experiment, tmp_path / "with")
    _, (_, start) = trace(fpf(changes, k=0, **rest), tmp_path / "without")
    site, stream = build_site(experiment), stream_of(experiment)
    leaves = {k: v.clone().requires_grad_() for k, v in start.params.items()}
    shares = [stream.train(0, stage) for stage in (0, 1)]
    x, y = (torch.cat([getattr(share, key) for share in shares]) for key in ("x", "y"))
    loss = torch.nn.functional.cross_entropy(Net(site.model, leaves)(x.double()), y)
    gradient = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    slow = {
        name: value - 0.3 * gradient[name] if name.startswith("head.") else value
        for name, value in start.params.items()
    }
    assert distance(slow, dict(found.params)) < 1e-12


def test_auto_takes_the_layer_that_changed_most(tmp_path: Path) -> None:
    """Measured against the states: ends of stages, and the model just before the finetuning."""
    changes = {**scenario("class"), "stream.tasks": 2, "training.rounds": 2}
    experiment = tiny({**changes, "dataset.classes": 6, "stream.tasks": 3, "method.name": "fpf"})
    _, engine = watched(experiment)
    asked = {
        (request.position.stage, request.position.round): request.message
        for request, _ in engine.requests
        if request.name == "finetune"
    }
    _, states = trace(experiment, tmp_path / "run")
    ends: list[Params] = [states[2 * stage + 1].params for stage in range(3)]
    for (stage, _), message in asked.items():
        assert isinstance(message, Finetuning)
        size = Counter(relative_changes(message.params, ends[stage - 1]))
        if stage == 2:
            size.update(relative_changes(ends[1], ends[0]))
        most = max(size, key=lambda layer: size[layer])
        assert message.names == tuple(f"{most}.{kind}" for kind in ("weight", "bias"))
    assert len(asked) == 4


def test_bytes_are_those_of_the_chosen_layers() -> None:
    """Four rounds and, in the second stage, two finetunings of a cohort of three."""
    record = fedcl.run(fpf(scenario("class"), k=2, layers=["head"]))
    assert record.summary["bytes_by_payload"] == {
        "up": {"model": 3 * (4 * PARAMS + 2 * HEAD), "metrics": 3 * 6 * 16},
        "down": {"model": 3 * 6 * PARAMS},
    }


def test_passes_are_those_of_the_finetunings_and_fewer_than_replays() -> None:
    """Replay passes its memory in every round; k-FPF `passes` times in each of k."""
    changes = {**scenario("class"), "training.rounds": 8, "training.cohort": 0}
    experiment = fpf(changes, k=2, passes=1, budget=4 * ROW)
    stream = stream_of(experiment)
    own = sum(len(stream.train(client, stage)) for client in range(5) for stage in range(2))
    found = fedcl.run(experiment)
    examples = {
        name: sum(row["examples"] for row in found.costs if row["payload"] == name)
        for name in ("train", "finetune")
    }
    assert examples == {"train": 8 * own, "finetune": 2 * 5 * 4}
    replay = fedcl.run(tiny(changes, method={"name": "replay", "budget": 4 * ROW}))
    replayed = sum(row["examples"] or 0 for row in replay.costs) - 8 * own
    # Four rows of the first stage in the first round, and the two that stay in the others.
    assert replayed == 5 * (4 + 7 * 2) > examples["finetune"]


def test_the_memory_is_shared_by_the_stages_within_the_budget() -> None:
    experiment = fpf({"stream.tasks": 3, "training.cohort": 0}, budget=7 * ROW + 5)
    _, engine = watched(experiment)
    for result in engine.results:
        for memory in result.memories.values():
            counts = Counter(memory.extra["stage"].tolist())
            assert memory.nbytes <= 7 * ROW
            assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_clients_without_rows_take_part_without_steps(kind: str, engine: str) -> None:
    """A budget below one row: nobody remembers, and the finetuning leaves the model alone."""
    changes = {**scenario(kind), "engine.name": engine}
    found = fedcl.run(fpf(changes, budget=ROW - 1))
    plain = fedcl.run(tiny(changes))
    assert same(dict(found.params), dict(plain.params))
    steps = [row["steps"] for row in found.costs if row["payload"] == "finetune"]
    assert steps == [0, 0]


@pytest.mark.parametrize("kind", ["class", "task"])
def test_the_logits_that_remembered_rows_are_compared_by(kind: str) -> None:
    experiment = fpf(scenario(kind), budget=6 * ROW)
    _, engine = watched(experiment)
    memory = next(r.memories[0] for r in engine.results if 0 in r.memories)
    site = build_site(experiment)
    client = site.population.client(0, 1, site.model, memory, seed=0)
    message = Finetuning({}, (), separate=kind == "task")
    rows = FPF(passes=2).buffer(client, message)
    heads = {"class": [True] * 4, "task": [True, True, False, False]}
    assert len(rows) == 2 * len(memory) > 0
    assert rows.extra["head"].tolist() == [heads[kind]] * len(rows)
    assert same(rows.x, torch.cat([memory.x, memory.x]))
    value = RowwiseCrossEntropy()(Net(site.model), rows, client.task, message)
    assert value.shape == (len(rows),)


def test_needs() -> None:
    sizes = Sizes(PARAMS, {}, {}, ROW, share=10, stages=3, examples=100, item=4)
    found = FPF(budget=5 * ROW, passes=4).needs(sizes)
    assert (found.state, found.memory, found.client) == (PARAMS, 5 * ROW, 20 * ROW)
    assert found.training == "projected"
    assert FPF(k=0).needs(sizes) == FPF(budget=0).needs(sizes)
    assert FPF(k=0).needs(sizes).memory == 0


def test_it_forgets_less_than_fedavg() -> None:
    changes = {**scenario("class"), "training.rounds": 6, "training.cohort": 0}
    plain = fedcl.run(tiny(changes))
    found = fedcl.run(fpf(changes, modules=1.0))
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.2


def test_a_layer_that_is_not_there() -> None:
    """Said before the first round, not when the first finetuning is due."""
    with pytest.raises(ValueError, match="no layer 'fc9'; it has fc1, head"):
        FPF(layers=("fc9",)).init(first_parameters(fpf()))
    with pytest.raises((ConfigError, ValueError), match="no layer 'fc9'"):
        fedcl.run(fpf(layers=["fc9"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1}, "budget"),
        ({"k": -1}, "k must"),
        ({"passes": 0}, "passes"),
        ({"modules": 0.0}, "modules"),
        ({"modules": 1.5}, "modules"),
        ({"layers": []}, "layers"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fpf(**options)
