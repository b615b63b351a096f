"""The ledger by record: which of its client's replies a record is charged for, and when."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from fedcl.core.accounting import recordledger
from fedcl.core.accounting.composition import Charge, epsilon, epsilon_rdp
from fedcl.core.accounting.recordledger import RecordEvent, RecordLedger, grouped, most_of
from fedcl.core.accounting.worst import charges_of, worst
from fedcl.core.client import Spent
from fedcl.core.errors import ConfigError
from fedcl.core.privacy.examples import ExampleMechanism
from fedcl.ledgerfile import LedgerFile

DELTA = 1e-5
PROMISE = ExampleMechanism(1.0, 1.0, delta=DELTA)


def event(
    stage: int, number: int, spent: Mapping[int, Spent], channel: str = "train", attempt: int = 0
) -> RecordEvent:
    return RecordEvent(stage, number, 0, attempt, channel, grouped(spent))


def ledger(events: Iterable[RecordEvent]) -> RecordLedger:
    found = RecordLedger()
    for one in events:
        found.intend(one, PROMISE)
    return found


def rounds(stage: int, count: int, spent: Spent) -> list[RecordEvent]:
    return [event(stage, number, {0: spent}) for number in range(count)]


# --- PRIVACY.md 1.6. ---


def test_a_record_of_one_task_stays_at_what_it_spent_there() -> None:
    found = ledger(e for stage in range(5) for e in rounds(stage, 20, Spent(1.0, 0.1, 1)))
    matrix = found.matrix(5, DELTA)
    for stage in range(5):
        assert matrix[stage][:stage] == [None] * stage
        assert matrix[stage][stage:] == pytest.approx([3.59] * (5 - stage), abs=0.005)
    assert found.epsilon(DELTA) == epsilon([Charge(1.0, 0.1, 20)], DELTA)


def test_a_remembered_record_goes_on_paying() -> None:
    first = event(0, 0, {0: Spent(1.0, 0.05, 400)})
    later = [event(stage, 0, {0: Spent(1.0, 0.02, 400, earlier=True)}) for stage in range(1, 5)]
    row = ledger([first, *later]).matrix(5, DELTA)[0]
    assert row == pytest.approx([6.70, 7.19, 7.67, 8.14, 8.59], abs=0.005)


def test_a_record_that_comes_in_all_tasks_spends_what_all_rounds_spend() -> None:
    """Permuted inputs of the same person, say; the same numbers as a client's."""
    found = ledger(e for stage in range(5) for e in rounds(stage, 20, Spent(1.0, 0.1, 1)))
    found.met = lambda client: [(1, 1, 1, 1, 1)]
    row = found.matrix(5, DELTA)[0]
    assert row == pytest.approx([3.59, 4.69, 5.57, 6.35, 7.05], abs=0.006)
    assert found.epsilon(DELTA) == pytest.approx(epsilon([Charge(1.0, 0.1, 100)], DELTA), rel=1e-9)


# --- Composition (T2). ---


def test_all_stages_are_one_accountant_fed_with_all_events() -> None:
    events = [
        event(stage, number, {0: Spent(1.5, 0.2, 3, earlier=True), 1: Spent(1.5, 0.1, 6)})
        for stage in range(5)
        for number in range(4)
    ]
    found = ledger(events)
    slow = [Charge(1.5, 0.2, 3) for _ in range(20)]
    assert found.epsilon(DELTA) == pytest.approx(epsilon(slow, DELTA), abs=1e-9)
    assert found.epsilon_rdp(DELTA) == pytest.approx(epsilon_rdp(slow, DELTA), abs=1e-9)
    shuffled = random.Random(0).sample(events, len(events))
    other = RecordLedger(events={one.place: [one] for one in shuffled})
    assert other.epsilon(DELTA) == found.epsilon(DELTA)
    spent = [ledger(events[:count]).epsilon(DELTA) for count in (0, 4, 8, 20)]
    assert spent[0] == 0.0 and spent == sorted(set(spent))


def test_clients_do_not_add_up_and_the_worst_one_counts() -> None:
    found = ledger([event(0, 0, {k: Spent(1.0, 0.01 * (k + 1), 30) for k in range(9)})])
    assert found.epsilon(DELTA) == epsilon([Charge(1.0, 0.09, 30)], DELTA)


def test_what_came_bare_has_no_bound_and_a_name() -> None:
    found = ledger(rounds(0, 2, Spent(1.0, 0.1, 1)))
    found.bare.add("gram")
    assert found.epsilon(DELTA) == found.epsilon_rdp(DELTA) == math.inf
    assert found.matrix(2, DELTA) == [[math.inf, math.inf], [None, math.inf]]
    by_channel = found.by_channel(DELTA)
    assert by_channel["gram"] == math.inf and by_channel["train"] < math.inf


def test_without_noise_there_is_no_bound() -> None:
    assert ledger(rounds(0, 1, Spent(0.0, 0.1, 1))).epsilon(DELTA) == math.inf


def test_no_step_costs_nothing() -> None:
    assert ledger(rounds(0, 1, Spent(0.0, 0.1, 0))).epsilon(DELTA) == 0.0


# --- Copies. ---


def test_copies_of_a_record_move_a_step_together() -> None:
    rows = {(0, False): {(1.0, 0.1): 5}, (1, True): {(1.0, 0.5): 2}, (2, False): {(2.0, 1.0): 1}}
    once = recordledger.signature(rows, (1, 0, 0))
    assert once == ((1.0, 0.1, 5), (1.0, 0.5, 2))
    twice = recordledger.signature(rows, (1, 1, 0))
    assert twice == ((0.5, 0.75, 2), (1.0, 0.1, 5))
    assert recordledger.signature(rows, (0, 0, 3)) == ((2 / 3, 1.0, 1),)
    assert recordledger.signature(rows, (1, 1, 3), last=0) == ((1.0, 0.1, 5),)
    assert recordledger.signature(rows, (0, 1, 0)) == ((1.0, 0.5, 2),), "later stages only"


def test_patterns_that_others_exceed_are_left_out() -> None:
    assert most_of([(1, 0), (1, 1), (0, 1), (1, 1)]) == [(1, 1)]
    assert sorted(most_of([(1, 0), (0, 1)])) == [(0, 1), (1, 0)]


# --- Once, before, and within the budget. ---


def test_an_event_is_charged_once_and_another_one_at_its_place_anew() -> None:
    kept: list[RecordEvent] = []
    found = RecordLedger(kept.append)
    one, other = event(0, 0, {0: Spent(1.0, 0.1, 5)}), event(0, 0, {0: Spent(1.0, 0.2, 5)})
    again = event(0, 0, {0: Spent(1.0, 0.1, 5)}, attempt=1)
    for given in (one, one, other, one, other, again):
        found = RecordLedger(kept.append, found.events)  # a run that is resumed
        found.intend(given, PROMISE)
    with pytest.raises(ConfigError, match="asks a second time at stage 0, round 0, exchange 0"):
        found.intend(one, PROMISE)
    assert kept == [one, other, again]
    expected = [Charge(1.0, 0.1, 10), Charge(1.0, 0.2, 5)]
    assert found.epsilon(DELTA) == epsilon(expected, DELTA)


def test_a_budget_stops_before_anything_is_handed_out() -> None:
    kept: list[RecordEvent] = []
    found = RecordLedger(kept.append)
    enough = epsilon([Charge(1.0, 0.1, 15)], DELTA)
    limited = ExampleMechanism(1.0, 1.0, delta=DELTA, budget=enough * (1 + 1e-9))
    both = {0: Spent(1.0, 0.1, 5), 1: Spent(1.0, 0.05, 5)}
    events = [event(0, number, both) for number in range(4)]
    for one in events[:3]:
        found.intend(one, limited)
    with pytest.raises(ConfigError, match=r"stage 0, round 3 would spend .* of a record"):
        found.intend(events[3], limited)
    assert kept == events[:3]
    found.intend(event(1, 0, {0: Spent(1.0, 0.1, 5)}), limited)  # other records


def test_what_is_on_disk_is_what_was_charged(tmp_path: Path) -> None:
    events = [
        event(stage, 0, {3: Spent(1.0, 1 / 3, 7, True), 5: Spent(0.7, 1.0, 1)}, "gram")
        for stage in range(3)
    ]
    file = LedgerFile(tmp_path)
    note = partial(file.note, table="bare_records")
    found = RecordLedger(file.append_records, file.record_events(), note=note)
    for one in events:
        found.intend(one, PROMISE)
    found.uncharged("features")
    file.close()
    file = LedgerFile(tmp_path)
    again = RecordLedger(file.append_records, file.record_events())
    assert list(again.every()) == events
    assert again.matrix(3, DELTA) == RecordLedger(events=found.events).matrix(3, DELTA)
    assert file.bare("bare_records") == {"features"} and not file.bare()
    again.intend(events[1], PROMISE)
    assert sum(len(own) for own in file.record_events().values()) == 3
    file.close()


# --- Questions that are charged before an answer comes. ---


def question(stage: int, number: int, spent: Mapping[int, Spent]) -> RecordEvent:
    return replace(event(stage, number, spent), asked=True)


def test_an_answer_takes_the_place_of_its_question_and_others_stay_charged() -> None:
    most, told = Spent(1.0, 0.2, 9), Spent(1.0, 0.1, 5)
    found = RecordLedger()
    found.intend(question(0, 0, {0: most, 1: most}), PROMISE)
    assert found.epsilon(DELTA) == epsilon([Charge(1.0, 0.2, 9)], DELTA)
    found.intend(event(0, 0, {0: told}), PROMISE)
    assert list(found.every()) == [question(0, 0, {1: most}), event(0, 0, {0: told})]
    assert found.epsilon(DELTA) == epsilon([Charge(1.0, 0.2, 9)], DELTA)
    found.met = lambda client: [(1 - client,)]  # only client 0 has records
    assert found.epsilon(DELTA) == epsilon([Charge(1.0, 0.1, 5)], DELTA)
    assert found.by_channel(DELTA)["train"] == epsilon([Charge(1.0, 0.1, 5)], DELTA)
    again = RecordLedger(events=found.events, met=found.met)
    assert again.epsilon(DELTA) == found.epsilon(DELTA)


def test_who_was_not_asked_after_all_is_charged_nothing() -> None:
    found = RecordLedger()
    found.intend(question(0, 0, {0: Spent(1.0, 0.2, 9)}), PROMISE)
    found.intend(event(0, 0, {0: Spent(0.0, 1.0, 0)}), PROMISE)
    assert found.epsilon(DELTA) == 0.0 == found.epsilon_rdp(DELTA)


def test_another_attempt_is_another_question_and_a_second_one_at_a_place_is_none() -> None:
    found, one = RecordLedger(), Spent(1.0, 0.1, 5)
    for attempt in range(3):
        found.intend(replace(question(0, 0, {0: one}), attempt=attempt), PROMISE)
    found.intend(event(0, 0, {0: one}, attempt=2), PROMISE)
    assert found.epsilon(DELTA) == epsilon([Charge(1.0, 0.1, 15)], DELTA)
    for later in (question(0, 0, {1: one}), replace(question(0, 0, {1: one}), attempt=2)):
        with pytest.raises(ConfigError, match="asks a second time"):
            found.intend(later, PROMISE)


def test_a_budget_counts_questions_and_lets_nobody_be_asked_above_it() -> None:
    kept: list[RecordEvent] = []
    found, one = RecordLedger(kept.append), Spent(1.0, 0.1, 5)
    enough = epsilon([Charge(1.0, 0.1, 10)], DELTA) * (1 + 1e-9)
    limited = ExampleMechanism(1.0, 1.0, delta=DELTA, budget=enough)
    for number in range(2):
        found.intend(question(0, number, {0: one, 1: one}), limited)
        found.intend(event(0, number, {0: one}), limited)  # client 1 never answers
    with pytest.raises(ConfigError, match=r"round 2 would spend .*: nobody was asked"):
        found.intend(question(0, 2, {1: one}), limited)
    assert len(kept) == 4


def test_questions_are_on_disk_before_answers(tmp_path: Path) -> None:
    file, one = LedgerFile(tmp_path), {0: Spent(1.0, 0.1, 5), 1: Spent(1.0, 0.2, 5)}
    found = RecordLedger(file.append_records, file.record_events())
    found.intend(question(0, 0, one), PROMISE)
    file.close()
    file = LedgerFile(tmp_path)
    again = RecordLedger(file.append_records, file.record_events())
    assert list(again.every()) == [question(0, 0, one)]
    again.intend(question(0, 0, one), PROMISE)  # a run that is resumed
    again.intend(event(0, 0, {0: one[0]}), PROMISE)
    third = RecordLedger(events=file.record_events())
    assert list(third.every()) == [question(0, 0, {1: one[1]}), event(0, 0, {0: one[0]})]
    assert sum(map(len, file.record_events().values())) == 2
    assert third.epsilon(DELTA) == again.epsilon(DELTA) == epsilon([Charge(1.0, 0.2, 5)], DELTA)
    file.close()


# --- The search for the worst record. ---


def test_the_search_finds_the_maximum_of_many_clients() -> None:
    """Batches of 16 of n examples: the rate falls with n, the number of steps grows."""
    sizes = range(100, 400, 15)
    training = {n: (1.1, 16 / n, 5 * -(-n // 16)) for n in sizes}
    found = {(own, (1.1, 1.0, 1)) if n % 2 else (own,) for n, own in training.items()}
    slow = max(epsilon(charges_of(one), DELTA) for one in found)
    assert worst(found, DELTA) == slow
    assert worst(found, DELTA, floor=slow) == slow
    assert worst(found, DELTA, floor=100.0) == 100.0
    assert worst(found, DELTA, most=3) >= slow
    assert worst([], DELTA) == 0.0
