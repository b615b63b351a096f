"""The client half as a Flower ClientApp: a node answers questions with its own copy of the config.

A question names an experiment, a program and a place in the run. The node builds data, model and
program from its own config, compares the two configs by their fingerprints, and keeps its memory to
itself.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import tomli_w
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcl.assembly import build_site
from fedcl.config import load_config
from fedcl.core import wire
from fedcl.core.client import Unchanged
from fedcl.core.errors import ClientError, ConfigError, FedclError
from fedcl.core.site import Site
from fedcl.core.tree import settle
from fedcl.flower import messages
from fedcl.flower.agreement import fingerprints
from fedcl.flower.introductions import Introduced, Introduction
from fedcl.flower.memories import ClientMemory
from fedcl.record import write_text


def make_app(home: Path) -> ClientApp:
    """Returns the app of nodes that find their configs in a folder.

    Args:
        home: Holds, for each experiment, what `enter` writes.
    """
    app = ClientApp()

    @app.query("exchange")
    def exchange(message: Message, context: Context) -> Message:
        return Message(respond(message.content, _own_id(context), home), reply_to=message)

    @app.query("introduction")
    def introduction(message: Message, context: Context) -> Message:
        return Message(introduce(message.content, _own_id(context), home), reply_to=message)

    return app


def enter(home: Path, experiment: str, resolved: Mapping[str, Any], memory: Path) -> None:
    """Gives nodes their own copy of an experiment's config.

    Args:
        home: Where they look for it.
        experiment: Name of the experiment.
        resolved: The config with every default filled in.
        memory: Folder for the clients' memories.
    """
    folder = home / experiment
    folder.mkdir()
    write_text(folder / "config.toml", tomli_w.dumps(dict(resolved)))
    write_text(folder / "memory.txt", str(memory.resolve()))


def leave(home: Path, experiment: str) -> None:
    """Takes the nodes' copy of a config away."""
    shutil.rmtree(home / experiment, ignore_errors=True)


@dataclass(frozen=True)
class _Home:
    """What a node knows of one experiment, all from its own config."""

    site: Site
    words: wire.Vocabulary
    resolved: Mapping[str, Any]
    config: Mapping[str, str]
    memory: Path

    def check(self, asked: Mapping[str, str]) -> None:
        """Raises ConfigError when the other side has another config, and names where."""
        names = sorted({*self.config, *asked})
        other = [name for name in names if self.config.get(name) != asked.get(name)]
        if other:
            differences = ", ".join(
                f"{name}: {self.config.get(name)} here, {asked.get(name)} asked for"
                for name in other
            )
            raise ConfigError(
                f"client and server have different configs ({differences}); give both the same"
            )

    def answer(self, question: messages.Question, id: int) -> RecordDict:
        """Runs the program of a question and keeps the memory that it leaves."""
        memory = ClientMemory(self.memory / str(id), self.words)
        if not question.blank:
            memory.roll_back(question.base, question.position, question.committed)
        request = question.request(self.words)
        message = settle(request.message, self.site.device)
        answer = self.site.answer(request, id, memory.read(question.base), message)
        remembered = not question.blank and not isinstance(answer.memory, Unchanged)
        if remembered:
            memory.write(messages.moment(question.position), answer.memory)
        return messages.write_reply(answer.reply, remembered, question.position, self.words)


@lru_cache(maxsize=2)
def _home(home: Path, experiment: str) -> _Home:
    """Returns what a node knows of an experiment; built once in a process."""
    place = home / experiment
    if not experiment.isalnum() or not place.is_dir():  # a name, no way out of the folder
        raise ConfigError(f"there is no config of experiment {experiment!r} here: give it one")
    own = load_config(place / "config.toml")
    words = wire.vocabulary(own.method)
    memory = Path((place / "memory.txt").read_text(encoding="utf-8"))
    return _Home(build_site(own), words, own.resolved, fingerprints(own.resolved), memory)


def _own_id(context: Context) -> int:
    return int(context.node_config["partition-id"])


def introduce(content: RecordDict, id: int, home: Path) -> RecordDict:
    """Says which client a node is; refuses a server with another config or version.

    Args:
        content: The server's own introduction (`fedcl.flower.introductions.Introduction`).
        id: The client that is asked.
        home: Where its configs lie.
    """
    torch.set_num_threads(1)
    try:
        asked = Introduction.read(content)
        if asked.experiment:
            asked.check(_home(home, asked.experiment).resolved)
        return Introduced(id).write()
    except (FedclError, KeyError, TypeError) as error:
        return messages.write_failure(type(error).__name__, str(error))


def respond(content: RecordDict, id: int, home: Path) -> RecordDict:
    """Answers a question; an error becomes an answer that tells it.

    Args:
        content: The question (`fedcl.flower.messages.Question`).
        id: The client that is asked.
        home: Where its configs lie.
    """
    # One thread everywhere: one and two threads give different bits.
    torch.set_num_threads(1)
    try:
        question = messages.Question.read(content)
        own = _home(home, question.experiment)
        own.check(question.config)
        return own.answer(question, id)
    except ClientError as error:
        return messages.write_failure(messages.PROGRAM, error.reason, traceback.format_exc())
    except FedclError as error:
        return messages.write_failure(type(error).__name__, str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return messages.write_failure(messages.PROGRAM, reason, traceback.format_exc())


def recall(memory: Path, id: int, kept: Any, words: wire.Vocabulary) -> Any:
    """Returns a memory that a client keeps: the simulator's own view, which no channel carries."""
    return ClientMemory(memory / str(id), words).read(kept)
