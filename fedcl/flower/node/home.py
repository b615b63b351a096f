"""A node in one experiment: what it makes of its own config, what it remembers, how it answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from flwr.app import RecordDict

from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core import wire
from fedcl.core.client import Reply, Unchanged
from fedcl.core.data.stream import Stream
from fedcl.core.errors import ClientError, ConfigError, FedclError
from fedcl.core.privacy.noise import key_of
from fedcl.core.request import Answer, Request
from fedcl.core.site import Site
from fedcl.core.tree import settle
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.node.memories import ClientMemory
from fedcl.flower.protocol import messages
from fedcl.flower.protocol.agreement import fingerprints

_log = logging.getLogger("flwr")


@dataclass(frozen=True)
class Own:
    """What a node makes of its own config of an experiment.

    Attributes:
        experiment: The config.
        keep: Holds a folder for each client that runs here, with what it keeps.
        device: Whether its data are a real client's, and not those of a simulation.
    """

    experiment: Experiment
    keep: Path
    device: bool = False

    @cached_property
    def site(self) -> Site:
        """Data, stream and model, built when they are first needed."""
        with self.discreet():
            return build_site(self.experiment, self.keep)

    @contextmanager
    def discreet(self) -> Iterator[None]:
        """Keeps what errors say of data in a device's own log, where single records are protected.

        The text of an error may be of a record, which nothing but noise protects.
        """
        try:
            yield
        except Exception as error:
            if not self.device or self.experiment.promise is None:
                raise
            _log.error("%s", error, exc_info=error)
            raise _without_text(error) from None

    @cached_property
    def words(self) -> wire.Vocabulary:
        """What a message or a memory may name."""
        return vocabulary(self.experiment.method)

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Fingerprints of the config."""
        return fingerprints(self.experiment.resolved)

    def check(self, asked: Mapping[str, str]) -> None:
        """Raises ConfigError when the other side has another config, and names where."""
        own = self.fingerprints
        other = [name for name in sorted({*own, *asked}) if own.get(name) != asked.get(name)]
        if other:
            differences = ", ".join(
                f"{name}: {own.get(name)} here, {asked.get(name)} asked for" for name in other
            )
            raise ConfigError(
                f"client and server have different configs ({differences}); give both the same"
            )

    def arrived(self, id: int) -> int:
        """Returns how many arrivals a client has; 0 where data do not arrive."""
        if not self.experiment.stream.elsewhere:
            return 0
        return int(self.site.population.arrived(id))  # type: ignore[attr-defined]

    def check_place(self, id: int, stage: int, round: int) -> None:
        """Raises ConfigError for a client or a place that the config does not have."""
        stream: Stream = self.site.population.stream  # type: ignore[attr-defined]
        rounds = self.experiment.training.rounds
        if id >= stream.clients:
            raise ConfigError(
                f"client {id} is none of the stream's {stream.clients} clients, whose ids begin "
                "with 0: give the node another id"
            )
        if not (0 <= stage < stream.stages and round <= rounds):
            raise ConfigError(
                f"stage {stage}, round {round} is asked for, but the config has {stream.stages} "
                f"stages of {rounds} rounds"
            )


@dataclass(frozen=True)
class Home:
    """A node in one experiment.

    Attributes:
        id: Which client it is.
        load: Returns what it makes of its own copy of the config; raises ConfigError.
        root: 32 bytes below which its secrets of this experiment lie; None for a simulated client,
            whose secrets come with the question.
        token: Binds the id to the node's state folder; nothing in a simulation.
        budget: Bytes that memories below `within` may take; 0 for no bound.
        within: Folder of all that the budget is for.
    """

    id: int
    load: Callable[[], Own]
    root: bytes | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)
    budget: int = 0
    within: Path | None = None

    @cached_property
    def own(self) -> Own:
        """What it makes of its own copy of the config."""
        return self.load()

    @property
    def memory(self) -> ClientMemory:
        """What the client remembers."""
        folder = self.own.keep / str(self.id)
        return ClientMemory(folder, self.own.words, self.budget, self.within)

    def agreed(self, asked: Mapping[str, str], stage: int, round: int = 0) -> Own:
        """Returns what is its own, for a question that its own config agrees with.

        Args:
            asked: Fingerprints of the asker's config.
            stage: Stage that the question is about.
            round: Round of it.

        Raises:
            ConfigError: The other side has another config, or the config has no such client, stage
                or round.
        """
        self.own.check(asked)
        self.own.check_place(self.id, stage, round)
        return self.own

    def answer(self, question: messages.Question) -> RecordDict:
        """Runs the program of a question and keeps the memory that it leaves."""
        memory, position = self.memory, question.position
        own = self.agreed(question.config, position.stage, position.round)
        if not question.blank:
            memory.roll_back(question.base, position, question.committed)
        request = question.request(own.words)
        if self.root is not None:
            # Whatever a server sends, what protects a device is drawn below its own root. The same
            # question gets the same noise, and any other one gets its own: see `Question.digest`.
            request = replace(request, secret=key_of(self.root, "question", question.digest()))
        answer = self._run(request, memory.read(question.base))
        if question.blank:
            return messages.write_reply(_form_of(answer.reply), False, position, own.words)
        remembered = not isinstance(answer.memory, Unchanged)
        reply = messages.write_reply(answer.reply, remembered, position, own.words)
        if remembered:
            memory.write(messages.moment(position), answer.memory)
        return reply

    def _run(self, request: Request, memory: Any) -> Answer:
        site = self.own.site
        with self.own.discreet():
            return site.answer(request, self.id, memory, settle(request.message, site.device))


def _without_text(error: Exception) -> FedclError:
    """Returns an error of the same kind that says nothing but its kind."""
    text = f"{type(error.__cause__ or error).__name__}; the device's own log says more"
    if isinstance(error, ClientError):
        return ClientError(error.client, error.stage, error.round, error.program, text)
    return type(error)(text) if isinstance(error, FedclError) else FedclError(text)


def _form_of(reply: Reply) -> Reply:
    """Returns a reply that shows the form of another one, and nothing else of it."""
    zeros = {name: torch.zeros_like(value) for name, value in reply.tensors.items()}
    return Reply(zeros)
