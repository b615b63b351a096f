"""Data that reach devices while a real federation runs: it waits for them, and is the simulation.

SuperLink and ServerApp are Flower's processes, the nodes are played (`tests.flower.playing`), with
all that a device has on its disk.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

import fedcl
from fedcl.flower.device import app
from tests import arriving_data
from tests.arriving_data import arrival, arrive
from tests.flower.live import federation, told
from tests.flower.parts import until
from tests.flower.playing import Answer, playing
from tests.tiny import read_csv, timeless

pytestmark = [pytest.mark.flower, pytest.mark.apart]

CLIENTS = range(2)
STAGES = 2
WITHIN = 300.0  # seconds for whatever is waited for: a busy machine is slow
CHANGES: dict[str, Any] = {
    "engine": {"name": "flower", "grace": WITHIN, "patience": WITHIN},
    "stream.clients": len(CLIENTS),
    "stream.stages": STAGES,
    "stream.arrivals": len(CLIENTS),
    "training.cohort": 0,
    "training.rounds": 1,
    "method.name": "replay",
}


def deliver(folder: Path, number: int) -> None:
    """Lets an arrival come to each device."""
    for client in CLIENTS:
        arrive(folder / f"data-{client}", f"{number:03}.npz", **arrival(client, number))


def devices(folder: Path, config: Path) -> Answer:
    """Returns how devices answer that have a folder for their data and one for their state each."""

    def answer(client: int, message: Message) -> Message:
        words: dict[str, str | int | float | bool] = {
            "client": client,
            "config": str(config),
            "data": str(folder / f"data-{client}"),
            "state": str(folder / f"state-{client}"),
        }
        told = message.metadata
        return app(message, Context(told.run_id, told.dst_node_id, words, RecordDict(), {}))

    return answer


def test_files_that_come_to_devices_are_learnt_as_in_the_simulation(tmp_path: Path) -> None:
    out, config = tmp_path / "run", tmp_path / "config.toml"
    config.write_text(arriving_data.live("", CHANGES).toml, encoding="utf-8")
    for client in CLIENTS:
        (tmp_path / f"data-{client}").mkdir()
    with (
        federation(tmp_path / "live") as live,
        playing(live.port, CLIENTS, devices(tmp_path, config)) as nodes,
    ):
        run = live.run(config=config, out=out)
        for number in range(STAGES):
            until(
                lambda: "with new data (0 so far)" in told(out)["waiting"],
                "it waits for data",
                WITHIN,
            )
            deliver(tmp_path, number)
            until(partial(_is_done, out, number + 1), "a stage is over", WITHIN)
        run.finish(WITHIN)
    assert not nodes.errors
    prepared = tmp_path / "prepared"
    for client in CLIENTS:
        shutil.copytree(tmp_path / f"data-{client}", prepared / str(client))
    expected = arriving_data.live(prepared, {**CHANGES, "engine": {"name": "serial"}})
    fedcl.run(expected, tmp_path / "simulated")
    for file in ("model.safetensors", "evaluations.csv"):
        here, there = (tmp_path / place / file for place in ("run", "simulated"))
        assert here.read_bytes() == there.read_bytes(), file
    costs = [timeless(read_csv(tmp_path / place / "costs.csv")) for place in ("run", "simulated")]
    assert costs[0] == costs[1]
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["forgetting"] is not None


def _is_done(out: Path, rounds: int) -> bool:
    return bool(told(out)["done"] == rounds)
