"""Conformance: every file in `fedcl/methods` keeps the promises of a method.

The folder is walked, so a new file is tested from the moment it exists.
"""

from __future__ import annotations

import inspect
import pickle
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Literal

import pytest

import fedcl
from fedcl.assembly import build_site
from fedcl.core import wire
from fedcl.core.errors import ExposureError
from fedcl.core.evaluate import predicted
from fedcl.core.method import Method
from fedcl.core.survey import stream_at
from fedcl.core.tree import nbytes
from fedcl.core.vocabulary import vocabulary
from fedcl.loop import asked_again
from tests.conformance import (
    LIGHT,
    METHODS,
    Looking,
    cls,
    every_method,
    of,
    plain,
    run_or_refused,
    seen,
)
from tests.ray_house import RayHouse
from tests.tiny import (
    CNN,
    assert_same_runs,
    distance,
    first_parameters,
    same,
    timeless,
)

FOLDER = Path(__file__).parent / "methods"


def test_there_are_methods() -> None:
    assert {"fedavg", "fot", "joint", "replay"} <= set(METHODS)


# --- The class. ---


@every_method
def test_is_a_frozen_dataclass_with_a_default_for_every_option(name: str) -> None:
    for option in fields(cls(name)):  # type: ignore[arg-type]
        assert option.default is not MISSING or option.default_factory is not MISSING, option.name
    assert getattr(cls(name), "__dataclass_params__").frozen  # noqa: B009
    hash(cls(name)())


@every_method
def test_is_picklable_and_equal_by_value(name: str) -> None:
    method = cls(name)()
    assert pickle.loads(pickle.dumps(method)) == method == cls(name)()


@every_method
def test_its_file_holds_one_class_and_says_where_it_comes_from(name: str) -> None:
    module = inspect.getmodule(cls(name))
    assert module is not None
    assert module.__all__ == [cls(name).__name__]
    assert module.__doc__ and cls(name).__doc__
    assert cls(name).family and cls(name).paper
    assert cls(name).exposure in ("mean", "replies")


@every_method
def test_its_client_half_names_functions_of_its_own(name: str) -> None:
    half = cls(name).client_half
    assert len(set(half)) == len(half)
    for function in half:
        assert inspect.isfunction(vars(cls(name)).get(function)), function
    server = {"init", "begin_task", "round", "end_task", "predict", "personal"}
    assert not server & set(half)


@every_method
def test_a_reduction_identity_is_tested(name: str) -> None:
    file = FOLDER / f"test_{name}.py"
    assert file.is_file(), f"method {name!r} needs tests of its own in tests/methods"
    found = re.findall(r"^def (test_reduces_to_\w+)", file.read_text(encoding="utf-8"), re.M)
    assert found, f"{file.name} needs a reduction identity: a test called test_reduces_to_..."


# --- What the door saw. ---


@every_method
def test_the_door_saw_what_the_class_variables_say(name: str) -> None:
    _, engine = seen(name)
    revealed = [request.reveal for request, _ in engine.requests]
    assert any(revealed) == (cls(name).exposure == "replies")
    borders = {-1, of(name).training.rounds}
    at_border = any(request.position.round in borders for request, _ in engine.requests)
    moments = ("begin_task", "end_task")
    overrides = any(getattr(cls(name), m) is not getattr(Method, m) for m in moments)
    assert overrides or not (at_border or cls(name).needs_borders)
    assert any(0 <= request.position.round < max(borders) for request, _ in engine.requests)


@every_method
def test_under_secure_aggregation_it_runs_alike_or_is_refused(name: str) -> None:
    channel = [{"name": "secure_aggregation"}]
    if cls(name).exposure == "replies":
        with pytest.raises(ExposureError, match=name):
            of(name, channel=channel)
        return
    hidden = fedcl.run(of(name, channel=channel))
    assert same(dict(hidden.params), dict(plain(name).params))


@every_method
def test_what_clients_get_for_prediction_is_enough_and_no_more(name: str) -> None:
    one = {"training.rounds": 1, "stream.tasks": 1}
    experiment = of(name, one, method={"name": name})
    site, look = build_site(experiment), Looking()
    asked_again(experiment, site, look)  # type: ignore[arg-type]
    method, stream, words = experiment.method, stream_at(site), vocabulary(experiment.method)
    (state,) = look.states
    view = wire.loads(wire.dumps(method.for_prediction(state), words), words)
    x, allowed = stream.held_out(0, "test").x, stream.head(0, 0)
    whole, part = (predicted(method, s, site.model, x, allowed, 16) for s in (state, view))
    assert same(whole, part)
    assert nbytes(view) == nbytes(state.params), "by its name alone no method needs more"


# --- What it learns, and that it does so again. ---


@every_method
def test_learns_a_first_task(name: str) -> None:
    changes = {"stream.tasks": 1, "training.rounds": 6, "training.cohort": 0}
    record = fedcl.run(of(name, changes, method={"name": name}))
    (accuracy,) = record.summary["accuracy_matrix"][0]
    assert accuracy > 0.7, "chance is 0.25"


@pytest.mark.parametrize("name", LIGHT)
def test_runs_with_its_defaults(name: str) -> None:
    experiment = of(name, {"training.rounds": 1}, method={"name": name})
    assert distance(fedcl.run(experiment).params, first_parameters(experiment)) > 1e-3


@every_method
def test_two_runs_are_equal_to_the_bit(name: str) -> None:
    again = fedcl.run(of(name))
    assert_same_runs(again, plain(name))
    assert_same_runs(seen(name)[0], again)
    assert distance(again.params, first_parameters(of(name))) > 1e-3


@every_method
def test_another_seed_gives_another_run(name: str) -> None:
    other = fedcl.run(of(name, {"seed": 1}))
    assert distance(other.params, plain(name).params) > 1e-3


# --- Engines. ---


@every_method
@pytest.mark.ray
@pytest.mark.parametrize("inner", ["serial", "vectorized"])
def test_ray_equals_its_inner_engine_to_the_bit(
    name: str, inner: Literal["serial", "vectorized"], ray_house: RayHouse
) -> None:
    assert_same_runs(fedcl.run(ray_house.on(of(name), 2, inner)), plain(name, inner))


@every_method
def test_vectorized_equals_serial_over_a_run_in_float64(name: str) -> None:
    table = {"training.dtype": "float64"}
    serial = fedcl.run(of(name, table))
    vectorized = fedcl.run(of(name, table, engine={"name": "vectorized"}))
    assert distance(serial.params, vectorized.params) < 1e-9
    for a, b in zip(serial.evaluations, vectorized.evaluations, strict=True):
        assert {**a, "value": 0} == {**b, "value": 0}
        assert a["value"] == pytest.approx(b["value"], rel=1e-9, abs=1e-9)
    assert timeless(serial.costs, alike=False) == timeless(vectorized.costs, alike=False)


@every_method
def test_vectorized_equals_serial_after_one_round_in_float32(name: str) -> None:
    table = {"training.rounds": 1, "stream.tasks": 1}
    runs = [fedcl.run(of(name, table, engine={"name": e})) for e in ("serial", "vectorized")]
    assert distance(runs[0].params, runs[1].params) < 1e-5


@every_method
@pytest.mark.parametrize("model", ["cnn", "cnn with dropout", "mlp with dropout"])
def test_convolutions_and_dropout(name: str, model: str) -> None:
    tables = {
        "cnn": CNN,
        "cnn with dropout": {**CNN, "dropout": 0.3},
        "mlp with dropout": {"name": "mlp", "hidden": [12], "input_dropout": 0.1, "dropout": [0.3]},
    }
    changes = {"training.dtype": "float64", "training.rounds": 1}
    runs = [
        run_or_refused(name, changes, model=tables[model], engine={"name": engine})
        for engine in ("serial", "vectorized")
    ]
    assert (runs[0] is None) == (runs[1] is None)
    if runs[0] is not None and runs[1] is not None:
        assert distance(runs[0].params, runs[1].params) < 1e-9
