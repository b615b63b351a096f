"""A node that lies for dozens of rounds on end, at a real SuperLink, and one that joins late.

SuperLink and ServerApp are Flower's processes, the nodes are played (`tests.flower.playing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import pytest
import tomli_w
from bench.crowd import client_half
from flwr.app import Message, RecordDict
from safetensors.torch import load_file

import fedcl
from fedcl.config import Experiment, override, parse
from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.flower.protocol.messages import EXCHANGE
from tests.flower.live import federation, told
from tests.flower.lying import LIES, lie
from tests.flower.parts import until
from tests.flower.playing import Answer, playing
from tests.flower.test_collection import Junk
from tests.tiny import TABLE, Watching, read_csv, same

pytestmark = [pytest.mark.flower, pytest.mark.apart]

UNDECODABLE = {"undecodable": "cannot be unpacked"}  # by Flower itself
KINDS = {**LIES, **UNDECODABLE}
ROUNDS = 3 * len(KINDS)  # 54
HONEST, LIAR, LATE = 0, 1, 2
WITHIN = 500.0  # seconds for whatever is waited for: a busy machine is slow


def configured(folder: Path) -> Path:
    """Writes the experiment's config: three clients, of whom two are enough."""
    changes = {
        "stream.clients": 3,
        "stream.tasks": 2,
        "training.rounds": ROUNDS // 2,
        "training.cohort": 0,
        "training.minimum": 2,
        "method.name": "replay",
        "evaluation.every": 0,
        "engine.name": "flower",
        "engine.grace": 1.0,
        "engine.patience": WITHIN,
        "engine.limit": 60_000,
    }
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(override(TABLE, changes)), encoding="utf-8")
    return path


def liar(honest: Answer) -> Answer:
    """Returns how a client answers that tells the next lie each time."""
    kinds = cycle(KINDS)

    def answer(client: int, message: Message) -> Message:
        found = honest(client, message)
        if message.metadata.message_type != EXCHANGE:
            return found
        kind = next(kinds)
        if kind in UNDECODABLE:
            content = RecordDict({"answer": Junk({"what": "junk"})})
        else:
            content = lie(kind, found.content)
        return Message(content, reply_to=message)

    return answer


def test_dozens_of_lies_on_end_are_refused_and_a_late_joiner_is_welcome(tmp_path: Path) -> None:
    config, out = configured(tmp_path), tmp_path / "run"
    with federation(tmp_path / "live") as live:
        honest = client_half(config, tmp_path)
        with (
            playing(live.port, [HONEST], honest) as first,
            playing(live.port, [LIAR], liar(honest)) as lying,
        ):
            run = live.run(config=config, out=out)
            until(lambda: told(out)["done"] >= ROUNDS // 3, "a third of the rounds", WITHIN)
            with playing(live.port, [LATE], honest) as late:
                run.finish(WITHIN)
    assert not first.errors and not lying.errors and not late.errors
    rejected = read_csv(out / "rejected.csv")
    assert len(rejected) == ROUNDS and {row["client"] for row in rejected} == {str(LIAR)}
    for row, reason in zip(rejected, cycle(KINDS.values()), strict=False):
        assert reason in row["reason"]
    asked = _asked(out)
    joined = asked.index(3)
    assert ROUNDS // 3 <= joined < ROUNDS // 2, "it meets the first task, too"
    assert asked == [2] * joined + [3] * (ROUNDS - joined)
    table = {**override(TABLE, {}), **fedcl.load_config(config).resolved}
    expected = simulated(parse({**table, "engine": {"name": "serial"}}), joined)
    found = load_file(out / "model.safetensors")
    assert same(dict(sorted(found.items())), dict(sorted(expected.params.items())))


def simulated(experiment: Experiment, joined: int) -> fedcl.Record:
    """Returns the run in the plain loop, where the liar never answers, and one not at first.

    Args:
        experiment: With the engine `serial`.
        joined: How many rounds are over before the late one joins.
    """

    @dataclass
    class Without(Watching):
        def run(
            self, request: Request, ids: Sequence[int], memories: Memories
        ) -> Iterator[BlockResult]:
            place = request.position.stage * (ROUNDS // 2) + request.position.round
            gone = {LIAR, LATE} if place < joined else {LIAR}
            yield from super().run(request, [id for id in ids if id not in gone], memories)

    return fedcl.run(replace(experiment, engine=Without(experiment.engine)))


def _asked(out: Path) -> list[int]:
    """Returns how many clients got a model in each round."""
    model = sum(value.nbytes for value in load_file(out / "model.safetensors").values())
    sums: dict[tuple[int, int], int] = {}
    for row in read_csv(out / "costs.csv"):
        if row["payload"] == "model" and row["direction"] == "down":
            place = int(row["stage"]), int(row["round"])
            sums[place] = sums.get(place, 0) + int(row["bytes"])
    return [size // model for _, size in sorted(sums.items())]
