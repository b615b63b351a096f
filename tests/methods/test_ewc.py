"""EWC: FedAvg plus a pull that Fisher information weighs; what it measures, and what travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import fedcl
from fedcl.config import Experiment
from fedcl.core.errors import ConfigError
from fedcl.core.method import Sizes
from fedcl.core.params import Params
from fedcl.methods.ewc import EWC
from tests.tiny import CNN, distance, logits, same, scenario, stream_of, tiny, trace

DOUBLE = {"training.dtype": "float64"}
MODEL = 4 * (16 * 12 + 12 + 12 * 4 + 4)  # bytes of the tiny network 16-12-4 in float32
BODY = 4 * (16 * 12 + 12)
ENGINES = pytest.mark.parametrize("engine", ["serial", "vectorized"])


def ewc(changes: dict[str, Any] | None = None, *, tables: Any = None, **options: Any) -> Experiment:
    """The tiny experiment with EWC."""
    return tiny(changes, method={"name": "ewc", **options}, **(tables or {}))


@ENGINES
@pytest.mark.parametrize(
    "options", [{}, {"masked": True}, {"server": "momentum"}, {"server": "adam", "server_lr": 0.03}]
)
def test_reduces_to_fedavg_with_strength_zero(options: dict[str, Any], engine: str) -> None:
    for changes in (scenario("domain"), scenario("class")):
        tables = {"engine": {"name": engine}}
        found = fedcl.run(ewc(changes, tables=tables, strength=0.0, **options))
        plain = fedcl.run(tiny(changes, method={"name": "fedavg", **options}, **tables))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])
        assert found.summary["bytes_by_payload"] == plain.summary["bytes_by_payload"]


@ENGINES
def test_the_first_stage_is_learnt_as_by_fedavg(engine: str) -> None:
    changes, tables = {"stream.tasks": 1}, {"engine": {"name": engine}}
    found = fedcl.run(ewc(changes, tables=tables))
    assert same(dict(found.params), dict(fedcl.run(tiny(changes, **tables)).params))


# --- What is measured. ---


def fisher(experiment: Experiment, params: Params, stage: int, head: list[int]) -> Params:
    """The mean over all members' examples, one backward pass each."""
    stream = stream_of(experiment)
    allowed = torch.zeros(4, dtype=torch.bool)
    allowed[head] = True
    sums, count = {name: torch.zeros_like(value) for name, value in params.items()}, 0
    for data in (stream.train(id, stage) for id in range(5)):
        for x, y in zip(data.x.double(), data.y, strict=True):
            leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
            answers = logits(leaves, x[None]).masked_fill(~allowed, -1e9)
            loss = F.cross_entropy(answers, y[None])
            for own, g in zip(
                sums.values(), torch.autograd.grad(loss, list(leaves.values())), strict=True
            ):
                own += g.square()
            count += 1
    return {name: value / count for name, value in sums.items()}


@ENGINES
@pytest.mark.parametrize(("kind", "decay"), [("domain", 1.0), ("domain", 0.3), ("class", 1.0)])
def test_importance_is_the_mean_over_all_members_added_up(
    kind: str, decay: float, engine: str, tmp_path: Path
) -> None:
    """At the global model, not only over the cohort of three; means over examples, not clients."""
    changes = {**DOUBLE, **scenario(kind)}
    experiment = ewc(changes, tables={"engine": {"name": engine}}, decay=decay)
    _, states = trace(experiment, tmp_path / "run")
    heads = {"domain": [[0, 1, 2, 3]] * 2, "class": [[0, 1], [0, 1, 2, 3]]}[kind]
    first = fisher(experiment, states[1].params, 0, heads[0])
    assert distance(states[1].importance, first) < 1e-12
    second = fisher(experiment, states[3].params, 1, heads[1])
    both = {name: decay * first[name] + value for name, value in second.items()}
    assert distance(states[3].importance, both) < 1e-12
    for state in (states[1], states[3]):
        assert same(dict(state.anchor), dict(state.params))
    assert same(dict(states[2].anchor), dict(states[1].params))
    assert max(float(value.max()) for value in first.values()) > 1e-4


def test_sampled_labels_are_others_and_the_same_ones_twice(tmp_path: Path) -> None:
    runs = [
        trace(ewc(DOUBLE, fisher=kind), tmp_path / str(place))[1][1].importance
        for place, kind in enumerate(["sampled", "sampled", "empirical"])
    ]
    assert same(dict(runs[0]), dict(runs[1]))
    assert distance(runs[0], runs[2]) > 1e-4


def test_rows_of_classes_to_come_are_not_pulled(tmp_path: Path) -> None:
    _, states = trace(ewc(scenario("class")), tmp_path / "run")
    importance = states[1].importance
    for name in ("head.weight", "head.bias"):
        assert float(importance[name][2:].abs().max()) == 0.0 < float(importance[name][:2].min())


# --- Steps by hand. ---


@ENGINES
def test_one_round_of_full_batches_by_hand(engine: str, tmp_path: Path) -> None:
    """After the anchor was set theta = theta*: one full-batch step of all clients is FedAvg's; the
    next one adds -lr min(strength F, cap) (theta - theta*)."""
    changes = {
        **DOUBLE,
        "training.cohort": 0,
        "training.local": {"name": "sgd", "lr": 0.3, "batch_size": 10_000},
    }
    experiment = ewc(changes, tables={"engine": {"name": engine}}, strength=50.0, cap=0.7)
    _, states = trace(experiment, tmp_path / "run")
    stream = stream_of(experiment)
    everyone = [stream.train(id, 1) for id in range(5)]
    x = torch.cat([data.x for data in everyone]).double()
    y = torch.cat([data.y for data in everyone])
    anchor, importance = states[1].params, states[1].importance
    factors = {name: (50.0 * value).clamp(max=0.7) for name, value in importance.items()}
    capped = torch.cat([(value == 0.7).flatten() for value in factors.values()])
    assert 0 < int(capped.sum()) < len(capped)
    for before, after in ((states[1], states[2]), (states[2], states[3])):
        leaves = {k: v.clone().requires_grad_() for k, v in before.params.items()}
        loss = F.cross_entropy(logits(leaves, x), y)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        expected = {
            k: v - 0.3 * (gradients[k] + factors[k] * (v - anchor[k]))
            for k, v in before.params.items()
        }
        assert distance(after.params, expected) < 1e-12
    assert distance(states[2].params, anchor) > 1e-2


def test_without_a_cap_it_diverges_where_it_does_not_with_one() -> None:
    largest = []
    for cap in (2.0, 1e30):
        params = fedcl.run(ewc({**DOUBLE, "training.rounds": 6}, strength=1e4, cap=cap)).params
        largest.append(max(float(value.abs().max()) for value in params.values()))
    assert largest[0] < 10 < 1e6 < largest[1]


# --- What is pulled, and what it costs. ---


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_a_free_head_has_no_importance(kind: str, tmp_path: Path) -> None:
    for head, pulled in (("auto", kind == "domain"), ("protect", True), ("free", False)):
        changes = {**DOUBLE, **scenario(kind), "training.rounds": 1}
        _, states = trace(ewc(changes, head=head), tmp_path / head)
        names = ["fc1.weight", "fc1.bias", *(["head.weight", "head.bias"] if pulled else [])]
        assert list(states[0].anchor) == list(states[0].importance) == names


def test_a_model_that_is_a_free_head_measures_nothing() -> None:
    tables = {"model": {"name": "mlp", "hidden": []}}
    found = fedcl.run(ewc(tables=tables, head="free"))
    plain = fedcl.run(tiny(**tables))
    assert same(dict(found.params), dict(plain.params))
    assert found.summary["bytes_by_payload"] == plain.summary["bytes_by_payload"]


@ENGINES
@pytest.mark.parametrize(("head", "size"), [("protect", MODEL), ("free", BODY)])
def test_one_model_more_goes_up_a_stage_and_two_down_in_later_rounds(
    head: str, size: int, engine: str
) -> None:
    """Three of five clients train in each of two rounds; all five are asked at a stage's end."""
    tables = {"engine": {"name": engine}}
    record = fedcl.run(ewc({"stream.tasks": 3}, tables=tables, head=head))
    plain = fedcl.run(tiny({"stream.tasks": 3}, **tables))
    for number in range(1, 7):
        rows = [row for row in record.costs if row["round"] == number]
        sent: dict[tuple[str, str], int] = {}
        for row in rows:
            key = row["direction"], row["payload"]
            if row["bytes"] is None:
                continue  # what the server did
            sent[key] = sent.get(key, 0) + row["bytes"]
        end, later = number % 2 == 0, number > 2
        down = {"model": (3 + 5 * end) * MODEL}
        if later:
            down |= {"anchor": 3 * size, "importance": 3 * size}
        up = {"model": 3 * MODEL, **({"fisher": 5 * size, "count": 5 * 8} if end else {})}
        assert {k: v for (way, k), v in sent.items() if way == "down"} == down
        assert {k: v for (way, k), v in sent.items() if way == "up" and k != "metrics"} == up
    assert record.summary["steps"] == plain.summary["steps"]


def test_needs() -> None:
    sizes = Sizes(4 * 256, {}, {}, 0, 0, 2, 0, 4)
    assert EWC().needs(sizes).state == 12 * 256
    assert EWC().needs(sizes).training == "penalty"
    none = EWC(strength=0.0).needs(sizes)
    assert (none.state, none.client, none.training) == (0, 0, "plain")
    assert EWC(server="momentum").needs(sizes).state == (12 + 8) * 256


def test_convolutions_and_norms_have_importance(tmp_path: Path) -> None:
    _, states = trace(ewc({"training.rounds": 1}, tables={"model": CNN}), tmp_path / "run")
    assert all(float(value.max()) > 0 for value in states[0].importance.values())
    assert set(states[0].importance) == set(states[0].params)


def test_it_forgets_less_than_fedavg() -> None:
    changes = {"stream.tasks": 3, "training.rounds": 6, "training.cohort": 0}
    found, plain = fedcl.run(ewc(changes)), fedcl.run(tiny(changes))
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -0.1}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"cap": 0.0}, "cap"),
        ({"cap": float("nan")}, "cap"),
        ({"decay": 1.1}, "decay"),
        ({"fisher": "exact"}, "fisher"),
        ({"head": "guard"}, "head"),
        ({"server_lr": 0.0}, "server_lr"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ewc(**options)
