"""Replay: its budget in bytes, which examples it remembers, and the logits they are compared by."""

from __future__ import annotations

from collections import Counter
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
from fedcl.core.errors import ConfigError
from fedcl.core.model import Net
from fedcl.core.replay.memory import Rehearsal, Reservoir, RowwiseCrossEntropy
from fedcl.core.task import Examples
from fedcl.core.tree import nbytes
from fedcl.methods.replay import Replay
from fedcl.planned import Planned
from tests.tiny import (
    CNN,
    TABLE,
    Interrupted,
    assert_same_folders,
    assert_same_runs,
    distance,
    first_parameters,
    interrupt_after,
    same,
    scenario,
    stream_of,
    tiny,
    watched,
)

# 16 float32 inputs, an int64 label and stage, and one byte for each of 4 classes.
ROW = 16 * 4 + 8 + 8 + 4
THREE = {"stream.tasks": 3, "training.cohort": 0}


def replay(budget: int, changes: dict[str, Any] | None = None, **tables: Any) -> Experiment:
    return tiny({**THREE, **(changes or {})}, method={"name": "replay", "budget": budget}, **tables)


def memories(experiment: Experiment) -> dict[int, list[Any]]:
    """Returns each client's memory after each round that it took part in."""
    _, engine = watched(experiment)
    found: dict[int, list[Any]] = {}
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
    from fedcl.core.replay.memory import share_budget

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


# --- Other selections. ---

OTHERS = ("reservoir", "herding", "balanced")
WIDTHS = {"random": ROW, "reservoir": ROW + 8, "herding": ROW + 8, "balanced": ROW}


def selected(selection: str, rows: int, changes: dict[str, Any] | None = None) -> Experiment:
    """Returns a class-incremental run of two stages with room for so many examples."""
    own = {**scenario("class"), "stream.tasks": 2, "training.cohort": 0, **(changes or {})}
    budget = rows * WIDTHS[selection] + WIDTHS[selection] - 1
    return tiny(own, method={"name": "replay", "budget": budget, "selection": selection})


def examples(memory: Any) -> Examples:
    return memory.rows if isinstance(memory, Reservoir) else memory


@pytest.mark.parametrize("selection", OTHERS)
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_reduces_to_fedavg_without_a_budget_by_any_selection(selection: str, engine: str) -> None:
    changes = {**scenario("class"), "engine.name": engine}
    none = {"name": "replay", "budget": 0, "selection": selection}
    plain, found = fedcl.run(tiny(changes)), fedcl.run(tiny(changes, method=none))
    assert same(dict(found.params), dict(plain.params))
    assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])


@pytest.mark.parametrize("selection", OTHERS)
@pytest.mark.parametrize("rows", [1, 7, 500])
def test_every_selection_keeps_to_the_budget_and_uses_it(selection: str, rows: int) -> None:
    experiment = selected(selection, rows)
    stream = stream_of(experiment)
    for client, own in memories(experiment).items():
        # A reservoir is written once a stage.
        for place, memory in enumerate(own):
            stage = place * 2 // len(own)
            held = sum(len(stream.train(client, s)) for s in range(stage + 1))
            kept = examples(memory)
            assert len(kept) == min(rows, held)
            assert nbytes(memory) == kept.nbytes == len(kept) * WIDTHS[selection]
            assert len({x.numpy().tobytes() for x in kept.x}) == len(kept), "no example twice"


@pytest.mark.parametrize("selection", ["random", *OTHERS])
def test_needs_are_the_bytes_of_a_memory(selection: str) -> None:
    limited = selected(selection, 7)
    needs = Planned(limited, build_site(limited)).needs
    assert needs.memory == max(nbytes(own[-1]) for own in memories(limited).values())
    everything = selected(selection, 500)
    planned = Planned(everything, build_site(everything))
    assert planned.needs.memory == 2 * planned.sizes.share * WIDTHS[selection]
    assert planned.needs.memory >= max(nbytes(own[-1]) for own in memories(everything).values())


@pytest.mark.parametrize("selection", OTHERS)
def test_selections_agree_between_engines(selection: str) -> None:
    changes = {"training.dtype": "float64"}
    serial, vectorized = (
        fedcl.run(selected(selection, 9, {**changes, "engine.name": engine}))
        for engine in ("serial", "vectorized")
    )
    assert distance(serial.params, vectorized.params) < 1e-9


@pytest.mark.parametrize("selection", OTHERS)
def test_a_run_goes_on_with_its_selection(selection: str, tmp_path: Path) -> None:
    fedcl.run(selected(selection, 5), tmp_path / "whole")
    for rounds in (1, 3):
        folder = tmp_path / str(rounds)
        with pytest.raises(Interrupted):
            fedcl.run(selected(selection, 5), folder, watch=interrupt_after(rounds))
        fedcl.run(selected(selection, 5), folder, resume=True)
        assert_same_folders(folder, tmp_path / "whole")


def test_a_reservoir_is_drawn_once_a_stage() -> None:
    """Engines hand back a memory when it has changed: here in the first round of each stage."""
    for own in memories(selected("reservoir", 6)).values():
        assert [reservoir.stage for reservoir in own] == [0, 1]
        # What is left of stage 0 was in the sample before, and goes by the largest keys.
        old = {float(key) for key in own[0].rows.extra["key"]}
        left = own[1].rows.extra
        stays = {float(k) for k, s in zip(left["key"], left["stage"], strict=True) if s == 0}
        assert stays == {key for key in old if key <= max(stays, default=-1.0)}


def test_the_reservoir_is_trained_on_from_the_next_stage_on() -> None:
    experiment = selected("reservoir", 8)
    record, _ = watched(experiment)
    stream = stream_of(experiment)
    found = memories(experiment)
    passed = [row["examples"] for row in record.costs if row["direction"] == ""]
    own = [sum(len(stream.train(i, stage)) for i in range(5)) for stage in range(2)]
    # The first visit of stage 1 shrinks what there is of stage 0; the second sees what is left.
    old = sum(len(kept[0].rows) for kept in found.values())
    left = sum(int((kept[1].rows.extra["stage"] == 0).sum()) for kept in found.values())
    assert passed == [own[0], own[0], own[1] + old, own[1] + left]


def test_balanced_memories_hold_as_many_of_each_class() -> None:
    experiment = selected("balanced", 9)
    stream = stream_of(experiment)
    for client, own in memories(experiment).items():
        there: Counter[int] = Counter()
        for stage in range(2):
            there.update(stream.train(client, stage).y.tolist())
            for memory in own[2 * stage : 2 * stage + 2]:
                kept = Counter(memory.y.tolist())
                for label, count in there.items():
                    assert kept[label] in (count, *range(max(kept.values()) - 1, count))


def herd_slowly(features: Tensor, count: int) -> list[int]:
    """Returns iCaRL's choice, all running means computed anew."""
    unit = F.normalize(features, dim=1)
    taken: list[int] = []
    for _ in range(count):
        free = [k for k in range(len(unit)) if k not in taken]
        taken.append(
            min(free, key=lambda k: float((unit[[*taken, k]].mean(0) - unit.mean(0)).norm()))
        )
    return taken


def test_herding_follows_the_clients_own_model() -> None:
    """Its kept examples of each class are the greedy ones, by features of what it reports."""
    experiment = selected("herding", 10, {"training.dtype": "float64"})
    site = build_site(experiment)
    generator = torch.Generator().manual_seed(1)
    params = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in first_parameters(experiment).items()
    }
    for id in range(5):
        client = site.population.client(id, 0, site.model, None, seed=5)
        budget = 10 * (16 * 8 + 8 + 8 + 4 + 8)
        kept = Replay(budget, "herding").remember(client, Rehearsal({}, False), params)
        features = F.relu(client.data.x.flatten(1) @ params["fc1.weight"].T + params["fc1.bias"])
        counts = Counter(kept.y.tolist())
        assert sum(counts.values()) == min(10, len(client.data))
        for label, count in counts.items():
            own = torch.nonzero(client.data.y == label).flatten()
            order = own[herd_slowly(features[own], count)]
            mine = kept.take(torch.nonzero(kept.y == label).flatten())
            mine = mine.take(mine.extra["rank"].argsort())
            assert same(mine.x, client.data.x[order])
            assert mine.extra["rank"].tolist() == list(range(count))


def test_herding_shrinks_a_class_to_the_first_of_its_order() -> None:
    shrunk = 0
    for own in memories(selected("herding", 10)).values():
        before, after = own[1], own[2]
        for label in (0, 1):
            places = [torch.nonzero(m.y == label).flatten() for m in (before, after)]
            full, left = before.take(places[0]), after.take(places[1])
            shrunk += len(full) - len(left)
            first = full.take(torch.nonzero(full.extra["rank"] < len(left)).flatten())
            assert same(left, first)
    assert shrunk > 5


def test_herding_chooses_again_while_the_stage_lasts_and_books_it() -> None:
    experiment = selected("herding", 10)
    found = memories(experiment)
    # Neither a stage that is over nor a new order: it is the model that has changed.
    assert any(not same(own[0].x, own[1].x) for own in found.values())
    passes = {}
    for selection in ("balanced", "herding"):
        record, _ = watched(selected(selection, 500))
        passes[selection] = [row["examples"] for row in record.costs if row["direction"] == ""]
    stream = stream_of(experiment)
    own_rows = [sum(len(stream.train(i, s)) for i in range(5)) for s in (0, 0, 1, 1)]
    more = [a - b for a, b in zip(passes["herding"], passes["balanced"], strict=True)]
    assert more == own_rows


@pytest.mark.parametrize("selection", OTHERS)
def test_every_selection_forgets_less_than_fedavg(selection: str) -> None:
    changes = {"training.rounds": 6, "training.cohort": 0}
    plain = fedcl.run(tiny({**scenario("class"), "stream.tasks": 2, **changes}))
    found = fedcl.run(selected(selection, 500, changes))
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.2


@pytest.mark.parametrize("selection", OTHERS)
@pytest.mark.parametrize("kind", ["task", "domain", "temporal"])
def test_selections_run_in_every_scenario_and_order(selection: str, kind: str) -> None:
    changes = {**scenario(kind), "training.cohort": 2}
    if kind != "temporal":
        changes["stream.order"] = {"name": "shuffled"}
    budget = 6 * WIDTHS[selection]
    method = {"name": "replay", "budget": budget, "selection": selection}
    for own in memories(tiny(changes, method=method)).values():
        assert all(0 < nbytes(memory) <= budget for memory in own)


def test_refuses_an_unknown_selection() -> None:
    with pytest.raises(ConfigError, match="selection"):
        tiny(method={"name": "replay", "selection": "best"})
