"""Kron: what it reduces to, what its statistics are, what they cost, and that it forgets less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedcl
from fedcl.config import Experiment, load_config
from fedcl.core.consolidation.kronecker import Factor
from fedcl.core.errors import ConfigError
from tests.commands import ROOT
from tests.fot_tools import MLP, flat, mlp_inputs, pooled
from tests.tiny import CNN, distance, same, scenario, tiny, trace

DOUBLE = {"training.dtype": "float64"}


def kron(
    changes: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **options: Any
) -> Experiment:
    """The tiny experiment with kron, in float64."""
    return tiny(
        {**DOUBLE, **(changes or {})}, method={"name": "kron", **options}, model=model or MLP
    )


def matrix(factor: Factor) -> torch.Tensor:
    return (factor.vectors * factor.values) @ factor.vectors.T


@pytest.mark.parametrize("model", [MLP, CNN])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_reduces_to_fedavg_without_strength(kind: str, model: dict[str, Any]) -> None:
    changes = {"stream.tasks": 3, "training.dtype": kind}
    found = fedcl.run(tiny(changes, method={"name": "kron", "mu": 0.0}, model=model))
    plain = fedcl.run(tiny(changes, model=model))
    assert same(dict(found.params), dict(plain.params))
    assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])


def test_the_first_task_is_learnt_as_by_fedavg() -> None:
    changes = {"stream.tasks": 1, "training.rounds": 3}
    found = fedcl.run(tiny(changes, method={"name": "kron", "mu": 50.0}))
    assert same(dict(found.params), dict(fedcl.run(tiny(changes)).params))


def test_with_two_identities_the_server_divides_the_change(tmp_path: Path) -> None:
    table = {"training.rounds": 1}
    both: dict[str, Any] = {"inputs": "identity", "outputs": "identity"}
    _, states = trace(kron(table, mu=3.0, **both), tmp_path / "kron")
    _, plain = trace(kron(table, mu=0.0), tmp_path / "plain")
    start = states[0].params
    assert same(dict(start), dict(plain[0].params))
    for name, value in states[1].params.items():
        expected = start[name] + (plain[1].params[name] - start[name]) / 4.0
        assert torch.allclose(value, expected, atol=1e-14)


def test_each_round_takes_the_proximal_step_around_the_last_stages_model(tmp_path: Path) -> None:
    _, states = trace(kron({"training.rounds": 1}, mu=0.5), tmp_path / "kron")
    _, plain = trace(kron({"training.rounds": 1}, mu=0.0), tmp_path / "plain")
    before = states[0]
    assert same(dict(before.anchor), dict(before.params))
    for name, fisher in before.fishers.items():
        a, s = matrix(fisher.inputs), matrix(fisher.outputs)
        free, pulled = (
            flat(run[1].params, name, True) - flat(before.params, name, True)
            for run in (plain, states)
        )
        slope = (pulled - free) + 0.5 * s @ pulled @ a
        assert float(slope.abs().max()) < 1e-12
        assert float((pulled - free).abs().max()) > 1e-6


def test_moments_are_those_of_all_members_at_the_global_model(tmp_path: Path) -> None:
    experiment = kron(outputs="empirical")
    _, states = trace(experiment, tmp_path / "run")
    x = pooled(experiment, 0)
    for name, inputs in mlp_inputs(states[1].params, x).items():
        rows = torch.cat([inputs, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        found = states[1].fishers[name]
        # What travels is rounded to the type of the inputs: here float64.
        assert torch.allclose(matrix(found.inputs), rows.T @ rows / len(x), atol=1e-10)
        assert found.outputs.values.shape == (len(states[1].params[name]),)
        assert float(found.outputs.values.sum()) > 0


@pytest.mark.parametrize("clients", [1, 7])
def test_the_split_over_clients_does_not_matter_to_the_moments(
    clients: int, tmp_path: Path
) -> None:
    # One round of one full pass would depend on the split: nobody trains here.
    still = {"training.local.lr": 1e-30, "stream.tasks": 1}
    _, five = trace(kron(still, outputs="empirical"), tmp_path / "five")
    _, other = trace(
        kron({**still, "stream.clients": clients, "training.cohort": 1}, outputs="empirical"),
        tmp_path / "other",
    )
    for name, fisher in five[1].fishers.items():
        for side in ("inputs", "outputs"):
            expected = matrix(getattr(fisher, side))
            found = matrix(getattr(other[1].fishers[name], side))
            assert torch.allclose(found, expected, atol=1e-12)


def test_strong_anchors_keep_what_old_examples_feel(tmp_path: Path) -> None:
    _, states = trace(kron({"training.rounds": 4}, mu=1e9), tmp_path / "kron")
    _, plain = trace(kron({"training.rounds": 4}, mu=0.0), tmp_path / "plain")
    before = states[3]
    for name, fisher in before.fishers.items():
        felt = []
        for run in (states, plain):
            change = flat(run[7].params, name, True) - flat(before.params, name, True)
            felt.append(float((matrix(fisher.outputs) @ change @ matrix(fisher.inputs)).norm()))
        assert felt[0] < 1e-6 * felt[1]


def test_schedule_divides_by_the_stages_that_are_finished() -> None:
    changes = {"stream.tasks": 2}
    means, constants = (fedcl.run(kron(changes, mu=2.0, schedule=s)) for s in ("mean", "constant"))
    assert same(dict(means.params), dict(constants.params))
    changes = {"stream.tasks": 3}
    means, constants = (fedcl.run(kron(changes, mu=2.0, schedule=s)) for s in ("mean", "constant"))
    assert distance(means.params, constants.params) > 1e-6


def test_moments_go_up_once_a_stage_and_nothing_else_but_models() -> None:
    # Inputs of 16, 12 and 8 with their constants, 12, 8 and 4 outputs; packed, in float32.
    record = fedcl.run(tiny({}, method={"name": "kron"}, model=MLP))
    sizes = {"input_moments": (17, 13, 9), "output_moments": (12, 8, 4)}
    model = 4 * (17 * 12 + 13 * 8 + 9 * 4)
    cohort, members = 3, 5
    for number in (1, 2, 3, 4):
        rows = [row for row in record.costs if row["round"] == number]
        up = {r["payload"]: r["bytes"] for r in rows if r["direction"] == "up"}
        down = sum(row["bytes"] for row in rows if row["direction"] == "down")
        del up["metrics"]
        if number % 2:
            assert up == {"model": cohort * model}
            assert down == cohort * model
            continue
        moments = {
            kind: members * 4 * sum(side * (side + 1) // 2 for side in sides)
            for kind, sides in sizes.items()
        }
        assert up == {"model": cohort * model, "count": members * 8, **moments}
        assert down == (cohort + members) * model


@pytest.mark.parametrize("choice", [{"inputs": "identity"}, {"outputs": "identity"}])
def test_an_identity_does_not_travel(choice: dict[str, str]) -> None:
    record = fedcl.run(tiny({}, method={"name": "kron", **choice}, model=MLP))
    kinds = {row["payload"] for row in record.costs}
    (kind,) = (f"{side.removesuffix('s')}_moments" for side in choice)
    assert {"input_moments", "output_moments"} - kinds == {kind}


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_which_classes_the_outputs_moment_compares(kind: str, tmp_path: Path) -> None:
    changes = {**scenario(kind), **DOUBLE}
    _, states = trace(tiny(changes, method={"name": "kron"}), tmp_path / "auto")
    _, asked = trace(
        tiny(changes, method={"name": "kron", "outputs": "fisher"}), tmp_path / "asked"
    )
    auto, fisher = (run[1].fishers["head.weight"].outputs for run in (states, asked))
    if kind == "class":
        assert len(auto.values) == 0  # the identity
    else:
        assert same(auto, fisher)
    felt = matrix(fisher).diagonal() > 0
    # Two of four classes are there at first; later ones are felt only where they will compete.
    assert felt.sum() == (2 if kind == "task" else 4)


def test_the_head_can_be_left_free(tmp_path: Path) -> None:
    _, states = trace(kron(head="free"), tmp_path / "run")
    assert list(states[2].fishers) == ["fc1.weight", "fc2.weight"]


def test_bad_options_and_streams_without_borders_are_refused() -> None:
    with pytest.raises(ConfigError, match="mu must be at least 0, not -1"):
        kron(mu=-1.0)
    with pytest.raises(ConfigError, match="mu"):
        kron(mu=float("nan"))
    with pytest.raises(ConfigError, match="border"):
        kron({"stream.borders": False})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_forgets_less_and_ends_higher_than_fedavg_on_permuted_digits(seed: int) -> None:
    found = {}
    for method in ("fedavg", "kron"):
        changes = {
            "seed": seed,
            "method": {"name": method},
            "stream.tasks": 3,
            "evaluation.every": 0,
        }
        found[method] = fedcl.run(
            load_config(ROOT / "configs" / "fot_digits.toml", changes)
        ).summary
    kron, fedavg = found["kron"], found["fedavg"]
    assert kron["average_accuracy"] > fedavg["average_accuracy"] + 0.05
    assert kron["forgetting"] < fedavg["forgetting"] - 0.1
