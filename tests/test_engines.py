"""Engines: every file in `fedcl/engines` computes what `serial` computes.

To the bit within the loop group and within the vectorised group, to rounding across them. Flower's
equality is in test_flower.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

import pytest

import fedcl
from fedcl.config import Experiment, available, find
from fedcl.core.errors import ClientError, ConfigError, ExposureError
from fedcl.engines.auto import Auto
from tests.ray_house import RayHouse
from tests.tiny import CNN, assert_same_runs, distance, timeless, tiny, watched

ENGINES = [name for name in available("engines") if name != "flower"]
HERE = [name for name in ENGINES if name != "ray"]
every_engine = pytest.mark.parametrize(
    "engine", [pytest.param(e, marks=pytest.mark.ray if e == "ray" else ()) for e in ENGINES]
)
# Sizes that fall off steeply, several steps, and everything that a step can have.
HARD: dict[str, Any] = {
    "training.dtype": "float64",
    "stream.clients": 9,
    "stream.partition": {"name": "quantity", "exponent": 1.5},
    "training.cohort": 7,
    "training.fold": 4,
    "training.local": {
        "name": "sgd",
        "lr": 0.1,
        "batch_size": 6,
        "epochs": 2,
        "momentum": 0.6,
        "weight_decay": 0.01,
    },
}
DEEP = {"name": "mlp", "hidden": [12, 8], "input_dropout": 0.1, "dropout": [0.3, 0.2]}


@pytest.fixture
def house(engine: str, request: pytest.FixtureRequest) -> RayHouse | None:
    """A Ray session, when the engine of a test needs one."""
    if engine != "ray":
        return None
    found = request.getfixturevalue("ray_house")
    assert isinstance(found, RayHouse)
    found.start()
    return found


def on(
    engine: str,
    changes: Mapping[str, Any] | None = None,
    house: RayHouse | None = None,
    **tables: Any,
) -> Experiment:
    """The tiny experiment on an engine; in a house, on Ray workers that serve all its runs."""
    if house is not None:
        return house.on(tiny(changes, **tables), 1, "vectorized")
    given = {"engine.name": engine, **(changes or {})}
    return tiny(given, **tables)


def test_there_are_engines() -> None:
    assert {"auto", "ray", "serial", "vectorized"} <= set(ENGINES)


@every_engine
def test_options_have_defaults_and_are_checked(engine: str) -> None:
    cls: Any = find("engines", engine)
    for option in fields(cls):
        assert option.default is not MISSING or option.default_factory is not MISSING
    cls()
    with pytest.raises(ConfigError, match=r"\[engine\] unknown key 'speed'"):
        tiny(engine={"name": engine, "speed": 3})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "vectorized", "block": -1}, "block must be at least 0"),
        ({"name": "ray", "block": -1}, "block must be at least 0"),
        ({"name": "ray", "workers": -1}, "workers must be at least 0"),
        ({"name": "ray", "inner": "parallel"}, "inner"),
        ({"name": "ray", "gpus": -0.5}, "gpus must be a share of one or a whole number"),
        ({"name": "ray", "gpus": 1.5}, "gpus must be a share of one or a whole number"),
        ({"name": "ray", "patience": 0}, "patience must be above 0"),
    ],
)
def test_refuses_options(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(engine=table)


# --- Equality. ---


@every_engine
@pytest.mark.parametrize("model", [DEEP, {**CNN, "dropout": 0.3}], ids=["mlp", "cnn"])
def test_equals_serial_in_float64(
    engine: str, model: dict[str, Any], house: RayHouse | None
) -> None:
    serial = fedcl.run(on("serial", HARD, model=model))
    found = fedcl.run(on(engine, HARD, house, model=model))
    assert distance(found.params, serial.params) < 1e-9
    for a, b in zip(serial.evaluations, found.evaluations, strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-9, abs=1e-9)
        assert {**a, "value": 0} == {**b, "value": 0}
    assert timeless(found.costs, alike=False) == timeless(serial.costs, alike=False)


@pytest.mark.parametrize("engine", HERE)
def test_an_experiment_can_run_twice(engine: str) -> None:
    experiment = on(engine)
    assert_same_runs(fedcl.run(experiment), fedcl.run(experiment))


@pytest.mark.parametrize("fold", [1, 3, 16])
@pytest.mark.parametrize("engine", HERE)
def test_fold_blocks_move_nothing_but_rounding(engine: str, fold: int) -> None:
    found = fedcl.run(on(engine, {**HARD, "training.fold": fold}))
    assert distance(found.params, fedcl.run(on(engine, HARD)).params) < 1e-12


@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks_of_one_computation_move_nothing_but_rounding(block: int) -> None:
    table = {"name": "vectorized", "block": block}
    found = fedcl.run(tiny(HARD, engine=table))
    assert distance(found.params, fedcl.run(on("vectorized", HARD)).params) < 1e-12


def test_clients_come_in_fold_blocks_by_id() -> None:
    for engine in HERE:
        experiment = on(engine, {**HARD, "training.cohort": 0})
        _, watching = watched(experiment)
        assert all(ids == tuple(range(9)) for _, ids in watching.requests)
        blocks = [result.ids for result in watching.results]
        assert blocks == [(0, 1, 2, 3), (4, 5, 6, 7), (8,)] * 4, engine


def test_auto_is_one_of_the_others_and_says_which() -> None:
    for clients, expected in ((3, "serial"), (6, "vectorized")):
        changes = {**HARD, "training.cohort": clients, "training.fold": 16}
        record = fedcl.run(on("auto", changes))
        assert record.summary["engine_reason"].startswith(expected)
        assert record.summary["engine"] == "auto"
        assert_same_runs(record, fedcl.run(on(expected, changes)))
    cnn = fedcl.run(on("auto", HARD, model=CNN))
    assert cnn.summary["engine_reason"].startswith("vectorized")
    other = fedcl.run(on("auto", HARD, model={"name": "tests.plugins:Scaled"}))
    assert other.summary["engine_reason"].startswith("serial")


def test_autos_choice_of_how_to_batch_does_not_depend_on_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choices = set()
    for cores in (1, 2, 64):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        experiment = on("auto", {**HARD, "training.cohort": 0})
        fedcl.run(experiment)
        assert isinstance(experiment.engine, Auto)
        choices.add(experiment.engine.reason)
    assert len(choices) == 1


def test_tuning_writes_its_choice_into_the_config(tmp_path: Path) -> None:
    experiment = on("vectorized", {**HARD, "engine.tune": True})
    first = fedcl.run(experiment, tmp_path / "first")
    written = tomllib.loads((tmp_path / "first" / "config.toml").read_text())
    assert written["engine"]["tune"] is False
    assert written["engine"]["path"] in ("loop", "fused", "grouped", "vmap")
    # The file alone gives the same bits; a run that goes on does not choose again.
    again = fedcl.run(fedcl.load_config(tmp_path / "first" / "config.toml"))
    assert_same_runs(first, again)
    on_and_on = fedcl.run(experiment, tmp_path / "first", resume=True)
    assert_same_runs(first, on_and_on)


@pytest.mark.parametrize("path", ["fused", "grouped", "vmap", "loop"])
def test_every_path_computes_what_serial_computes(path: str) -> None:
    for model in (DEEP, CNN):
        own = fedcl.run(on("vectorized", {**HARD, "engine.path": path}, model=model))
        serial = fedcl.run(on("serial", HARD, model=model))
        assert distance(own.params, serial.params) < 1e-9
        if path == "loop":
            assert_same_runs(own, serial)


def test_a_path_that_a_model_does_not_have_is_refused() -> None:
    changes = {**HARD, "engine.path": "fused"}
    with pytest.raises(ClientError, match=r'engine\.path = "fused": it trains'):
        fedcl.run(on("vectorized", changes, model={"name": "tests.plugins:Scaled"}))


def test_batched_clients_keep_memories_of_their_own() -> None:
    """A slice of a block's parameters would carry the whole block to wherever a memory goes."""
    _, watching = watched(on("vectorized", method={"name": "tests.plugins:Personal"}))
    kept = [memory for result in watching.results for memory in result.memories.values()]
    assert len(kept) == 4 * 3
    for memory in kept:
        for value in memory.values():
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


# --- Single replies. ---


@every_engine
def test_collect_gives_each_reply_in_the_order_of_ids(engine: str, house: RayHouse | None) -> None:
    peek = {"name": "tests.plugins:Peek"}
    found, watching = watched(on(engine, None, house, method=peek))
    mean = fedcl.run(on("serial", aggregation={"weights": "equal"}))
    assert distance(found.params, mean.params) < 1e-5
    assert all(request.reveal for request, _ in watching.requests)
    replies = [reply for result in watching.results for reply in result.replies or ()]
    assert len(replies) == 4 * 3
    asked = [i for _, ids in watching.requests for i in ids]
    assert [i for result in watching.results for i in result.ids] == asked
    assert all(result.total is None for result in watching.results)


def test_collect_is_refused_where_replies_are_hidden() -> None:
    hidden = [{"name": "secure_aggregation"}]
    with pytest.raises(ExposureError, match=r"Peek.*asks for single replies.*channel"):
        tiny(method={"name": "tests.plugins:Peek"}, channel=hidden)
    liar = tiny(method={"name": "tests.plugins:Liar"}, channel=hidden)
    with pytest.raises(ExposureError, match=r"'train' asks for single replies"):
        fedcl.run(liar)


def test_the_same_question_twice_in_a_round_has_other_seeds() -> None:
    _, watching = watched(on("serial", method={"name": "tests.plugins:Twice"}))
    exchanges = [request.position.exchange for request, _ in watching.requests]
    assert exchanges == [0, 1] * 4
    first, second = watching.results[0], watching.results[2]
    assert first.total is not None and second.total is not None
    assert first.ids == second.ids
    assert distance(first.total.total, second.total.total) > 1e-6


# --- Failures. ---


@every_engine
def test_a_failing_program_is_told_with_its_place(engine: str, house: RayHouse | None) -> None:
    experiment = on(engine, None, house, method={"name": "tests.plugins:Failing"})
    with pytest.raises(ClientError) as caught:
        fedcl.run(experiment)
    error = caught.value
    assert (error.client, error.stage, error.round, error.program) == (3, 1, 2, "fail")
    assert "the cat sat on the keyboard" in str(error)
    assert "program 'fail' of client 3 failed in stage 1, round 2" in str(error)
    assert error.__cause__ is not None


@every_engine
def test_a_failing_loss_is_told_with_its_place(engine: str, house: RayHouse | None) -> None:
    with pytest.raises(ClientError, match=r"size|shape") as caught:
        fedcl.run(on(engine, None, house, method={"name": "tests.plugins:BrokenLoss"}))
    assert (caught.value.stage, caught.value.round, caught.value.program) == (0, 0, "train")


@pytest.mark.parametrize("engine", HERE)
def test_diverged_training_is_told_with_a_remedy(engine: str) -> None:
    with pytest.raises(ClientError, match=r"NaN or infinity.*lower training.local.lr"):
        fedcl.run(on(engine, {"training.local.lr": 1e30, "training.rounds": 4}))


@pytest.mark.parametrize("engine", HERE)
def test_an_engine_that_failed_runs_again(engine: str) -> None:
    experiment = on(engine, method={"name": "tests.plugins:Failing", "stage": 5})
    failing = on(engine, method={"name": "tests.plugins:Failing"})
    with pytest.raises(ClientError):
        fedcl.run(failing)
    assert_same_runs(fedcl.run(experiment), fedcl.run(on(engine)))


# --- Ray. ---


@pytest.mark.ray
@pytest.mark.parametrize("inner", ["serial", "vectorized"])
def test_ray_equals_its_inner_engine_to_the_bit(
    inner: Literal["serial", "vectorized"], ray_house: RayHouse
) -> None:
    """Ten fold blocks for four workers, more than wait at each; memories travel both ways."""
    changes = {**HARD, "stream.clients": 10, "training.cohort": 0, "training.fold": 1}
    for method in ("fedavg", "replay"):
        tables: dict[str, Any] = {"method": {"name": method}, "model": DEEP}
        plain = fedcl.run(on(inner, changes, **tables))
        spread = ray_house.on(on("serial", changes, **tables), 4, inner)
        assert_same_runs(fedcl.run(spread), plain)
