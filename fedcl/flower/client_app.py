"""The client half as a Flower ClientApp: a node answers questions with its own copy of the config.

A question names an experiment, a program and a place in the run. The node builds data, model and program
from its own config, compares the two configs by their fingerprints, and keeps its memory to itself.
"""

from __future__ import annotations

import json
import tomllib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcl.config import parse
from fedcl.core import wire
from fedcl.core.client import Unchanged
from fedcl.core.engine import Site
from fedcl.core.errors import ClientError, ConfigError, FedclError
from fedcl.core.tree import settle
from fedcl.experiment import build_site
from fedcl.flower import messages
from fedcl.flower.memories import ClientMemory


def make_app(home: Path) -> ClientApp:
    """Returns the app of nodes that find their configs in a folder.

    Args:
        home: Holds, for each experiment, what `enter` writes.
    """
    app = ClientApp()
    folder = str(home)

    @app.query("exchange")
    def exchange(message: Message, context: Context) -> Message:
        return Message(_exchange(message.content, _own_id(context), folder), reply_to=message)

    @app.query("introduction")
    def introduction(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        content = RecordDict({"introduction": ConfigRecord({"client": _own_id(context)})})
        return Message(content, reply_to=message)

    return app


def enter(home: Path, experiment: str, config: str, memory: Path) -> None:
    """Gives nodes their copy of an experiment's config.

    Args:
        home: Where they look for it.
        experiment: Name of the experiment.
        config: The config as TOML.
        memory: Folder for the clients' memories.
    """
    entry = {"config": config, "memory": str(memory)}
    (home / f"{experiment}.json").write_text(json.dumps(entry), encoding="utf-8")


def leave(home: Path, experiment: str) -> None:
    """Takes the nodes' copy of a config away."""
    (home / f"{experiment}.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class _Home:
    """What a node knows of one experiment, all from its own config."""

    site: Site
    words: wire.Vocabulary
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
        memory.roll_back(question.base, question.committed)
        request = question.request(self.words)
        message = settle(request.message, self.site.device)
        answer = self.site.answer(request, id, memory.read(question.base), message)
        remembered = not isinstance(answer.memory, Unchanged)
        if remembered:
            memory.write(messages.moment(question.position), answer.memory)
        return messages.write_reply(answer.reply, remembered, self.words)


@lru_cache(maxsize=2)
def _home(folder: str, experiment: str) -> _Home:
    """Returns what a node knows of an experiment; built once in a process."""
    path = Path(folder) / f"{experiment}.json"
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"this node has no config of experiment {experiment!r}: give it one"
        ) from None
    own = parse(tomllib.loads(entry["config"]))
    words = wire.vocabulary(own.method)
    prints = messages.fingerprints(own.resolved)
    return _Home(build_site(own), words, prints, Path(entry["memory"]))


def _own_id(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _exchange(content: RecordDict, id: int, folder: str) -> RecordDict:
    """Answers a question; an error becomes an answer that tells it."""
    # One thread everywhere: one and two threads give different bits.
    torch.set_num_threads(1)
    try:
        question = messages.Question.read(content)
        home = _home(folder, question.experiment)
        home.check(question.config)
        return home.answer(question, id)
    except ClientError as error:
        return messages.write_failure("program", error.reason, traceback.format_exc())
    except FedclError as error:
        return messages.write_failure("config", str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return messages.write_failure("program", reason, traceback.format_exc())


def recall(memory: Path, id: int, kept: Any, words: wire.Vocabulary) -> Any:
    """Returns a memory that a client keeps: the simulator's own view, which no channel carries."""
    return ClientMemory(memory / str(id), words).read(kept)
