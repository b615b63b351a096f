"""Dark experience replay: its loss, the logits that it stores, and what it is equal to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError
from fedcl.core.model import Net
from fedcl.core.replay.memory import Rehearsal, Reservoir
from fedcl.core.task import Examples
from fedcl.core.tree import nbytes
from fedcl.methods.der import DarkExperience, Der
from fedcl.planned import Planned
from tests.core import toys
from tests.tiny import (
    TABLE,
    Interrupted,
    assert_same_folders,
    distance,
    first_parameters,
    interrupt_after,
    logits,
    same,
    scenario,
    stream_of,
    tiny,
    watched,
)

# Inputs, label, stage, one byte for each of 4 classes, and a key; then 4 float32 logits.
SAMPLED = 16 * 4 + 8 + 8 + 4 + 8
ROW = SAMPLED + 4 * 4
TWO = {**scenario("class"), "stream.tasks": 2, "training.cohort": 0}


def der(rows: int, changes: dict[str, Any] | None = None, **options: Any) -> Experiment:
    method = {"name": "der", "budget": rows * ROW, **options}
    return tiny({**TWO, **(changes or {})}, method=method)


def memories(experiment: Experiment) -> dict[int, list[Reservoir]]:
    """Returns each client's memories, in the order in which they changed."""
    _, engine = watched(experiment)
    found: dict[int, list[Reservoir]] = {}
    for result in engine.results:
        for client, memory in result.memories.items():
            found.setdefault(client, []).append(memory)
    return found


# --- Identities. ---


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_reduces_to_fedavg_without_a_budget(kind: str, engine: str) -> None:
    changes = {**scenario(kind), "engine.name": engine}
    none = {"name": "der", "budget": 0, "alpha": 3.0, "beta": 0.5}
    plain, found = fedcl.run(tiny(changes)), fedcl.run(tiny(changes, method=none))
    assert same(dict(found.params), dict(plain.params))
    assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("kind", ["class", "task"])
def test_reduces_to_replay_of_a_reservoir_where_logits_weigh_nothing(
    kind: str, engine: str
) -> None:
    """With room for as many examples: the same ones, and the same run to the bit."""
    changes = {**TWO, **scenario(kind), "engine.name": engine}
    replay = {"name": "replay", "selection": "reservoir", "budget": 9 * SAMPLED}
    plain = fedcl.run(tiny(changes, method=replay))
    same_loss = {"name": "der", "budget": 9 * ROW, "alpha": 0.0, "beta": 1.0}
    found = fedcl.run(tiny(changes, method=same_loss))
    assert same(dict(found.params), dict(plain.params))
    assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])


# --- The loss. ---


def batch() -> Examples:
    """Returns two rows of stage 1 and two remembered ones of stage 0; the logits are the inputs."""
    x = torch.tensor(
        [[1.0, 0.0, -1.0], [0.0, 2.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64
    )
    stored = torch.zeros_like(x)
    stored[2:] = torch.tensor([[1.0, 1.0, 1.0], [0.0, 3.0, 1.0]])
    head = torch.ones(4, 3, dtype=torch.bool)
    head[3] = torch.tensor([True, False, True])
    extra = {"stage": torch.tensor([1, 1, 0, 0]), "head": head, "logits": stored}
    return Examples(x, torch.tensor([0, 1, 0, 2]), extra)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.0), (2.0, 0.25), (0.0, 0.0)])
def test_the_loss_by_hand(alpha: float, beta: float) -> None:
    rows = batch()
    task = toys.client_task(3, index=1)
    found = DarkExperience(alpha, beta)(Net(nn.Identity()), rows, task, None)
    entropies = [
        -float(torch.log_softmax(row, 0)[label])
        for row, label in zip(rows.x[:3], rows.y[:3], strict=True)
    ]
    entropies.append(-float(torch.log_softmax(rows.x[3, [0, 2]], 0)[1]))
    # Squares of (2, 0, -1) and of (0, -3, 0), over all three classes, whatever the head allows.
    errors = [5.0 / 3.0, 9.0 / 3.0]
    assert found[:2].tolist() == pytest.approx(entropies[:2], rel=1e-12)
    expected = [alpha * e + beta * h for e, h in zip(errors, entropies[2:], strict=True)]
    assert found[2:].tolist() == pytest.approx(expected, rel=1e-12)


def test_present_examples_are_not_compared_with_logits() -> None:
    """Neither their losses nor their gradients know the column, however far off it is."""
    rows = batch()
    rows.extra["logits"][:2] = 1e200
    leaf = rows.x.clone().requires_grad_()
    task = toys.client_task(3, index=1)
    loss = DarkExperience(1.0, 0.0)(
        Net(nn.Identity()), Examples(leaf, rows.y, rows.extra), task, None
    )
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    plain = torch.softmax(rows.x[:2], 1) - F.one_hot(rows.y[:2], 3)
    assert torch.allclose(gradient[:2], plain, rtol=0, atol=1e-15)
    # d/dz mean (z - h)^2 = 2 (z - h) / classes
    dark = 2 * (rows.x[2:] - rows.extra["logits"][2:]) / 3
    assert torch.allclose(gradient[2:], dark, rtol=0, atol=1e-15)


def test_one_step_on_present_and_remembered_examples_by_hand() -> None:
    """A client with 3 present and 2 remembered rows, one full batch, in float64."""
    changes = {
        "training.dtype": "float64",
        "training.rounds": 1,
        "training.local.batch_size": 1000,
        "stream.clients": 1,
    }
    experiment = der(40, changes, alpha=0.7, beta=0.3)
    _, engine = watched(experiment)
    first, second = (request.message.params for request, _ in engine.requests)
    reservoir = engine.results[0].memories[0]
    stream = stream_of(experiment)
    share = stream.train(0, 1)
    params = {name: value.clone().requires_grad_() for name, value in second.items()}
    own = F.cross_entropy(logits(params, share.x.double()), share.y, reduction="sum")
    kept = reservoir.rows
    answers = logits(params, kept.x)
    error = (answers - kept.extra["logits"]).square().sum() / 4
    entropy = F.cross_entropy(answers, kept.y, reduction="sum")
    loss = (own + 0.7 * error + 0.3 * entropy) / (len(share) + len(kept))
    gradients = torch.autograd.grad(loss, list(params.values()))
    lr = TABLE["training"]["local"]["lr"]
    expected = {
        name: (value - lr * gradient).detach()
        for (name, value), gradient in zip(params.items(), gradients, strict=True)
    }
    final = fedcl.run(der(40, changes, alpha=0.7, beta=0.3)).params
    assert distance(dict(final), expected) < 1e-12
    assert distance(dict(first), dict(second)) > 1e-3


# --- What is stored. ---


def stored_after(
    client: Any, method: Der, state: Reservoir | None, seed: int
) -> tuple[Reservoir, dict[str, Tensor]]:
    """Returns what a client keeps after training to random parameters, and these."""
    generator = torch.Generator().manual_seed(seed)
    params = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in first_parameters(der(1)).items()
    }
    return method.remember(client(state, seed), Rehearsal(params, False), params), params


@pytest.mark.parametrize("which", ["first", "last"])
def test_logits_are_those_of_the_local_model_at_the_first_or_last_visit(which: Any) -> None:
    experiment = der(9, logits="first")
    site = build_site(experiment)
    method = Der(9 * ROW, logits=which)

    def at(stage: int) -> Any:
        return lambda state, seed: site.population.client(0, stage, site.model, state, seed=seed)

    first, params = stored_after(at(0), method, None, 1)
    assert torch.allclose(first.rows.extra["logits"], logits(params, first.rows.x), atol=1e-5)
    assert len(first.rows) == 9
    again, later = stored_after(at(0), method, first, 2)
    assert same(again.rows.x, first.rows.x) and same(
        again.rows.extra["key"], first.rows.extra["key"]
    )
    expected = {"first": params, "last": later}[which]
    assert torch.allclose(again.rows.extra["logits"], logits(expected, first.rows.x), atol=1e-5)
    assert (again is first) == (which == "first")
    # A later stage brings logits of its own rows, and leaves those of the old ones.
    after, third = stored_after(at(1), method, again, 3)
    before = {float(k): row for k, row in zip(*_columns(again), strict=True)}
    for key, row in zip(*_columns(after), strict=True):
        if float(key) in before:
            assert same(row, before[float(key)])
    new = torch.nonzero(after.rows.extra["stage"] == 1).flatten()
    assert 0 < len(new) < 9
    fresh = after.rows.take(new)
    assert torch.allclose(fresh.extra["logits"], logits(third, fresh.x), atol=1e-5)


def _columns(reservoir: Reservoir) -> tuple[Tensor, Tensor]:
    return reservoir.rows.extra["key"], reservoir.rows.extra["logits"]


def test_examples_stored_at_this_stage_are_not_replayed_before_the_next() -> None:
    experiment = der(9, logits="first")
    site = build_site(experiment)
    own = memories(experiment)[0]
    message = Rehearsal(first_parameters(experiment), False)
    client = site.population.client(0, 0, site.model, own[0], seed=1)
    rows = Der().mixed(client, message)
    assert same(rows.x, client.data.x)
    assert not rows.extra["logits"].any()
    client = site.population.client(0, 1, site.model, own[1], seed=1)
    rows = Der().mixed(client, message)
    n, old = len(client.data), own[1].rows.extra["stage"] == 0
    assert same(rows.x[:n], client.data.x) and same(rows.x[n:], own[1].rows.x[old])
    assert same(rows.extra["logits"][n:], own[1].rows.extra["logits"][old])
    assert 0 < len(rows) - n < 9
    assert rows.extra["head"].all(), "class-incremental: all classes seen so far"


@pytest.mark.parametrize("rows", [1, 7, 500])
@pytest.mark.parametrize("which", ["first", "last"])
def test_the_budget_in_bytes_counts_the_logits(rows: int, which: str) -> None:
    experiment = der(rows, logits=which)
    stream = stream_of(experiment)
    for client, own in memories(experiment).items():
        assert len(own) == {"first": 2, "last": 4}[which] or rows == 1
        for memory in own:
            held = sum(len(stream.train(client, s)) for s in range(memory.stage + 1))
            assert nbytes(memory) == ROW * min(rows, held) <= rows * ROW
    short = tiny(TWO, method={"name": "der", "budget": ROW - 1})
    assert all(kept is None for own in memories(short).values() for kept in own)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_needs_are_the_bytes_of_a_memory(dtype: str) -> None:
    experiment = der(7, {"training.dtype": dtype})
    needs = Planned(experiment, build_site(experiment)).needs
    assert needs.memory == max(nbytes(own[-1]) for own in memories(experiment).values())
    everything = Planned(der(500), build_site(der(500)))
    assert everything.needs.memory == 2 * everything.sizes.share * ROW


@pytest.mark.parametrize("which", ["first", "last"])
def test_the_passes_for_logits_are_booked(which: str) -> None:
    """With alpha = 0 and beta = 1, replay does the rest: the difference is what was stored."""
    replay = {"name": "replay", "selection": "reservoir", "budget": 9 * SAMPLED}
    plain, _ = watched(tiny(TWO, method=replay))
    experiment = der(9, alpha=0.0, beta=1.0, logits=which)
    found, _ = watched(experiment)
    costs = [
        [row["examples"] for row in record.costs if row["direction"] == ""]
        for record in (found, plain)
    ]
    more = [a - b for a, b in zip(*costs, strict=True)]
    stored = [
        sum(int((r.rows.extra["stage"] == r.stage).sum()) for r in result)
        for result in (
            [own[place] for own in memories(der(9, logits="first")).values()] for place in range(2)
        )
    ]
    again = which == "last"
    assert more == [stored[0], again * stored[0], stored[1], again * stored[1]]


def test_nothing_travels_but_the_model_and_its_change() -> None:
    def bytes_of(experiment: Experiment) -> list[tuple[Any, ...]]:
        record, _ = watched(experiment)
        return [
            (row["direction"], row["payload"], row["bytes"])
            for row in record.costs
            if row["direction"]
        ]

    model = sum(4 * value.numel() for value in first_parameters(der(9)).values())
    found = bytes_of(der(9, beta=1.0, logits="last"))
    assert found == bytes_of(tiny(TWO))
    assert (
        found
        == [
            ("down", "model", 5 * model),
            ("up", "metrics", 5 * 16),
            ("up", "model", 5 * model),
        ]
        * 4
    )


# --- Runs. ---


@pytest.mark.parametrize("which", ["first", "last"])
def test_engines_agree(which: str) -> None:
    changes = {"training.dtype": "float64"}
    options = {"alpha": 2.0, "beta": 0.5, "logits": which}
    serial, vectorized = (
        fedcl.run(der(9, {**changes, "engine.name": name}, **options))
        for name in ("serial", "vectorized")
    )
    assert distance(serial.params, vectorized.params) < 1e-9
    assert distance(serial.params, fedcl.run(der(0, changes)).params) > 1e-3


@pytest.mark.parametrize("path", ["fused", "vmap"])
def test_the_block_paths_take_its_loss(path: str) -> None:
    """Also where clients are at stages of their own, so that masks come one for each row."""
    own = {"stream.order": {"name": "shuffled"}, "training.dtype": "float64"}
    serial = fedcl.run(der(9, own))
    found = fedcl.run(der(9, {**own, "engine.name": "vectorized", "engine.path": path}))
    assert distance(serial.params, found.params) < 1e-9


def test_a_stopped_run_goes_on(tmp_path: Any) -> None:
    fedcl.run(der(5, logits="last"), tmp_path / "whole")
    for rounds in (1, 3):
        folder = tmp_path / str(rounds)
        with pytest.raises(Interrupted):
            fedcl.run(der(5, logits="last"), folder, watch=interrupt_after(rounds))
        fedcl.run(der(5, logits="last"), folder, resume=True)
        assert_same_folders(folder, tmp_path / "whole")


@pytest.mark.parametrize("kind", ["task", "domain", "temporal"])
def test_it_runs_in_every_scenario_and_with_few_examples(kind: str) -> None:
    changes = {**scenario(kind), "training.cohort": 2, "dataset.train": 24}
    for own in memories(tiny(changes, method={"name": "der", "budget": 3 * ROW})).values():
        assert all(0 < nbytes(memory) <= 3 * ROW for memory in own)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_it_forgets_less_than_fedavg(beta: float) -> None:
    changes = {"training.rounds": 6}
    plain = fedcl.run(tiny({**TWO, **changes}))
    found = fedcl.run(der(500, changes, alpha=1.0, beta=beta))
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.2


@pytest.mark.parametrize("option", ["budget", "alpha", "beta"])
def test_refuses_negative_numbers(option: str) -> None:
    for value in (-1, float("nan"))[: 1 if option == "budget" else 2]:
        with pytest.raises(ConfigError, match=option):
            tiny(method={"name": "der", option: value})
