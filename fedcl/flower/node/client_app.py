"""The client half as a Flower ClientApp: a node answers questions with its own copy of the config.

A question names an experiment, a program and a place in the run. The node builds data, model and
program from its own config, compares the two configs by their fingerprints, and keeps its memory to
itself. Simulated nodes and devices differ in how they find what is their own, and in nothing else.
Whatever a question holds, the node answers it: what went wrong is an answer too.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol, TypeVar

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcl.core.errors import ClientError, FedclError
from fedcl.flower.node.home import Home
from fedcl.flower.protocol import arrivals as arriving
from fedcl.flower.protocol import evaluation, messages
from fedcl.flower.protocol.inspection import inspect
from fedcl.flower.protocol.introductions import Introduced, Introduction

LIMIT = 2**32  # bytes of a question
Find = Callable[[str], AbstractContextManager[Home]]


class Asked(Protocol):
    """What every question says: the experiment that it is about; nothing before there is one."""

    @property
    def experiment(self) -> str:
        """Its id."""
        ...


Q = TypeVar("Q", bound=Asked)


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
        content: The server's own introduction (`fedcl.flower.protocol.introductions.Introduction`).
        find: Opens the node's home.
    """

    def act(home: Home, asked: Introduction) -> RecordDict:
        if not asked.experiment:
            return Introduced(home.id).write()
        asked.check(home.own.experiment.resolved)
        return Introduced(home.id, home.token, home.own.arrived(home.id)).write()

    return _told(Introduction.read, content, find, act)


def respond(content: RecordDict, find: Find) -> RecordDict:
    """Answers a question.

    Args:
        content: The question (`fedcl.flower.protocol.messages.Question`).
        find: Opens the node's home.
    """
    return _told(messages.Question.read, content, find, Home.answer)


def evaluate(content: RecordDict, find: Find) -> RecordDict:
    """Says how good a model is on the client's own held-out data; its memory stays as it is.

    Args:
        content: The question (`fedcl.flower.protocol.evaluation.Question`).
        find: Opens the node's home.
    """

    def act(home: Home, question: evaluation.Question) -> RecordDict:
        own = home.agreed(question.config, *question.place)
        return evaluation.answer(question, own.site, own.words, home.id, home.memory.read)

    return _told(evaluation.Question.read, content, find, act)


def tell_arrivals(content: RecordDict, find: Find) -> RecordDict:
    """Says whether the client has new data for a stage; decides nothing.

    Args:
        content: The question (`fedcl.flower.protocol.arrivals.Question`).
        find: Opens the node's home.
    """

    def act(home: Home, question: arriving.Question) -> RecordDict:
        own = home.agreed(question.config, question.stage)
        return arriving.answer(question, own.site, home.id)

    return _told(arriving.Question.read, content, find, act)


def _told(
    read: Callable[[RecordDict], Q],
    content: RecordDict,
    find: Find,
    act: Callable[[Home, Q], RecordDict],
) -> RecordDict:
    """Returns an answer; an error becomes one that tells it.

    Args:
        read: Reads what is asked.
        content: What is asked.
        find: Opens the node's home.
        act: Answers at home.
    """
    # One thread everywhere: one and two threads give different bits.
    torch.set_num_threads(1)
    try:
        asked = _read(read, content)
        with find(asked.experiment) as home:
            return act(home, asked)
    except ClientError as error:
        return messages.write_failure(messages.PROGRAM, error.reason, traceback.format_exc())
    except FedclError as error:
        return messages.write_failure(type(error).__name__, str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return messages.write_failure(messages.PROGRAM, reason, traceback.format_exc())


def _read(read: Callable[[RecordDict], Q], content: RecordDict) -> Q:
    try:
        inspect(content, LIMIT, "by fedcl")
        return read(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FedclError(
            f"the question cannot be read: {error!r}; ask with the same version of fedcl"
        ) from error
