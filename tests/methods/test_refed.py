"""Re-Fed: FedAvg without a cache, what stays on the clients, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError
from fedcl.core.method import Sizes
from fedcl.core.model import Net
from fedcl.core.replay.memory import RowwiseCrossEntropy, with_present
from fedcl.core.task import Examples
from fedcl.methods.refed import ReFed
from tests.tiny import CNN, TABLE, assert_same_runs, same, scenario, stream_of, tiny, watched

# 16 float32 inputs, an int64 label and stage, and one byte for each of 4 classes.
ROW = 16 * 4 + 8 + 8 + 4
ROW64 = ROW + 16 * 4
PARAMS = 4 * (16 * 12 + 12 + 12 * 4 + 4)


def refed(budget: int, changes: dict[str, Any] | None = None, **tables: Any) -> Experiment:
    return tiny(changes, method={"name": "refed", "budget": budget}, **tables)


def memories(experiment: Experiment) -> list[dict[int, Examples]]:
    """Returns what the members keep after each stage."""
    _, engine = watched(experiment)
    rounds = experiment.training.rounds
    count = len({request.position.stage for request, _ in engine.requests})
    found: list[dict[int, Examples]] = [{} for _ in range(count)]
    results = iter(engine.results)
    for request, ids in engine.requests:
        left = len(ids)
        while left:
            result = next(results)
            left -= len(result.ids)
            if request.position.round == rounds:
                found[request.position.stage].update(result.memories)
            else:
                assert not result.memories
    return found


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_reduces_to_fedavg_without_a_budget(engine: str) -> None:
    for kind, model in (("class", TABLE["model"]), ("task", TABLE["model"]), ("domain", CNN)):
        tables = {"model": model, "engine": {"name": engine}}
        plain = fedcl.run(tiny(scenario(kind), **tables))
        found = fedcl.run(refed(0, scenario(kind), **tables))
        assert same(dict(found.params), dict(plain.params)), kind
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])
        assert found.summary["bytes_by_payload"]["up"] == plain.summary["bytes_by_payload"]["up"]


def test_every_member_chooses_and_the_budget_is_kept() -> None:
    budget = 7 * ROW + ROW // 2
    experiment = refed(budget, scenario("class"))
    stream = stream_of(experiment)
    for stage, kept in enumerate(memories(experiment)):
        assert sorted(kept) == list(range(5)), "the cohort has three"
        for client, memory in kept.items():
            met = sum(len(stream.train(client, earlier)) for earlier in range(stage + 1))
            assert len(memory) == min(7, met)
            assert memory.nbytes == len(memory) * ROW <= budget


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_what_stays_is_what_the_paper_s_sums_find_important(kind: str) -> None:
    """The last choice, of the first one's cache and the share, computed row by row."""
    changes = {
        **{f"method.{key}": value for key, value in (("batch_size", 1000), ("lr", 0.1))},
        "method.name": "refed",
        "method.budget": 6 * ROW64,
        "method.locality": 0.25,
        **scenario(kind),
        "training.dtype": "float64",
    }
    experiment = tiny(changes)
    first, second = memories(experiment)
    start = dict(fedcl.run(experiment).params)
    site = build_site(experiment)
    for client in range(5):
        own = site.population.client(client, 1, site.model, first[client], seed=0)
        rows = with_present(own, first[client], separate=kind == "task")
        if kind == "task":
            old = rows.extra["head"][rows.extra["stage"] == 0]
            assert old.tolist() == [[True, True, False, False]] * len(old)
        params, scores = start, [0.0] * len(rows)
        for number in (1, 2):
            mean = {name: torch.zeros_like(value) for name, value in params.items()}
            for row in range(len(rows)):
                leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
                few = rows.part(row, row + 1)
                loss = RowwiseCrossEntropy()(Net(site.model, leaves), few, own.task, None).sum()
                gradient = torch.autograd.grad(loss, list(leaves.values()))
                scores[row] += sum(float(g.square().sum()) for g in gradient) ** 0.5 / number
                for name, g in zip(mean, gradient, strict=True):
                    mean[name] += g / len(rows)
            # q = (1 - 0.25) / 0.5 = 1.5.
            params = {k: v - 0.1 * (mean[k] + 1.5 * (v - start[k])) for k, v in params.items()}
        best = sorted(sorted(range(len(rows)), key=lambda row: -scores[row])[:6])
        assert same(second[client].x, rows.x[best])
        assert same(second[client].y, rows.y[best])


def test_nothing_but_the_model_travels() -> None:
    """Down: the model to the cohort in each round, and to the members once a stage. Up: changes."""
    record = fedcl.run(refed(6 * ROW))
    assert record.summary["bytes_by_payload"] == {
        "up": {"model": 4 * 3 * PARAMS, "metrics": 4 * 3 * 16 + 2 * 5 * 8},
        "down": {"model": (4 * 3 + 2 * 5) * PARAMS},
    }


def test_steps_and_examples_of_the_informative_model_are_booked() -> None:
    experiment = refed(6 * ROW, {"training.rounds": 1})
    record = fedcl.run(experiment)
    stream = stream_of(experiment)
    booked = [row for row in record.costs if row["payload"] == "importance"]
    held = [[len(stream.train(client, stage)) for client in range(5)] for stage in range(2)]
    rows = [held[0], [size + min(6, met) for size, met in zip(held[1], held[0], strict=True)]]
    assert [row["examples"] for row in booked] == [2 * sum(own) for own in rows]
    assert [row["steps"] for row in booked] == [2 * sum(-(-n // 32) for n in own) for own in rows]


def test_two_engines_choose_alike() -> None:
    """Importance is measured client by client on every engine."""
    experiment = refed(6 * ROW, {"training.rounds": 1, "training.dtype": "float64"})
    other = refed(
        6 * ROW, {"training.rounds": 1, "training.dtype": "float64", "engine.name": "vectorized"}
    )
    for a, b in zip(memories(experiment), memories(other), strict=True):
        assert same(a, b)
    assert_same_runs(fedcl.run(experiment), fedcl.run(experiment))


def test_needs() -> None:
    sizes = Sizes(PARAMS, {}, {}, ROW, share=10, stages=3, examples=100, item=4)
    found = ReFed(budget=5 * ROW).needs(sizes)
    assert (found.memory, found.everyone) == (5 * ROW, True)
    assert found.client == 35 * PARAMS
    assert ReFed(budget=100 * ROW).needs(sizes).memory == 30 * ROW
    assert ReFed(budget=0).needs(sizes).memory == 0


def test_it_forgets_less_than_fedavg() -> None:
    changes = {**scenario("class"), "training.rounds": 6, "training.cohort": 0}
    plain = fedcl.run(tiny(changes))
    found = fedcl.run(tiny(changes, method={"name": "refed"}))
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1}, "budget"),
        ({"locality": 0.0}, "locality"),
        ({"locality": 0.001}, "beyond the global one"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(method={"name": "refed", **options})
