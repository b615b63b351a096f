"""Analytic learning: federated in any way, it equals ridge regression on all data at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core.errors import ClientError, ConfigError
from fedcl.core.features.analytic import Regressors
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.methods.analytic import State
from fedcl.planned import Planned
from tests.tiny import (
    CNN,
    Interrupted,
    assert_same_folders,
    distance,
    first_parameters,
    interrupt_after,
    same,
    scenario,
    stream_of,
    tiny,
    trace,
)

DOUBLE = {"training.dtype": "float64"}
FROZEN = {"name": "analytic", "pretrain": 0}
HEAD = ("head.weight", "head.bias")


def hidden(params: Params, x: Tensor) -> Tensor:
    """The inputs of the tiny network's head, and a one, by hand."""
    h = F.relu(x.double().flatten(1) @ params["fc1.weight"].T + params["fc1.bias"])
    return torch.cat([h, h.new_ones((len(h), 1))], dim=1)


def everything(experiment: Experiment, stages: int = 99) -> tuple[Tensor, Tensor]:
    """All examples of all clients in the first stages."""
    stream = stream_of(experiment)
    parts = [
        stream.train(client, stage)
        for stage in range(min(stages, stream.stages))
        for client in stream.members(stage)
    ]
    return torch.cat([p.x for p in parts]).double(), torch.cat([p.y for p in parts])


def joint(h: Tensor, y: Tensor, gamma: float, classes: int = 4) -> npt.NDArray[np.float64]:
    """Ridge regression by least squares on the stacked regressors: no Gram matrix."""
    rows = np.vstack([h.numpy(), gamma**0.5 * np.eye(h.shape[1])])
    hot = np.vstack([np.eye(classes)[y.numpy()], np.zeros((h.shape[1], classes))])
    found: npt.NDArray[np.float64] = np.linalg.lstsq(rows, hot, rcond=None)[0]
    return found


def head(params: Params) -> Tensor:
    return torch.cat([params["head.weight"].T, params["head.bias"][None]])


def error(found: Tensor, wanted: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found.numpy() - wanted) / np.linalg.norm(wanted))


# --- Equal to training on all at once. ---


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_reduces_to_joint_ridge_regression(engine: str) -> None:
    """One client, one stage: plain ridge regression on the features of the first parameters."""
    alone = {"stream.clients": 1, "stream.tasks": 1, "stream.partition": {"name": "iid"}}
    experiment = tiny({**DOUBLE, **alone}, method={**FROZEN, "gamma": 3.0})
    params = first_parameters(experiment)
    x, y = everything(experiment)
    assert len(x) == 160
    found = fedcl.run(
        tiny({**DOUBLE, **alone}, method={**FROZEN, "gamma": 3.0}, engine={"name": engine})
    )
    assert error(head(found.params), joint(hidden(params, x), y, 3.0)) < 1e-10
    body = [name for name in params if name not in HEAD]
    assert same({n: found.params[n] for n in body}, {n: params[n] for n in body})


PARTITIONS = [
    {"name": "iid"},
    {"name": "dirichlet", "alpha": 0.05},
    {"name": "shards", "per_client": 1},
    {"name": "quantity", "exponent": 1.5},
]
ORDERS = [
    {"name": "shared"},
    {"name": "shuffled"},
    {"name": "staggered"},
    {"name": "blurred"},
]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["class", "task", "domain"]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 12),
    st.sampled_from(PARTITIONS),
    st.sampled_from(ORDERS),
    st.integers(0, 5),
    st.sampled_from([0, 17]),
    st.sampled_from(["serial", "vectorized"]),
)
def test_any_stream_gives_joint_ridge_regression(
    kind: str,
    tasks: int,
    clients: int,
    partition: Mapping[str, Any],
    order: Mapping[str, Any],
    seed: int,
    projection: int,
    engine: str,
) -> None:
    changes = {
        **DOUBLE,
        **scenario(kind),
        "stream.tasks": tasks,
        "stream.clients": clients,
        "stream.partition": partition,
        "stream.order": order,
        "training.rounds": 1,
        "seed": seed,
    }
    method = {**FROZEN, "projection": projection, "projection_seed": seed}
    experiment = tiny(changes, method=method, engine={"name": engine})
    record = fedcl.run(experiment)
    x, y = everything(experiment)
    if order["name"] == "shared":  # nothing is left out, nothing counts twice
        assert len(x) == (160 * tasks if kind == "domain" else 160)
    if not projection:
        wanted = joint(hidden(first_parameters(experiment), x), y, 1.0)
        assert error(head(record.params), wanted) < 1e-8


def test_a_million_ways_give_one_model() -> None:
    """The same examples in other hands and in another order: the same model, to rounding."""
    found = []
    for changes in (
        {"stream.clients": 1, "stream.partition": {"name": "iid"}},
        {"stream.clients": 40, "stream.partition": {"name": "dirichlet", "alpha": 0.1}},
        {"stream.tasks": 4},
        {"stream.tasks": 1, "training.cohort": 1},
        {"stream.shuffle_classes": True, "stream.tasks": 4},
    ):
        table = {**DOUBLE, **scenario("class"), **changes}
        found.append(fedcl.run(tiny(table, method=FROZEN)).params)
    for other in found[1:]:
        assert distance(found[0], other) < 1e-11


@pytest.mark.parametrize("projection", [0, 23])
def test_after_each_stage_it_knows_all_stages_so_far(projection: int, tmp_path: Path) -> None:
    method = {"name": "analytic", "gamma": 0.5, "projection": projection, "projection_seed": 7}
    experiment = tiny({**DOUBLE, **scenario("class"), "stream.tasks": 4}, method=method)
    _, states = trace(experiment, tmp_path / "run")
    body = states[1].params
    for stage in range(4):
        state = states[2 * stage + 1]  # two rounds a stage
        x, y = everything(experiment, stage + 1)
        h = hidden(body, x)
        if projection:
            # Drawn from the seed alone: nobody sent it.
            h = Regressors(projection, 7)(Net(build_site(experiment).model, body), x)
            assert h.shape == (len(x), projection + 1)
        weights = state.weights if projection else head(state.params)
        assert error(weights, joint(h, y, 0.5)) < 1e-8
        unseen = [c for c in range(4) if c not in y.unique().tolist()]
        assert len(unseen) == 3 - stage and not bool(weights[:, unseen].any())
        if projection:
            assert same({n: state.params[n] for n in HEAD}, {n: body[n] for n in HEAD})
        view = experiment.method.for_prediction(state)
        assert view == State(state.params, weights=state.weights), "no sums go to a client"


# --- Features that are learnt first. ---


def test_reduces_to_fedavg_while_features_are_learnt(tmp_path: Path) -> None:
    """In the first stage's rounds; what follows leaves the features as they are."""
    changes = {**scenario("class"), "training.rounds": 3}
    record, states = trace(tiny(changes, method={"name": "analytic"}), tmp_path / "analytic")
    plain, others = trace(tiny(changes), tmp_path / "fedavg")
    for place in (0, 1):
        assert same(dict(states[place].params), dict(others[place].params))
    features = {n: v for n, v in others[2].params.items() if n not in HEAD}
    for state in states[2:]:
        assert same({n: state.params[n] for n in features}, features)
    early = [[dict(row) for row in run.evaluations if row["round"] < 3] for run in (record, plain)]
    assert early[0] and same(early[0], early[1])


def test_later_rounds_ask_nobody(tmp_path: Path) -> None:
    changes = {**scenario("class"), "training.rounds": 3, "evaluation.decompose": 1}
    record, states = trace(tiny(changes, method={"name": "analytic"}), tmp_path / "run")
    assert {row["round"] for row in record.costs} == {1, 2, 3, 6}
    assert same(dict(states[3].params), dict(states[2].params))
    assert record.summary["rounds"] == 6
    assert [row["stage"] for row in record.evaluations if row["round"] == 5]
    steps = [row["steps"] for row in record.costs if row["payload"] == "train"]
    assert len(steps) == 3 and all(steps)


def test_the_features_of_a_convolutional_network() -> None:
    changes = {**DOUBLE, **scenario("class"), "training.rounds": 1}
    experiment = tiny(changes, model={**CNN, "dropout": 0.5}, method=FROZEN)
    x, y = everything(experiment)
    found = fedcl.run(experiment).params
    h = Regressors()(Net(build_site(experiment).model, first_parameters(experiment)), x)
    assert error(head(found), joint(h, y, 1.0)) < 1e-9


# --- It forgets nothing. ---


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
@pytest.mark.parametrize("projection", [0, 60])
def test_it_forgets_less_than_fedavg(kind: str, projection: int) -> None:
    changes = {
        **scenario(kind),
        "dataset.classes": 8,
        "dataset.train": 400,
        "dataset.test": 160,
        "stream.tasks": 4,
        "training.rounds": 4,
        "training.cohort": 0,
    }
    method = {"name": "analytic", "projection": projection}
    runs = [fedcl.run(tiny(changes, method=m)).summary for m in (method, {"name": "fedavg"})]
    # Where the task is known when predicting, averaging forgets next to nothing here either.
    margin = {"class": 0.3, "task": -0.05, "domain": 0.0}[kind]
    assert runs[0]["average_accuracy"] > runs[1]["average_accuracy"] + margin
    assert runs[0]["forgetting"] <= (0.05 if kind == "task" else runs[1]["forgetting"])


# --- Pseudo-examples. ---


def labelled(folder: Path, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Four overlapping classes in a file, and a stream of two tasks over three clients."""
    x = np.random.default_rng(0).normal(size=(len(labels), 5)).astype(np.float32)
    x += labels[:, None] * np.arange(5, dtype=np.float32)
    np.savez(folder / "labelled.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    return {
        "dataset": {"name": "npz", "root": str(folder), "file": "labelled.npz"},
        "stream": {"name": "class_incremental", "tasks": 2, "clients": 3},
    }


def test_balance_of_uneven_classes(tmp_path: Path) -> None:
    counts = [40, 12, 25, 5]
    tables = labelled(tmp_path, np.repeat(np.arange(4), counts))
    states = {}
    for balance in ("none", "expected", "drawn"):
        method = {**FROZEN, "balance": balance}
        _, found = trace(tiny(DOUBLE, method=method, **tables), tmp_path / balance)
        states[balance] = found[-1]
    assert set(states["none"].sums) == {"gram/head", "cross/head"}
    assert states["drawn"].sums["counts/head"].tolist() == counts
    # The sums are those of the examples alone: pseudo-examples are made anew at each solution.
    for name, value in states["none"].sums.items():
        assert all(torch.equal(states[how].sums[name], value) for how in ("drawn", "expected"))
    plain, expected, drawn = (states[how].params for how in ("none", "expected", "drawn"))
    assert 1e-6 < distance(drawn, expected) < distance(plain, expected)


def test_balance_changes_no_bit_where_classes_are_even(tmp_path: Path) -> None:
    tables = labelled(tmp_path, np.arange(80) % 4)
    found = [
        fedcl.run(tiny(method={**FROZEN, "balance": how}, **tables)).params
        for how in ("none", "expected", "drawn")
    ]
    assert same(dict(found[0]), dict(found[1])) and same(dict(found[0]), dict(found[2]))


# --- What it costs, and what is refused. ---


def test_every_byte_of_the_sums() -> None:
    """12 features and a constant: 91 numbers of the Gram matrix, 13 by 4 of the class sums."""
    changes = {**scenario("class"), "training.cohort": 2}
    for options, item, more in (
        ({}, 8, {}),
        ({"exact": False}, 4, {}),
        ({"balance": "expected"}, 8, {"counts": 4, "squares": 13 * 4}),
    ):
        record = fedcl.run(tiny(changes, method={"name": "analytic", **options}))
        up = [
            (r["round"], r["payload"], r["bytes"]) for r in record.costs if r["direction"] == "up"
        ]
        stage = [(4, name, size) for at, name, size in up if at == 4 and name != "metrics"]
        numbers = {"cross": 13 * 4, "gram": 91, **more}
        # All five members are asked, not the cohort.
        assert stage == [(4, n, 5 * item * size) for n, size in sorted(numbers.items())]
        (down,) = [r for r in record.costs if r["direction"] == "down" and r["round"] == 4]
        assert down["bytes"] == 5 * 4 * (16 * 12 + 12)  # the head stays at home
        passes = [r for r in record.costs if r["payload"] == "correlations"]
        assert [r["steps"] for r in passes] == [0, 0]
        assert sum(r["examples"] for r in passes) == 160  # one pass


def test_sums_in_the_type_of_the_inputs_are_close() -> None:
    found = [
        fedcl.run(tiny(scenario("class"), method={**FROZEN, "exact": exact})).params
        for exact in (True, False)
    ]
    assert 0 < distance(*found) < 1e-4


@pytest.mark.parametrize(
    "options", [{}, {"projection": 30, "balance": "drawn"}, {"exact": False, "balance": "expected"}]
)
def test_it_foresees_its_state_and_replies(options: dict[str, Any], tmp_path: Path) -> None:
    experiment = tiny(scenario("class"), method={"name": "analytic", **options})
    record, states = trace(experiment, tmp_path / "run")
    needs = Planned(experiment, build_site(experiment)).needs
    held = [*states[-1].sums.values(), *([states[-1].weights] if "projection" in options else [])]
    assert {value.dtype for value in held} == {torch.float64}
    assert needs.state == sum(8 * value.numel() for value in held)
    kinds = ("gram", "cross", "counts", "squares")
    up = [r["bytes"] for r in record.costs if r["round"] == 4 and r["payload"] in kinds]
    assert 5 * needs.reply == sum(up)


def test_a_large_projection_is_foreseen() -> None:
    huge = tiny({"memory.limit": 10**9}, method={**FROZEN, "projection": 10_000})
    with pytest.raises(ConfigError, match=r"the run needs about .* of memory, but memory\.limit"):
        fedcl.run(huge)


def test_a_penalty_lost_in_rounding_is_refused() -> None:
    lost = tiny(method={**FROZEN, "gamma": 1e-300, "projection": 400})
    with pytest.raises((ClientError, ValueError), match="lost in the rounding"):
        fedcl.run(lost)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "gamma must be above 0"),
        ({"pretrain": 2}, "pretrain"),
        ({"projection": -1}, "projection"),
        ({"balance": "mean"}, "balance"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(method={"name": "analytic", **options})


# --- Engines and checkpoints, on all its routes. ---

ROUTES: list[dict[str, Any]] = [
    {"projection": 30, "balance": "drawn"},
    {"balance": "expected", "constant": False},
    {"pretrain": 0, "exact": False},
]


@pytest.mark.parametrize("options", ROUTES, ids=str)
def test_vectorized_equals_serial(options: dict[str, Any], tmp_path: Path) -> None:
    ends = []
    for engine in ("serial", "vectorized"):
        experiment = tiny(
            {**DOUBLE, **scenario("class")},
            method={"name": "analytic", **options},
            engine={"name": engine},
        )
        record, states = trace(experiment, tmp_path / engine)
        assert (states[-1].weights is None) == ("projection" not in options)
        ends.append((states[-1], record))
    assert distance(ends[0][0].params, ends[1][0].params) < 1e-9
    assert distance(ends[0][0].sums, ends[1][0].sums) < 1e-9
    matrices = [record.summary["accuracy_matrix"] for _, record in ends]
    assert matrices[0] == matrices[1]
    assert ends[0][1].summary["bytes_up"] == ends[1][1].summary["bytes_up"]


@pytest.mark.parametrize("options", ROUTES[:2], ids=str)
def test_it_resumes_to_the_bit(options: dict[str, Any], tmp_path: Path) -> None:
    experiment = tiny(scenario("class"), method={"name": "analytic", **options})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fedcl.run(experiment, whole)
    for done in (2, 3):
        with pytest.raises(Interrupted):
            fedcl.run(experiment, parts, resume=done > 2, watch=interrupt_after(done))
    fedcl.run(experiment, parts, resume=True)
    assert_same_folders(whole, parts)
