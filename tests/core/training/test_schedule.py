"""Schedules: each phase by its formula, borders, and what a run's clients really step with."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedcl
from fedcl.core.errors import ConfigError
from fedcl.core.training.schedule import SCHEDULES, Constant, Cosine, Infinite, Pace
from fedcl.trainers.sgd import Sgd
from tests.commands import call, write_config
from tests.tiny import Interrupted, assert_same_runs, interrupt_after, same, tiny, watched

ROUNDS, STAGES = 10, 3


def course(schedule: Any, rounds: int = ROUNDS, stages: int = STAGES) -> list[float]:
    """Returns the factor of every round of a run."""
    return [schedule.factor(s, r, stages, rounds) for s in range(stages) for r in range(rounds)]


def test_constant_is_one() -> None:
    assert course(Constant()) == [1.0] * ROUNDS * STAGES


def test_cosine_warms_up_again_at_each_border() -> None:
    found = course(Cosine(warmup=0.2, floor=0.1))
    assert found[:ROUNDS] == found[ROUNDS : 2 * ROUNDS] == found[2 * ROUNDS :]
    assert found[:3] == [0.5, 1.0, 1.0]
    # Eight rounds of half a cosine: half way down after four of them.
    assert found[6] == pytest.approx(0.55)
    assert found[9] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 7 / 8)))


def test_cosine_without_warmup_begins_at_the_top() -> None:
    assert course(Cosine(warmup=0.0))[0] == 1.0


def test_infinite_has_four_phases_and_one_warmup() -> None:
    found = course(Infinite(0.2, 0.4, constant=0.5, anneal=0.2, floor=0.05))
    assert found[:2] == [0.5, 1.0]  # warm-up
    assert found[2] == 1.0 and found[4] == pytest.approx(0.75)  # cool-down, half way
    assert found[6:28] == [0.5] * 22  # constant, whatever borders there are
    assert found[28] == pytest.approx(0.5 * math.sqrt(0.1))
    assert found[29] == pytest.approx(0.05)


def test_infinite_may_anneal_every_stage() -> None:
    found = course(Infinite(0.2, 0.4, anneal=0.2, annealed="stages"))
    for stage in range(STAGES):
        assert found[10 * stage + 9] == pytest.approx(0.05)
    assert found[10] == found[20] == 0.5


def test_infinite_without_a_fall_stays() -> None:
    assert course(Infinite(anneal=0.0))[-1] == 0.5


@given(
    st.sampled_from(
        [Cosine(), Cosine(0.55, 1.0), Infinite(), Infinite(0.0, 0.0, 0.3, 0.9, 0.01, "stages")]
    ),
    st.integers(1, 40),
    st.integers(1, 6),
)
def test_factors_lie_above_zero_and_reach_no_more_than_one(
    schedule: Any, rounds: int, stages: int
) -> None:
    pace = Pace(schedule, stages, rounds)
    assert all(0 < factor <= 1 for factor in course(schedule, rounds, stages))
    assert pace.factor(0, -1) == pace.factor(0, 0)
    assert pace.factor(stages - 1, rounds) == pace.factor(stages - 1, rounds - 1)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"name": "cosine", "warmup": 1.0}, "shares of a stage's rounds"),
        ({"name": "cosine", "floor": 0.0}, r"floor must lie in \(0, 1\]"),
        ({"name": "infinite", "constant": 1.5}, "constant must lie"),
        ({"name": "infinite", "floor": 0.6}, "must not lie above constant"),
        ({"name": "infinite", "cooldown": 0.8}, "below 1 together"),
        ({"name": "infinite", "annealed": "never"}, "'run' or 'stages'"),
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ("cosine", "is a table with a name"),
    ],
)
def test_what_cannot_be_is_refused(table: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny({"training.schedule": table})


def test_the_config_says_the_schedule_with_its_defaults() -> None:
    assert next(iter(SCHEDULES)) == "constant"
    assert 'name = "constant"' in tiny().toml
    resolved = tiny({"training.schedule": {"name": "cosine"}}).resolved["training"]["schedule"]
    assert resolved == {"name": "cosine", "warmup": 0.1, "floor": 0.1}


def test_a_run_steps_with_the_scheduled_rates() -> None:
    # One client and one step: the change is linear in the rate.
    changes = {
        "stream.clients": 1,
        "stream.partition": {"name": "iid"},
        "training.cohort": 1,
        "training.rounds": 1,
        "stream.tasks": 1,
        "training.local.batch_size": 1000,
        "training.dtype": "float64",
    }
    moved = []
    for schedule in (
        {"name": "constant"},
        {"name": "infinite", "anneal": 0.9, "warmup": 0.0, "cooldown": 0.0, "floor": 0.25},
    ):
        _, engine = watched(tiny({**changes, "training.schedule": schedule}))
        moved.append(engine.results[0].total)
    assert moved[0] is not None and moved[1] is not None
    for name, value in moved[0].total.items():
        # The fall takes nine tenths of the only round, so that the round does not lie within it.
        assert moved[1].total[name].allclose(0.5 * value, rtol=1e-9, atol=1e-15)


def test_engines_agree_and_a_resumed_run_goes_on_at_its_place(tmp_path: Path) -> None:
    changes = {
        "training.schedule": {"name": "infinite"},
        "training.dtype": "float64",
        "training.rounds": 5,
    }
    whole = fedcl.run(tiny(changes))
    batched = fedcl.run(tiny(changes, engine={"name": "vectorized"}))
    for name, value in whole.params.items():
        assert value.allclose(batched.params[name], rtol=0, atol=1e-9)
    with pytest.raises(Interrupted):
        fedcl.run(tiny(changes), tmp_path / "run", watch=interrupt_after(7))
    assert_same_runs(fedcl.run(tiny(changes), tmp_path / "run", resume=True), whole)
    assert not same(
        dict(whole.params),
        dict(fedcl.run(tiny({"training.rounds": 5, "training.dtype": "float64"})).params),
    )


def test_a_schedule_of_ones_changes_no_bit() -> None:
    flat = {"name": "infinite", "warmup": 0.0, "cooldown": 0.0, "constant": 1.0, "anneal": 0.0}
    assert_same_runs(fedcl.run(tiny({"training.schedule": flat})), fedcl.run(tiny()))


def test_a_trainer_is_scaled_by_its_rate_alone() -> None:
    trainer = Sgd(lr=0.4, momentum=0.5, weight_decay=0.1)
    assert trainer.scaled(0.25) == replace(trainer, lr=0.1)


def test_show_draws_the_course_of_the_learning_rate(tmp_path: Path) -> None:
    schedule = {"name": "infinite", "warmup": 0.0, "cooldown": 0.4, "anneal": 0.5}
    called = call("show", write_config(tmp_path, {"training.schedule": schedule}))
    # Two tasks of two rounds: the top, the constant half, and a fall to 0.05 over one round.
    assert "learning rate, each round, the highest is lr itself:\n█▄▄▁\n" in called.out
    assert "learning rate" not in call("show", write_config(tmp_path, {})).out
