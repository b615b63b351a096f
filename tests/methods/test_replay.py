"""Replay: its budget in bytes, what it remembers, and the logits that old rows are compared by."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.client import Client
from fedcl.core.errors import ConfigError
from fedcl.core.memory import Rehearsal, RowwiseCrossEntropy
from fedcl.core.model import Net
from fedcl.core.task import Examples
from fedcl.methods.replay import Replay
from tests.tiny import CNN, TABLE, assert_same_runs, same, scenario, stream_of, tiny, watched

# 16 float32 inputs, an int64 label and stage, and one byte for each of 4 classes.
ROW = 16 * 4 + 8 + 8 + 4
THREE = {"stream.tasks": 3, "training.cohort": 0}


def replay(budget: int, changes: dict[str, Any] | None = None, **tables: Any) -> Experiment:
    return tiny({**THREE, **(changes or {})}, method={"name": "replay", "budget": budget}, **tables)


def memories(experiment: Experiment) -> dict[int, list[Examples]]:
    """Returns each client's memory after each round that it took part in."""
    _, engine = watched(experiment)
    found: dict[int, list[Examples]] = {}
    for result in engine.results:
        for client, memory in result.memories.items():
            found.setdefault(client, []).append(memory)
    return found


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_reduces_to_fedavg_without_a_budget(engine: str) -> None:
    for kind, model in (("class", TABLE["model"]), ("task", TABLE["model"]), ("domain", CNN)):
        tables = {"model": model, "engine": {"name": engine}}
        plain = fedcl.run(tiny(scenario(kind), **tables))
        none = {"name": "replay", "budget": 0}
        found = fedcl.run(tiny(scenario(kind), method=none, **tables))
        assert same(dict(found.params), dict(plain.params)), kind
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])


def test_without_a_budget_nothing_is_kept() -> None:
    assert all(kept is None for own in memories(replay(0)).values() for kept in own)
    # One byte short of a row is no row.
    assert all(kept is None for own in memories(replay(ROW - 1)).values() for kept in own)


@pytest.mark.parametrize("rows", [1, 5, 8, 17])
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_the_budget_in_bytes_is_kept_and_used(rows: int, engine: str) -> None:
    budget = rows * ROW + ROW // 2
    found = memories(replay(budget, engine={"name": engine}))
    stream = stream_of(replay(budget))
    assert sorted(found) == list(range(5))
    for client, own in found.items():
        assert len(own) == 3 * 2
        held = 0
        for stage in range(3):
            held += len(stream.train(client, stage))
            for memory in own[2 * stage : 2 * stage + 2]:
                assert memory.nbytes == len(memory) * ROW <= budget
                assert len(memory) == min(rows, held), "room is left"


def test_it_remembers_all_stages_alike() -> None:
    for client, own in memories(replay(7 * ROW)).items():
        for stage in range(3):
            for memory in own[2 * stage : 2 * stage + 2]:
                counts = Counter(memory.extra["stage"].tolist())
                assert set(counts) == set(range(stage + 1)), client
                assert max(counts.values()) - min(counts.values()) <= 1


def test_a_small_stage_leaves_its_room_to_the_others() -> None:
    """Of 30, 4 and 40 rows, 24 fit: 4 of the small one, and 10 of each other."""
    from fedcl.core.memory import share_budget

    stages = torch.tensor([0] * 30 + [1] * 4 + [2] * 40)
    rows = Examples(torch.zeros(74, 2), torch.zeros(74, dtype=torch.int64), {"stage": stages})
    kept = share_budget(rows, 24 * (8 + 8 + 8), torch.randperm(74))
    assert Counter(kept.extra["stage"].tolist()) == {0: 10, 1: 4, 2: 10}


def test_what_it_remembers_are_the_clients_own_examples() -> None:
    experiment = replay(9 * ROW)
    stream = stream_of(experiment)
    for client, own in memories(experiment).items():
        for stage in range(3):
            share = stream.train(client, stage)
            labels = {x.numpy().tobytes(): int(y) for x, y in zip(share.x, share.y, strict=True)}
            memory = own[-1]
            rows = torch.nonzero(memory.extra["stage"] == stage).flatten()
            kept = [memory.x[row].numpy().tobytes() for row in rows]
            assert len(set(kept)) == len(kept), "no example twice"
            for row, value in zip(rows, kept, strict=True):
                assert labels[value] == int(memory.y[row])


def test_it_trains_on_all_present_and_all_remembered_examples_of_earlier_stages() -> None:
    """Examples passed: own share in stage 0; with those remembered from then on."""
    experiment = replay(8 * ROW, {"stream.tasks": 2, "training.rounds": 1})
    record, _ = watched(experiment)
    stream = stream_of(experiment)
    passed = [row["examples"] for row in record.costs if row["direction"] == ""]
    own = [len(stream.train(i, 0)) for i in range(5)]
    assert passed == [sum(own), sum(own) + sum(min(8, n) for n in own)]


def test_the_choice_is_random_but_the_same_for_every_engine() -> None:
    assert_same_runs(fedcl.run(replay(8 * ROW)), fedcl.run(replay(8 * ROW)))
    first, other = (memories(replay(8 * ROW, {"seed": seed}))[0][0] for seed in (0, 1))
    assert not same(first.x, other.x)
    share = stream_of(replay(8 * ROW)).train(0, 0)
    assert not same(first.x, share.x[: len(first)]), "the first rows are no random choice"


# --- Heads. ---


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_the_logits_that_old_examples_are_compared_by(kind: str) -> None:
    """Stage 0 has classes 0 and 1, stage 1 has 2 and 3 (all four, domain-incremental).

    Task-incremental, an old row keeps its own task's; otherwise it gets those of the present stage.
    """
    experiment = replay(6 * ROW, scenario(kind))
    memory = memories(experiment)[0][1]
    site = build_site(experiment)
    client = site.population.client(0, 1, site.model, memory, seed=0)
    rows = Replay().mixed(client, Rehearsal({}, separate=kind == "task"))
    n = len(client.data)
    expected = {
        "task": ([False, False, True, True], [True, True, False, False]),
        "class": ([True] * 4, [True] * 4),
        "domain": ([True] * 4, [True] * 4),
    }[kind]
    assert rows.extra["head"][:n].tolist() == [expected[0]] * n
    assert rows.extra["head"][n:].tolist() == [expected[1]] * (len(rows) - n)
    assert len(rows) == n + len(memory)
    if kind == "class":
        # The remembered rows know no classes but their own stage's until they are used again.
        assert memory.extra["head"].tolist() == [[True, True, False, False]] * len(memory)


def test_the_loss_compares_each_row_over_its_own_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 4)
    x, y = torch.randn(4, 3, generator=generator), torch.tensor([0, 3, 2, 1])
    head = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    found = RowwiseCrossEntropy()(Net(model), Examples(x, y, {"head": head}), None, None)  # type: ignore[arg-type]
    for row in range(4):
        allowed = torch.nonzero(head[row]).flatten()
        logits = model(x[row])[allowed]
        slow = F.cross_entropy(logits, torch.nonzero(allowed == y[row]).flatten()[0])
        assert float(found[row].detach()) == pytest.approx(float(slow.detach()), rel=1e-6)


def test_a_client_back_in_a_stage_trains_on_no_example_twice() -> None:
    """What it already remembers of the present stage is part of its share."""
    experiment = replay(50 * ROW, {"stream.tasks": 1})
    own: list[Any] = memories(experiment)[0]
    site = build_site(experiment)
    client: Client = site.population.client(0, 0, site.model, own[-1], seed=1)
    rows = Replay().mixed(client, Rehearsal({}, separate=False))
    assert same(rows.x, client.data.x)
    kept: Any = Replay(50 * ROW).remember(client, Rehearsal({}, separate=False), {})
    values: set[bytes] = {x.numpy().tobytes() for x in kept.x}
    assert len(values) == len(kept)


def test_it_forgets_less_than_fedavg() -> None:
    changes = {**scenario("class"), "stream.tasks": 2, "training.rounds": 6, "training.cohort": 0}
    plain = fedcl.run(tiny(changes))
    found = fedcl.run(tiny(changes, method={"name": "replay"}))
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.2


def test_refuses_a_negative_budget() -> None:
    with pytest.raises(ConfigError, match="budget"):
        replay(-1)


def test_memories_hold_tensors_of_their_own() -> None:
    """A view would keep the whole stage's inputs alive, and send them to every worker."""
    for own in memories(replay(3 * ROW)).values():
        for memory in own:
            column: Tensor
            for column in (memory.x, memory.y, *memory.extra.values()):
                assert column.untyped_storage().nbytes() == column.numel() * column.element_size()
