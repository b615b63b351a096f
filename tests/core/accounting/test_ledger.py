"""The ledger: what counts as one mechanism, what a budget stops, and what nobody charged."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from fedcl.core.accounting.composition import Charge, epsilon
from fedcl.core.accounting.ledger import Draw, Event, Ledger, Mechanism, Sampling, charges
from fedcl.core.errors import ConfigError
from fedcl.ledgerfile import opened_ledger

DELTA = 1e-5


def event(
    stage: int, number: int, how: Sampling = "poisson", exchange: int = 0, z: float = 1.0
) -> Event:
    moment = min(max(number, 0), 19)
    return Event(stage, number, exchange, "train", z, 1.0, Draw(how, 100, 10, moment))


def ledger(events: list[Event]) -> Ledger:
    return Ledger(events={one.place: one for one in events})


def test_a_client_of_all_tasks_spends_what_the_union_of_all_rounds_spends() -> None:
    """PRIVACY.md 1.6: z = 1, q = .1, 20 rounds a task."""
    found = ledger([event(stage, number) for stage in range(5) for number in range(20)])
    expected = [3.59, 4.69, 5.57, 6.35, 7.05]
    assert found.by_stage(5, DELTA) == pytest.approx(expected, abs=0.006)
    one = epsilon([Charge(1.0, 0.1, 100)], DELTA)
    assert found.epsilon(DELTA) == pytest.approx(one, rel=1e-9)
    assert found.epsilon_rdp(DELTA) > found.epsilon(DELTA)


def test_the_order_of_events_does_not_matter_and_more_of_them_cost_more() -> None:
    events = [event(0, number) for number in range(12)] + [event(1, 0, "all", z=3.0)]
    shuffled = random.Random(0).sample(events, len(events))
    assert ledger(shuffled).epsilon(DELTA) == ledger(events).epsilon(DELTA)
    spent = [ledger(events[:count]).epsilon(DELTA) for count in range(len(events) + 1)]
    assert spent[0] == 0.0 and spent == sorted(set(spent))


def test_a_ledger_on_disk_is_the_same_afterwards(tmp_path: Path) -> None:
    events = [event(0, -1), event(0, 0), event(0, 1, "fixed", 2, 3.0), event(1, 4, "round_robin")]
    mechanism = Mechanism(1.0, 1.0, DELTA)
    with opened_ledger(tmp_path, mechanism, 0) as (root, first):
        for one in events:
            first.intend(one, mechanism)
    with opened_ledger(tmp_path, mechanism, 0) as (again, second):
        assert (again, second.events) == (root, first.events)
        assert list(second.events.values()) == events
        assert second.epsilon(DELTA) == first.epsilon(DELTA) > 0
        assert second.by_channel(DELTA) == first.by_channel(DELTA)


def test_two_releases_of_one_drawn_cohort_are_not_two_samples() -> None:
    """Whoever is in the one is in the other: only their common noise is credited for sampling."""
    both = charges([event(0, 3), event(0, 3, exchange=1)])
    assert both == [Charge(math.sqrt(0.5), 0.1)]
    assert epsilon(both, DELTA) > epsilon([Charge(1.0, 0.1, 2)], DELTA)


def test_what_begins_a_stage_asks_the_cohort_of_its_first_round_again() -> None:
    assert charges([event(0, -1), event(0, 0), event(0, 1)]) == [
        Charge(math.sqrt(0.5), 0.1),
        Charge(1.0, 0.1),
    ]


def test_a_sample_of_fixed_size_is_credited_nothing() -> None:
    assert charges([event(0, 0, "fixed"), event(0, 1, "all")]) == [Charge(1.0), Charge(1.0)]


@pytest.mark.parametrize(("rounds", "times"), [(1, 1), (10, 1), (11, 2), (20, 2)])
def test_in_turns_a_client_is_charged_as_often_as_its_turn_comes(rounds: int, times: int) -> None:
    """Ten of a hundred clients a round: each is asked once in ten rounds."""
    found = charges([event(0, number, "round_robin") for number in range(rounds)])
    assert found == [Charge(1.0, 1.0, times)]


def test_a_channel_that_was_sent_without_an_event_has_no_bound_and_a_name() -> None:
    found = ledger([event(0, 0)])
    found.bare.add("gram")
    assert found.epsilon(DELTA) == found.epsilon_rdp(DELTA) == math.inf
    assert found.by_channel(DELTA)["gram"] == math.inf
    assert found.by_channel(DELTA)["train"] < math.inf


def test_without_noise_there_is_no_bound() -> None:
    assert ledger([event(0, 0, z=0.0)]).epsilon(DELTA) == math.inf
    assert ledger([event(0, 0, "round_robin", z=0.0)]).epsilon(DELTA) == math.inf


def test_a_budget_stops_before_the_release_and_keeps_what_was_charged() -> None:
    kept: list[Event] = []
    found = Ledger(kept.append)
    enough = epsilon([Charge(1.0, 0.1, 3)], DELTA)
    limited = Mechanism(1.0, 1.0, DELTA, budget=enough * (1 + 1e-9))
    for number in range(3):
        found.intend(event(0, number), limited)
    with pytest.raises(ConfigError, match=r"stage 0, round 3 would spend .* above the budget"):
        found.intend(event(0, 3), limited)
    assert kept == list(found.events.values()) == [event(0, number) for number in range(3)]


def test_an_event_is_charged_once_and_cannot_be_another_one_afterwards() -> None:
    kept: list[Event] = []
    found = Ledger(kept.append)
    mechanism = Mechanism(1.0, 1.0, DELTA)
    found.intend(event(0, 0), mechanism)
    found = Ledger(kept.append, found.events)  # as a resumed run finds it
    found.intend(event(0, 0), mechanism)
    assert kept == [event(0, 0)]
    found = Ledger(kept.append, found.events)
    with pytest.raises(ConfigError, match=r"holds another release at stage 0, round 0, exchange 0"):
        found.intend(event(0, 0, z=2.0), mechanism)
