"""A client's memory outlives kills at any moment: the last state or the new one, never torn."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcl.core.client import Kept
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.node.client_app import respond
from fedcl.flower.node.memories import ClientMemory
from fedcl.flower.node.versions import BEFORE_ALL, Moment, Versions
from fedcl.flower.protocol import messages
from tests.commands import ROOT, write_config
from tests.flower.answering import pack, unpack
from tests.flower.memory_writer import content, moment_of
from tests.flower.nodes import EXPERIMENT, device, question_of
from tests.tiny import same, tiny, watched

ROUNDS = 3  # of a stage; before them comes its beginning, round -1, and after them its end


@dataclass
class Server:
    """What a server asks one client, and which versions it may name later.

    Attributes:
        chance: What happens.
        base: The version that the client has, as far as the server knows.
        began: The one that it had when the present step began: dropped attempts go back to it.
        saved: The one that it had at the last commit: a resumed run goes back to it.
        known: Content of every version that was acknowledged, as of now.
        asked: Contents that a version may have, of all sittings in which it was asked for.
        happened: How often what happened.
    """

    chance: random.Random
    stage: int = 0
    round: int = -1
    exchange: int = 0
    attempt: int = 0
    sitting: int = 0
    base: Moment = BEFORE_ALL
    began: Moment = BEFORE_ALL
    saved: Moment = BEFORE_ALL
    committed: tuple[int, int] = (0, 0)
    known: dict[Moment, bytes] = field(default_factory=lambda: {BEFORE_ALL: b""})
    asked: dict[Moment, list[bytes]] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)

    def question(self) -> dict[str, Any]:
        """Returns what is asked now."""
        question = {
            "position": [self.stage, self.round, self.exchange, self.attempt],
            "base": self.base,
            "committed": self.committed,
            "sitting": self.sitting,  # another sitting may draw other seeds
        }
        after = content(self.known[self.base], question)
        self.asked.setdefault(moment_of(question), []).append(after)
        return question

    def acknowledge(self, question: dict[str, Any]) -> None:
        """Takes the answer, and goes on: with the round, the next one, or the attempt anew."""
        self.known[moment_of(question)] = content(self.known[self.base], question)
        self.base = moment_of(question)
        draw = self.chance.random()
        if draw < 0.1:
            self.happened["dropped"] += 1
            self.base, self.exchange, self.attempt = self.began, 0, self.attempt + 1
        elif draw < 0.4:
            self.exchange += 1
        else:
            self._finish()

    def _finish(self) -> None:
        self.began, self.exchange, self.attempt = self.base, 0, 0
        self.round += 1
        if self.round > ROUNDS:
            self.stage, self.round = self.stage + 1, -1
        # What begins a stage is committed with its first round, what ends it with the last one.
        if self.round == -1 or (0 < self.round < ROUNDS and self.chance.random() < 0.3):
            self.happened["committed"] += 1
            self.committed, self.saved = (self.stage, max(self.round, 0)), self.base

    def resume(self) -> None:
        """Starts again from the last commit, as a server does that was killed."""
        self.happened["resumed"] += 1
        self.sitting += 1
        self.stage, self.round = self.committed
        self.round = self.round or -1
        self.exchange = self.attempt = 0
        self.base = self.began = self.saved


@contextmanager
def lives(module: str, *words: Path, bare: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Starts what gives a client one life after the other."""
    command = [sys.executable, *(["-S"] * bare), "-m", f"tests.flower.{module}", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.communicate()
    assert process.returncode == 0


def born(process: subprocess.Popen[str]) -> int:
    """Returns the number of the process that lives now."""
    assert process.stdout is not None
    word, child = process.stdout.readline().split()
    assert word == "born"
    return int(child)


def ask(process: subprocess.Popen[str], life: int, question: Any, kill: int, delay: float) -> bool:
    """Returns whether there was an answer.

    Args:
        process: Whom to ask.
        life: Which of its lives.
        question: What to ask.
        kill: Number of the process to kill while it answers; 0 for none.
        delay: Seconds after which it is killed.
    """
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"life": life, "question": question}) + "\n")
    process.stdin.flush()
    if kill:
        time.sleep(delay)
        os.kill(kill, signal.SIGKILL)
    words = [process.stdout.readline()]
    if kill and words == ["done\n"]:
        words.append(process.stdout.readline())
    assert words in (["done\n"], ["dead\n"], ["done\n", "dead\n"])
    return words[0] == "done\n"


def one_life(
    process: subprocess.Popen[str], life: int, server: Server, answers: int, delay: float
) -> None:
    """Asks a client; after some answers, and then a while after the next question, kills it."""
    child = born(process)
    for number in range(answers + 1):
        question = server.question()
        if ask(process, life, question, child if number == answers else 0, delay):
            server.happened["answered"] += 1
            server.acknowledge(question)


def check(versions: Versions, server: Server) -> None:
    """Asserts that whatever the server may ask next finds what it is to find."""
    for base in {server.base, server.began, server.saved} - {BEFORE_ALL}:
        assert versions.read(base) == server.known[base]
    found = versions.moments()
    assert len(found) <= 4
    for moment in found:
        assert versions.read(moment) in server.asked[moment]


def test_a_memory_outlives_a_hundred_kills(tmp_path: Path) -> None:
    versions, server = Versions(tmp_path / "client"), Server(random.Random(9))
    chance = random.Random(8)
    with lives("memory_writer", versions.folder, bare=True) as process:
        for life in range(100):
            one_life(process, life, server, chance.randrange(4), chance.uniform(0.0, 0.01))
            check(versions, server)
            if chance.random() < 0.15:
                server.resume()
                check(versions, server)
    # The server did all that it can do.
    assert server.happened["answered"] > 100
    assert min(server.happened[what] for what in ("resumed", "dropped", "committed")) > 5


def test_a_device_that_is_killed_while_it_answers_goes_on_where_it_was(tmp_path: Path) -> None:
    changes = {"method.name": "replay", "training.cohort": 0}
    experiment = tiny(changes)
    config, state = write_config(tmp_path, changes), tmp_path / "state"
    requests = [request for request, ids in watched(experiment)[1].requests if 0 in ids]
    words, chance = vocabulary(experiment.method), random.Random(7)
    calm = device(config, tmp_path / "calm")
    kept = ClientMemory(state / "experiments" / EXPERIMENT / "0", words)
    known = ClientMemory(tmp_path / "calm" / "experiments" / EXPERIMENT / "0", words)
    life, base, killed = 0, None, 0
    with lives("answering", config, state) as process:
        child = born(process)
        for number, request in enumerate(requests):
            question = question_of(experiment, request, base).write()
            expected = respond(question, calm)
            now = messages.moment(request.position)
            path = tmp_path / f"{number}.question"
            pack(question, path)
            while True:
                kill = child if killed < 2 * number + 2 else 0
                if ask(process, life, str(path), kill, chance.uniform(0.0, 0.1)) and not kill:
                    break
                killed, life, child = killed + 1, life + 1, born(process)
                if base is not None:
                    assert same(kept.read(base), known.read(base))
                if now in kept.moments():
                    assert same(kept.read(Kept(now)), known.read(Kept(now)))
            assert unpack(path.with_suffix(".answer")) == expected
            if messages.read_reply(expected, request.position, words)[1]:
                base = Kept(now)
    assert killed == 2 * len(requests)
    assert kept.moments() == known.moments()
