"""A client that remembers, in processes that may be killed: one question a line, one answer.

Whenever one is dead, the next begins, a copy of a process that loads nothing but what is needed.

python -m tests.flower.memory_writer FOLDER
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fedcl.flower.node.versions import BEFORE_ALL, Moment, Versions


def content(base: bytes, question: dict[str, Any]) -> bytes:
    """Returns what a client remembers after a question: of uneven size, and a function of both."""
    words = json.dumps(question, sort_keys=True).encode()
    seed = hashlib.sha256(hashlib.sha256(base).digest() + words).digest()
    return seed * (1 + 512 * (seed[0] // 16))


def moment_of(question: dict[str, Any]) -> Moment:
    """Returns the version that a question writes."""
    stage, round, exchange, attempt = question["position"]
    return stage, round, attempt, exchange


def answer(versions: Versions, question: dict[str, Any]) -> None:
    """Does what a node does: rolls back, reads, writes."""
    base: Moment = tuple(question["base"])
    stage, round = question["position"][:2]
    versions.roll_back(base, (stage, round), tuple(question["committed"]))
    before = b"" if base == BEFORE_ALL else versions.read(base)
    versions.write(moment_of(question), content(before, question))


def tell(word: str) -> None:
    """Says a word, which whoever is killed over it says whole or not at all."""
    os.write(1, f"{word}\n".encode())


def live(act: Callable[[Any], None], life: int) -> None:
    """Does what is asked of this life, not what was asked of an earlier one."""
    tell(f"born {os.getpid()}")
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["life"] == life:
            act(asked["question"])
            tell("done")


def one_after_the_other(act: Callable[[Any], None]) -> None:
    """Lets one process live after the other, until nobody asks any more."""
    life = 0
    while True:
        child = os.fork()
        if not child:
            live(act, life)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        tell("dead")
        if not os.WIFSIGNALED(status):
            return
        life += 1


if __name__ == "__main__":
    one_after_the_other(partial(answer, Versions(Path(sys.argv[1]))))
