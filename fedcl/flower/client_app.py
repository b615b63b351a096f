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
from typing import TypeVar

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcl.core.errors import ClientError, FedclError
from fedcl.flower import arrivals as arriving
from fedcl.flower import evaluation, messages
from fedcl.flower.home import Home
from fedcl.flower.inspection import inspect
from fedcl.flower.introductions import Introduced, Introduction

LIMIT = 2**32  # bytes of a question
T = TypeVar("T")
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
        asked = _read(Introduction.read, content)
        with find(asked.experiment) as home:
            if not asked.experiment:
                return Introduced(home.id).write()
            asked.check(home.own.experiment.resolved)
            return Introduced(home.id, home.token, home.own.arrived(home.id)).write()

    return _told(act)


def respond(content: RecordDict, find: Find) -> RecordDict:
    """Answers a question.

    Args:
        content: The question (`fedcl.flower.messages.Question`).
        find: Opens the node's home.
    """

    def act() -> RecordDict:
        question = _read(messages.Question.read, content)
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
        question = _read(evaluation.Question.read, content)
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
        question = _read(arriving.Question.read, content)
        with find(question.experiment) as home:
            own = home.own
            own.check(question.config)
            own.check_place(home.id, question.stage, 0)
            return arriving.answer(question, own.site, home.id)

    return _told(act)


def _read(read: Callable[[RecordDict], T], content: RecordDict) -> T:
    try:
        inspect(content, LIMIT, "by fedcl")
        return read(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FedclError(
            f"the question cannot be read: {error!r}; ask with the same version of fedcl"
        ) from error


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
