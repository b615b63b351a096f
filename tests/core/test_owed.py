"""What answers cost at most, known before anybody is asked, and what they say afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from fedcl.assembly import build_site, may_be_late
from fedcl.core.accounting.recordledger import RecordEvent
from fedcl.core.client import Spent
from fedcl.core.coverage import KEPT, OWN, is_trusted
from fedcl.core.door import Door
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.local import CrossEntropy, Local
from fedcl.core.owed import knows_rows, owed
from fedcl.core.privacy.examples import ExampleMechanism
from fedcl.core.recordrelease import charge_ahead
from fedcl.core.request import Position
from fedcl.trainers.dp_sgd import DpSgd
from tests.conformance import every_method, light
from tests.tiny import scenario, stream_of, tiny, watched

DP = {"name": "dp_sgd", "noise_multiplier": 2.0, "batch_size": 4, "lr": 0.05}


def private(**changes: Any) -> Any:
    """Returns a run of two stages, in which all clients of unequal size are asked."""
    own = {**scenario("class"), "training.cohort": 0, "evaluation.every": 0}
    return tiny({**own, "training.local": DP, **changes})


@every_method
def test_no_answer_says_that_it_costs_more_than_was_owed(name: str) -> None:
    public = {"stream.public": 0.1} if name == "cfed" else {}
    try:
        experiment = private(method=light(name), **public)
    except ExposureError:
        return  # refused with the trainer
    site, coverage = build_site(experiment), experiment.method.records()
    _, engine = watched(experiment)
    results, exact = iter(engine.results), 0
    for request, ids in engine.requests:
        spent: dict[int, Spent] = {}
        answered: set[int] = set()
        while not answered.issuperset(ids):
            result = next(results)
            spent |= result.spent
            answered |= set(result.ids)
        if not is_trusted(request.program) or request.name == "review":  # of public rows alone
            continue
        most = owed(site, coverage, request.program, request.position.stage, ids)
        assert most.keys() == spent.keys() == set(ids)
        for id, one in spent.items():
            own = replace(one, earlier=one.earlier and coverage.kind != "own")
            if knows_rows(coverage, request.program):
                assert own == most[id]
                exact += 1
            else:
                assert own.noise_multiplier == most[id].noise_multiplier
                assert own.rate <= most[id].rate and own.steps <= most[id].steps
                assert own.earlier == most[id].earlier
    assert exact or name in ("der", "joint", "replay")


def test_remembered_and_made_up_examples_make_steps_and_no_record_rarer() -> None:
    experiment = private()
    site, stream = build_site(experiment), stream_of(experiment)
    first, second = (len(stream.rows_at(2, stage)) for stage in (0, 1))
    mixed = Local(CrossEntropy(), data=_mixed)
    rate = 4 / second
    for coverage, most in (
        (OWN, second),
        (KEPT, first + second),
        (replace(OWN, drawn=0.5), second + -(-second // 2)),
        (replace(KEPT, drawn=0.01), first + second + 1),
    ):
        steps, earlier = -(-most // 4), coverage.kind == "kept"
        found = owed(site, coverage, mixed, 1, [2])
        assert found == {2: Spent(2.0, rate, steps, earlier)}
    plain = Local(CrossEntropy())
    assert owed(site, KEPT, plain, 1, [2]) == {2: Spent(2.0, rate, -(-second // 4))}
    assert owed(site, KEPT, mixed, 0, [2])[2].steps == -(-first // 4)


def _mixed(client: Any, message: Any) -> Any:
    return client.data


@dataclass(frozen=True)
class Silent:
    """A private trainer that does not tell what an answer costs."""

    @property
    def protection(self) -> ExampleMechanism:
        """What it promises."""
        return ExampleMechanism(1.0, 1.0)


def test_a_trainer_that_does_not_tell_is_refused_with_the_remedy() -> None:
    site: Any = replace(build_site(private()), trainer=Silent())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"trainer Silent does not tell .* `spends\(local, least"):
        owed(site, OWN, Local(CrossEntropy()), 0, [0])


def test_only_what_is_known_for_sure_counts_against_a_budget_before_it_comes() -> None:
    door = Door(
        *(None,) * 7,  # type: ignore[arg-type]
        promise=ExampleMechanism(1.0, 1.0, budget=1.0),
        coverage=KEPT,
        owed=lambda coverage, program, stage, ids: dict.fromkeys(ids, Spent(1.0, 0.5, 9)),
    )
    door.ledger.records.keep = (kept := list[RecordEvent]()).append
    charge_ahead(door, Position(0, 0, 0), Local(CrossEntropy(), data=_mixed), [2])
    assert door.ledger.records.epsilon(1e-5) > 1.0
    with pytest.raises(ConfigError, match="nobody was asked"):
        charge_ahead(door, Position(0, 1, 0), Local(CrossEntropy()), [2])
    charge_ahead(door, Position(0, 2, 0), Local(CrossEntropy()), [])
    charge_ahead(door, Position(0, 3, 0), _mixed, [2])  # no training and no statistic
    assert [(one.place, one.asked) for one in kept] == [((0, 0, 0, 0), True)]


def test_a_trainer_tells_the_most_of_few_and_of_many_examples() -> None:
    trainer, local = DpSgd(noise_multiplier=1.5, batch_size=8, epochs=2), Local(CrossEntropy())
    assert trainer.spends(local, 10, 10) == trainer.settings.spent(local, 10)
    assert trainer.spends(local, 10, 30) == Spent(1.5, 0.8, 8)
    assert trainer.spends(local, 0, 0) == Spent(1.5, 1.0, 0)


def test_answers_may_be_late_where_a_time_limit_is_set() -> None:
    assert not may_be_late(tiny()) and not may_be_late(tiny({"engine.name": "flower"}))
    assert may_be_late(tiny({"engine.name": "flower", "engine.timeout": 1.0}))
