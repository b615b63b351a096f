"""Conformance of every method: what travels and is kept, resuming, and all kinds of streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedcl
from fedcl.core import wire
from fedcl.core.errors import ConfigError
from fedcl.core.vocabulary import vocabulary
from fedcl.store import Store
from tests.conformance import cls, every_method, of, plain, run_or_refused, seen
from tests.tiny import (
    SCENARIOS,
    Interrupted,
    assert_same_runs,
    distance,
    first_parameters,
    interrupt_after,
    read_csv,
    same,
    scenario,
    timeless,
    watched,
)

# --- Wire and resume. ---


@every_method
def test_all_that_travels_or_is_kept_survives_the_codec(name: str, tmp_path: Path) -> None:
    experiment = of(name)
    words = vocabulary(experiment.method)

    def check(value: Any) -> None:
        read = wire.loads(wire.dumps(value, words), words)
        assert same(read, value)
        assert wire.dumps(read, words) == wire.dumps(value, words)

    check(experiment.method.init(first_parameters(experiment)))
    _, engine = seen(name)
    for request, _ in engine.requests:
        check(request.message)
        tensors, text = wire.encode(request.program, words)
        assert wire.encode(wire.decode(tensors, text, words), words) == (tensors, text)
    for result in engine.results:
        for memory in result.memories.values():
            check(memory)
        for reply in result.replies or ():
            check(reply)
    record = fedcl.run(experiment, tmp_path / "run")
    store = Store(tmp_path / "run" / "checkpoint")
    saved = store.saved()
    store.close()
    assert saved is not None
    state, _ = wire.loads(saved.state, words)
    assert same(dict(state.params), dict(record.params))
    assert_same_runs(record, plain(name))


@every_method
def test_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    fedcl.run(of(name), whole)
    for rounds in (1, 2, 3):
        broken = tmp_path / f"after {rounds}"
        with pytest.raises(Interrupted):
            fedcl.run(of(name), broken, watch=interrupt_after(rounds))
        fedcl.run(of(name), broken, resume=True)
        for file in ("evaluations.csv", "model.safetensors", "config.toml", "privacy.csv"):
            assert (broken / file).read_bytes() == (whole / file).read_bytes(), file
        costs = [timeless(read_csv(folder / "costs.csv")) for folder in (broken, whole)]
        assert costs[0] == costs[1]


# --- Streams. ---


@every_method
@pytest.mark.parametrize("order", ["shared", "shuffled", "staggered"])
@pytest.mark.parametrize("kind", list(SCENARIOS))
def test_every_scenario_and_order(name: str, kind: str, order: str) -> None:
    changes = {**scenario(kind), "stream.order": {"name": order}, "training.rounds": 1}
    record = run_or_refused(name, changes)
    if record is None:
        return
    assert (record.summary["accuracy_matrix"] is None) == (order != "shared")
    assert 0 <= record.summary["average_accuracy"] <= 1
    assert record.summary["scenario"] == {"temporal": "domain"}.get(kind, kind)
    vectorized = fedcl.run(of(name, changes, engine={"name": "vectorized"}))
    assert [row["round"] for row in vectorized.evaluations] == [
        row["round"] for row in record.evaluations
    ]


@every_method
def test_clients_that_do_not_answer(name: str) -> None:
    changes = {"training.availability": 0.6, "training.rounds": 3, "stream.clients": 8}
    record, engine = watched(of(name, changes))
    assert any(len(ids) < 3 for request, ids in engine.requests if request.position.round == 0)
    assert_same_runs(fedcl.run(of(name, changes)), record)


@every_method
def test_without_borders_it_runs_or_is_refused(name: str) -> None:
    """What needs to be told where a task ends says so, and is refused where nobody tells."""
    changes = {"stream.borders": False}
    if cls(name).needs_borders:
        with pytest.raises(ConfigError, match=rf"{name}.*borders"):
            of(name, changes)
        return
    record, engine = watched(of(name, changes))
    assert {request.position.round for request, _ in engine.requests} == {0, 1}
    assert distance(record.params, first_parameters(of(name))) > 1e-3
