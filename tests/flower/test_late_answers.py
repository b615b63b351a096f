"""What devices send is charged to their records whether or not anybody reads it, and once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

import fedcl
from fedcl.config import Experiment
from fedcl.core.accounting.composition import Charge, epsilon
from fedcl.core.accounting.recordledger import RecordEvent, RecordLedger
from fedcl.core.client import Client
from fedcl.core.errors import ConfigError, FedclError
from fedcl.core.memories import Memories
from fedcl.core.privacy.sgd import train_private
from fedcl.core.request import Request
from fedcl.flower.protocol.messages import EXCHANGE
from fedcl.flower.server import inquiry
from fedcl.ledgerfile import LedgerFile
from tests.flower.house import LATER, Answers, House, opened_house
from tests.flower.lying import lie
from tests.tiny import (
    Interrupted,
    Watching,
    interrupt_after,
    read_csv,
    same,
    scenario,
    stream_of,
    tiny,
)

pytestmark = pytest.mark.flower

CLIENTS = 5
FEWEST = 2  # the client with the fewest examples, whose records cost most
OTHERS = [0, 1, 3, 4]
NOISE, BATCH = 2.0, 4
DP = {"name": "dp_sgd", "noise_multiplier": NOISE, "batch_size": BATCH, "lr": 0.05}


class Killed(BaseException):
    """Stands for the end of the server's process."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    (tmp_path / "house").mkdir()
    with opened_house(tmp_path / "house") as opened:
        yield opened


@dataclass
class Clock:
    """A clock of the server's that stands still but when it is set; its pauses are real."""

    now: float = 1.0
    sleep: Callable[[float], None] = field(default=time.sleep)

    def monotonic(self) -> float:
        """Returns the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(inquiry, "time", own)
    return own


def of(changes: dict[str, Any] | None = None, **options: Any) -> Experiment:
    """Returns two rounds of one task with all clients, whose records are protected."""
    own = {
        **scenario("class"),
        "stream.tasks": 1,
        "engine.name": "flower",
        "engine.grace": 60.0,
        "engine.patience": 60.0,
        "engine.timeout": 600.0,
        "replies.bad": "reject",
        "training.cohort": 0,
        "evaluation.every": 0,
    }
    return tiny({**own, **(changes or {}), "training.local": {**DP, **options}})


def slow_way(experiment: Experiment, exchanges: int, client: int = FEWEST) -> float:
    """Returns what exchanges of plain training cost a record of a client, by the accountant."""
    rows = len(stream_of(experiment).rows_at(client, 0))
    steps = -(-rows // BATCH)
    return epsilon([Charge(NOISE, BATCH / rows, steps * exchanges)], 1e-5)


def events_of(out: Path) -> list[RecordEvent]:
    """Returns what the ledger of a run holds that is charged."""
    file = LedgerFile(out / "checkpoint")
    found = list(RecordLedger(events=file.record_events()).every())
    file.close()
    return found


def charged(out: Path) -> list[tuple[tuple[int, int, int, int], bool, list[int]]]:
    """Returns what a ledger charges: place, whether for a question alone, and whom."""
    return [(one.place, one.asked, sorted(one.clients)) for one in events_of(out)]


def joined(house: House, experiment: Experiment, last: Callable[[Answers], Answers]) -> int:
    """Lets honest clients in, and one that answers in its own way; returns its node."""
    for id in OTHERS:
        house.join(house.device(id, experiment))
    return house.join(last(house.device(FEWEST, experiment)))


def late(clock: Clock, free: list[int]) -> Callable[[Answers], Answers]:
    """Returns a client to whom time passes while it works, until it is set free."""

    def slow(honest: Answers) -> Answers:
        def answers(message: Message) -> RecordDict | None:
            if message.metadata.message_type != EXCHANGE or free:
                return honest(message)
            clock.now += 1000.0
            return LATER

        return answers

    return slow


ALL = list(range(CLIENTS))


def test_the_last_client_has_the_fewest_examples() -> None:
    rows = [len(stream_of(of()).rows_at(id, 0)) for id in ALL]
    assert min(rows[id] for id in OTHERS) > rows[FEWEST] > BATCH
    assert slow_way(of(), 2, FEWEST) > max(slow_way(of(), 2, id) for id in OTHERS)


def test_an_answer_that_comes_too_late_costs_what_one_in_time_does(
    house: House, clock: Clock, tmp_path: Path
) -> None:
    experiment, free = of(), list[int]()
    joined(house, experiment, late(clock, free))
    record = house.run(experiment, tmp_path / "run", then=lambda now: free.append(now.done))
    assert house.answered() == [(0, 1), (3,), (4,), (0, 1), (2, 3), (4,)]
    assert house.engine.late == 1
    assert charged(tmp_path / "run") == [
        ((0, 0, 0, 0), True, [FEWEST]),
        ((0, 0, 0, 0), False, OTHERS),
        ((0, 1, 0, 0), False, ALL),
    ]
    assert record.summary["epsilon"] == pytest.approx(slow_way(experiment, 2), rel=1e-12)
    (row,) = (r for r in read_csv(tmp_path / "run" / "privacy.csv") if r["channel"] == "train")
    assert row["note"].startswith("2 exchanges, ")
    assert row["note"].endswith(", 1 answers that did not count, charged as if they did")


def test_who_answers_in_time_is_charged_for_the_answer_alone(house: House, tmp_path: Path) -> None:
    experiment = of()
    joined(house, experiment, lambda honest: honest)
    record = house.run(experiment, tmp_path / "run")
    assert charged(tmp_path / "run") == [((0, n, 0, 0), False, ALL) for n in (0, 1)]
    assert record.summary["epsilon"] == pytest.approx(slow_way(experiment, 2), rel=1e-12)


def test_an_answer_that_comes_when_the_run_is_over_is_charged(
    house: House, clock: Clock, tmp_path: Path
) -> None:
    experiment = of()
    joined(house, experiment, late(clock, []))
    record = house.run(experiment, tmp_path / "run")
    assert house.engine.late == 0
    assert record.summary["epsilon"] == pytest.approx(slow_way(experiment, 2), rel=1e-12)


def test_a_resumed_run_keeps_what_was_charged_for_late_answers(
    house: House, clock: Clock, tmp_path: Path
) -> None:
    experiment, free = of({"training.rounds": 3}), list[int]()
    joined(house, experiment, late(clock, free))
    with pytest.raises(Interrupted):
        house.run(experiment, tmp_path / "run", then=interrupt_after(1))
    free.append(1)
    record = house.run(experiment, tmp_path / "run", resume=True)
    assert house.answered() == [(0, 1), (2, 3), (4,)] * 2
    assert record.summary["epsilon"] == pytest.approx(slow_way(experiment, 3), rel=1e-12)


def test_answers_to_a_server_that_is_killed_are_charged_and_the_next_attempt_too(
    house: House, tmp_path: Path
) -> None:
    experiment, killed = of(), list[int]()

    def last(honest: Answers) -> Answers:
        def answers(message: Message) -> RecordDict | None:
            if message.metadata.message_type == EXCHANGE and not killed:
                killed.append(1)
                raise Killed  # the others have answered
            return honest(message)

        return answers

    joined(house, experiment, last)
    with pytest.raises(Killed):
        house.run(experiment, tmp_path / "run")
    assert charged(tmp_path / "run") == [((0, 0, 0, 0), True, ALL)]
    record = house.run(experiment, tmp_path / "run", resume=True)
    assert charged(tmp_path / "run")[1:] == [
        ((0, 0, 0, 20), False, ALL),
        ((0, 1, 0, 0), False, ALL),
    ]
    assert record.summary["epsilon"] == pytest.approx(slow_way(experiment, 3), rel=1e-12)


def test_a_question_that_is_repeated_is_charged_once(house: House, tmp_path: Path) -> None:
    experiment, sent = of(), list[RecordDict | None]()

    def last(honest: Answers) -> Answers:
        def answers(message: Message) -> RecordDict | None:
            found = honest(message)
            if message.metadata.message_type != EXCHANGE or len(sent) > 1:
                return found
            sent.append(found)
            if len(sent) == 2:
                return found
            house.leave(node)  # what it sent is lost on its way
            house.join(answers)
            return None

        return answers

    node = joined(house, experiment, last)
    record = house.run(experiment, tmp_path / "run")
    assert sent[0] is not None and sent[0] == sent[1], "the same noise: nothing more is told"
    assert charged(tmp_path / "run") == [((0, n, 0, 0), False, ALL) for n in (0, 1)]
    assert record.summary["epsilon"] == pytest.approx(slow_way(experiment, 2), rel=1e-12)


def test_what_is_refused_is_charged_and_bounded(house: House, tmp_path: Path) -> None:
    """Devices of their own make fit to be refused on its way, or by a limit that is too low."""
    told, lies = 0, ["nan", "stale", "oversized", "pickle", "nothing"]

    def liar(honest: Answers) -> Answers:
        def answers(message: Message) -> RecordDict | None:
            nonlocal told
            found = honest(message)
            if message.metadata.message_type != EXCHANGE or found is None:
                return found
            told += 1
            return lie(lies[told - 1], found)

        return answers

    experiment = of({"training.rounds": len(lies), "engine.limit": 60_000})
    joined(house, experiment, liar)
    record = house.run(experiment, tmp_path / "run")
    assert record.summary["rejected_replies"] == len(lies)
    whole = slow_way(experiment, len(lies))
    assert record.summary["epsilon"] == pytest.approx(whole, rel=1e-12)


def test_a_program_that_fails_is_charged_and_tells_of_no_record(
    house: House,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def failing(local: Any, settings: Any, client: Client, message: Any) -> Any:
        if client.id == FEWEST:
            raise ValueError(f"no class {client.data.y[0]}")
        return train_private(local, settings, client, message)

    monkeypatch.setattr("fedcl.trainers.dp_sgd.train_private", failing)
    sent: list[RecordDict | None] = []

    def last(honest: Answers) -> Answers:
        def answers(message: Message) -> RecordDict | None:
            sent.append(honest(message))
            return sent[-1]

        return answers

    experiment = of()
    joined(house, experiment, last)
    record = house.run(experiment, tmp_path / "run")
    assert "ValueError" in str(sent) and "no class" not in str(sent)
    told = read_csv(tmp_path / "run" / "rejected.csv")
    assert [row["reason"] for row in told] == ["ValueError; the device's own log says more"] * 2
    assert caplog.text.count("ValueError: no class") == 2
    assert record.summary["epsilon"] == pytest.approx(slow_way(experiment, 2), rel=1e-12)


def test_a_reply_that_ends_the_run_is_charged_with_the_others(house: House, tmp_path: Path) -> None:
    experiment = of({"replies.bad": "stop"})

    def liar(honest: Answers) -> Answers:
        def answers(message: Message) -> RecordDict | None:
            found = honest(message)
            lies = message.metadata.message_type == EXCHANGE and found is not None
            return lie("nan", found) if lies and found is not None else found

        return answers

    joined(house, experiment, liar)
    with pytest.raises(FedclError, match="NaN"):
        house.run(experiment, tmp_path / "run")
    assert charged(tmp_path / "run") == [((0, 0, 0, 0), True, ALL)]


def test_who_is_not_there_is_not_asked_and_not_charged(house: House, tmp_path: Path) -> None:
    """Under `central_dp` cohorts are of all members, whoever is there."""
    tables = {**of({"engine.grace": 0.1}).resolved, "channel": [{"name": "central_dp"}]}
    experiment = fedcl.config.parse(tables)
    for id in OTHERS:
        house.join(house.device(id, experiment))
    record = house.run(experiment, tmp_path / "run")
    (request, asked), *_ = house.engine.requests
    assert asked == tuple(ALL) and request.position.round == 0
    dearest = max(slow_way(experiment, 2, id) for id in OTHERS)
    assert record.summary["epsilon_by_unit"]["record"] == pytest.approx(dearest, rel=1e-12)


def test_the_server_that_is_trusted_releases_nothing_of_a_late_answer(
    house: House, clock: Clock, tmp_path: Path
) -> None:
    """Under `central_dp` a sum without it is noised, and it is in no later one."""
    tables = of().resolved
    channel = [{"name": "central_dp", "noise": "seeded", "noise_multiplier": 0.1}]
    local = {"name": "sgd", "lr": 0.05}
    training = {**tables["training"], "local": local}
    experiment = fedcl.config.parse({**tables, "training": training, "channel": channel})
    free = list[int]()
    joined(house, experiment, late(clock, free))
    record = house.run(experiment, tmp_path / "run", then=lambda now: free.append(now.done))
    assert house.engine.late == 1

    @dataclass
    class Without(Watching):
        def run(self, request: Request, ids: Sequence[int], memories: Memories) -> Any:
            first = request.position.round == 0
            yield from super().run(request, OTHERS if first else ids, memories)

    serial = fedcl.config.parse({**experiment.resolved, "engine": {"name": "serial"}})
    honest = fedcl.run(replace(serial, engine=Without(serial.engine)))
    assert same(dict(record.params), dict(honest.params))


def test_a_budget_ends_the_run_before_anybody_is_asked(house: House, tmp_path: Path) -> None:
    experiment = of()
    experiment = of(budget=slow_way(experiment, 1) * (1 + 1e-9))
    joined(house, experiment, lambda honest: honest)
    with pytest.raises(ConfigError, match=r"stage 0, round 1 would spend .*: nobody was asked"):
        house.run(experiment, tmp_path / "run")
    asked = [node for node, kind in house.asked if kind == EXCHANGE]
    assert len(asked) == len(set(asked)) == CLIENTS


def test_what_a_device_says_of_damaged_data_stays_in_its_log(
    house: House,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def failing(*words: Any) -> Any:
        raise ConfigError("line 3 holds '41.7, M', which is no number")

    sent: list[RecordDict | None] = []

    def last(honest: Answers) -> Answers:
        def answers(message: Message) -> RecordDict | None:
            with monkeypatch.context() as patch:
                patch.setattr("fedcl.flower.node.home.build_site", failing)
                sent.append(honest(message))
            return sent[-1]

        return answers

    experiment = of()
    joined(house, experiment, last)
    house.run(experiment, tmp_path / "run")
    told = read_csv(tmp_path / "run" / "rejected.csv")
    assert [row["reason"] for row in told] == [
        f"client {FEWEST}: ConfigError; the device's own log says more"
    ] * 2
    assert "41.7" not in str(sent) and "41.7" in caplog.text
