"""A live federation whose clients' data arrive: its stages wait for them, and it is the simulation.

Nodes are played in this process; a file that comes is renamed into a device's own folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

import fedcl
from fedcl.core.errors import AbsentError
from fedcl.flower.protocol.arrivals import ARRIVALS
from fedcl.flower.protocol.messages import EXCHANGE
from fedcl.progress import Progress
from tests import arriving_data
from tests.arriving_data import arrival, arrive
from tests.flower.house import Answers, House, opened_house
from tests.tiny import assert_same_runs

pytestmark = pytest.mark.flower

CLIENTS = range(5)
LIVE = {
    "engine": {"name": "flower", "grace": 60.0, "patience": 60.0},
    "replies.bad": "reject",
    "training.cohort": 0,
    "stream.arrivals": 5,
}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    (tmp_path / "house").mkdir()
    with opened_house(tmp_path / "house") as opened:
        yield opened


def deliver(tmp_path: Path, client: int, number: int) -> None:
    """Lets an arrival come into a device's own folder."""
    arrive(tmp_path / f"data-{client}", f"{number:03}.npz", **arrival(client, number))


def joined(house: House, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Lets all clients in, each with a folder of its own in which nothing has arrived."""
    for client in CLIENTS:
        folder = tmp_path / f"data-{client}"
        folder.mkdir()
        house.join(house.device(client, arriving_data.live(folder, changes)))


def simulated(tmp_path: Path, changes: dict[str, Any]) -> fedcl.Record:
    """Returns the run of the same experiment on prepared folders."""
    root = arriving_data.house(tmp_path / "prepared")
    return fedcl.run(arriving_data.live(root, {**changes, "engine": {"name": "serial"}}))


@pytest.mark.parametrize("method", ["replay", "fot"])
def test_with_files_that_come_stage_by_stage_it_is_the_simulation(
    method: str, house: House, tmp_path: Path
) -> None:
    changes = {**LIVE, "method.name": method}
    joined(house, tmp_path, changes)
    for client in CLIENTS:
        deliver(tmp_path, client, 0)

    def then(now: Progress) -> None:
        if now.round == now.rounds and now.stage < 2:
            for client in CLIENTS:
                deliver(tmp_path, client, now.stage + 1)

    record = house.run(arriving_data.live("", changes), tmp_path / "run", then=then)
    assert_same_runs(record, simulated(tmp_path, changes))
    assert record.summary["forgetting"] is not None


def test_a_client_without_data_is_missing_and_nothing_is_wrong_with_it(
    house: House, tmp_path: Path
) -> None:
    changes = {**LIVE, "stream.arrivals": 2, "stream.stages": 1}
    joined(house, tmp_path, changes)
    for client in (1, 3):
        deliver(tmp_path, client, 0)
    record = house.run(arriving_data.live("", changes), tmp_path / "run")
    assert [id for ids in house.answered() for id in ids] == [1, 3] * 2
    assert record.summary["rejected_replies"] == 0
    assert not (tmp_path / "run" / "rejected.csv").exists()
    failures = json.loads((tmp_path / "run" / "live.json").read_text())["failures"]
    assert failures == {}  # of the last question, who knows what: nobody failed
    told = [dict(result.failures) for result in house.engine.results if result.failures]
    assert {id for one in told for id in one} == {0, 2, 4}
    assert all("no data have arrived" in why for one in told for why in one.values())


def test_a_stage_waits_for_devices_with_new_data(house: House, tmp_path: Path) -> None:
    changes = {**LIVE, "stream.arrivals": 3, "stream.stages": 2}
    for client in CLIENTS:
        folder = tmp_path / f"data-{client}"
        folder.mkdir()
        device = house.device(client, arriving_data.live(folder, changes))
        house.join(bringing(device, tmp_path, client))
    record = house.run(arriving_data.live("", changes), tmp_path / "run")
    kinds = [kind for _, kind in house.asked]
    first = kinds.index(EXCHANGE)
    assert kinds[:first].count(ARRIVALS) > len(CLIENTS)  # asked until three had some
    assert record.summary["rounds"] == 4


def bringing(device: Answers, tmp_path: Path, client: int) -> Answers:
    """Returns a device to which something comes after it said twice that nothing has."""
    asked = 0

    def answers(message: Message) -> RecordDict | None:
        nonlocal asked
        if message.metadata.message_type == ARRIVALS:
            asked += 1
            if asked == 3:
                for number in range(2):
                    deliver(tmp_path, client, number)
        return device(message)

    return answers


def test_a_run_that_finds_no_new_data_stops_and_goes_on_later(house: House, tmp_path: Path) -> None:
    changes = {**LIVE, "stream.patience": 0.3, "method.name": "replay"}
    joined(house, tmp_path, changes)
    for client in CLIENTS:
        deliver(tmp_path, client, 0)
    with pytest.raises(AbsentError, match="no client has new data for stage 1"):
        house.run(arriving_data.live("", changes), tmp_path / "run")
    for client in CLIENTS:
        for number in (1, 2):
            deliver(tmp_path, client, number)
    record = house.run(arriving_data.live("", changes), tmp_path / "run", resume=True)
    assert_same_runs(record, simulated(tmp_path, changes))
