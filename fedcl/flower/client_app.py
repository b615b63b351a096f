"""The client half as a Flower ClientApp: a node answers questions with its own copy of the config.

A question names an experiment, a program and a place in the run. The node builds data, model and
program from its own config, compares the two configs by their fingerprints, and keeps its memory to
itself. Simulated nodes and devices differ in how they find what is their own, and in nothing else.
Whatever a question holds, the node answers it: what went wrong is an answer too.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcl.assembly import build_site
from fedcl.config import Experiment
from fedcl.core import wire
from fedcl.core.client import Reply, Unchanged
from fedcl.core.errors import ClientError, ConfigError, FedclError
from fedcl.core.noise import key_of
from fedcl.core.site import Site
from fedcl.core.stream import Stream
from fedcl.core.tree import settle
from fedcl.flower import arrivals as arriving
from fedcl.flower import evaluation, messages
from fedcl.flower.agreement import fingerprints
from fedcl.flower.introductions import Introduced, Introduction
from fedcl.flower.memories import ClientMemory


@dataclass(frozen=True)
class Own:
    """What a node makes of its own config of an experiment.

    Attributes:
        experiment: The config.
        keep: Holds a folder for each client that runs here, with what it keeps.
    """

    experiment: Experiment
    keep: Path

    @cached_property
    def site(self) -> Site:
        """Data, stream and model, built when they are first needed."""
        return build_site(self.experiment, self.keep)

    @cached_property
    def words(self) -> wire.Vocabulary:
        """What a message or a memory may name."""
        return wire.vocabulary(self.experiment.method)

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

    def answer(self, question: messages.Question) -> RecordDict:
        """Runs the program of a question and keeps the memory that it leaves."""
        own, memory, position = self.own, self.memory, question.position
        own.check(question.config)
        own.check_place(self.id, position.stage, position.round)
        if not question.blank:
            memory.roll_back(question.base, position, question.committed)
        request = question.request(own.words)
        if self.root is not None:
            # Whatever a server sends, what protects a device is drawn below its own root. The same
            # question gets the same noise, and any other one gets its own: see `Question.digest`.
            request = replace(request, secret=key_of(self.root, "question", question.digest()))
        message = settle(request.message, own.site.device)
        answer = own.site.answer(request, self.id, memory.read(question.base), message)
        if question.blank:
            return messages.write_reply(_form_of(answer.reply), False, position, own.words)
        remembered = not isinstance(answer.memory, Unchanged)
        reply = messages.write_reply(answer.reply, remembered, position, own.words)
        if remembered:
            memory.write(messages.moment(position), answer.memory)
        return reply


def _form_of(reply: Reply) -> Reply:
    """Returns a reply that shows the form of another one, and nothing else of it."""
    zeros = {name: torch.zeros_like(value) for name, value in reply.tensors.items()}
    return Reply(zeros)


Find = Callable[[str], AbstractContextManager[Home]]


def make_app(find: Callable[[Context, str], AbstractContextManager[Home]]) -> ClientApp:
    """Returns the app of nodes that find what is their own in one way.

    Args:
        find: Opens a node's home in the experiment of an id, for the time of an answer; that id is
            empty before there is an experiment.
    """
    app = ClientApp()

    @app.query("exchange")
    def exchange(message: Message, context: Context) -> Message:
        return Message(respond(message.content, partial(find, context)), reply_to=message)

    @app.query("evaluation")
    def examination(message: Message, context: Context) -> Message:
        return Message(evaluate(message.content, partial(find, context)), reply_to=message)

    @app.query("arrivals")
    def arrivals(message: Message, context: Context) -> Message:
        return Message(tell_arrivals(message.content, partial(find, context)), reply_to=message)

    @app.query("introduction")
    def introduction(message: Message, context: Context) -> Message:
        return Message(introduce(message.content, partial(find, context)), reply_to=message)

    return app


def introduce(content: RecordDict, find: Find) -> RecordDict:
    """Says which client a node is; refuses a server with another config or version.

    Args:
        content: The server's own introduction (`fedcl.flower.introductions.Introduction`).
        find: Opens the node's home.
    """

    def act() -> RecordDict:
        asked = Introduction.read(content)
        with find(asked.experiment) as home:
            if asked.experiment:
                asked.check(home.own.experiment.resolved)
            return Introduced(home.id, home.token).write()

    return _told(act)


def respond(content: RecordDict, find: Find) -> RecordDict:
    """Answers a question.

    Args:
        content: The question (`fedcl.flower.messages.Question`).
        find: Opens the node's home.
    """

    def act() -> RecordDict:
        question = messages.Question.read(content)
        with find(question.experiment) as home:
            return home.answer(question)

    return _told(act)


def evaluate(content: RecordDict, find: Find) -> RecordDict:
    """Says how good a model is on the client's own held-out data; its memory stays as it is.

    Args:
        content: The question (`fedcl.flower.evaluation.Question`).
        find: Opens the node's home.
    """

    def act() -> RecordDict:
        try:
            question = evaluation.Question.read(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FedclError(f"the question cannot be read: {error!r}") from error
        with find(question.experiment) as home:
            own = home.own
            own.check(question.config)
            own.check_place(home.id, *question.place)
            return evaluation.answer(question, own.site, own.words, home.id, home.memory.read)

    return _told(act)


def tell_arrivals(content: RecordDict, find: Find) -> RecordDict:
    """Says whether the client has new data for a stage; decides nothing.

    Args:
        content: The question (`fedcl.flower.arrivals.Question`).
        find: Opens the node's home.
    """

    def act() -> RecordDict:
        try:
            question = arriving.Question.read(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FedclError(f"the question cannot be read: {error!r}") from error
        with find(question.experiment) as home:
            own = home.own
            own.check(question.config)
            own.check_place(home.id, question.stage, 0)
            return arriving.answer(question, own.site, home.id)

    return _told(act)


def _told(act: Callable[[], RecordDict]) -> RecordDict:
    """Returns an answer; an error becomes one that tells it."""
    # One thread everywhere: one and two threads give different bits.
    torch.set_num_threads(1)
    try:
        return act()
    except ClientError as error:
        return messages.write_failure(messages.PROGRAM, error.reason, traceback.format_exc())
    except FedclError as error:
        return messages.write_failure(type(error).__name__, str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return messages.write_failure(messages.PROGRAM, reason, traceback.format_exc())
