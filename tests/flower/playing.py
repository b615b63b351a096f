"""Nodes at a real SuperLink that are played in this process: they speak Flower's Fleet API.

A SuperNode starts a process for each message. What that is good for is tested where nodes are
SuperNodes; here dozens of messages must not take minutes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from bench.crowd import Crowd, connected
from flwr.app import Message

PAUSE = 0.5  # seconds between two looks for messages
Answer = Callable[[int, Message], Message]


@contextmanager
def playing(port: int, clients: Sequence[int], answer: Answer) -> Iterator[Crowd]:
    """Lets nodes look for messages, in threads of their own.

    Args:
        port: Of the SuperLink.
        clients: Which client each node is.
        answer: Returns what a client answers to a message.
    """
    over = threading.Event()
    with connected(f"127.0.0.1:{port}", len(clients), answer) as nodes:
        named = [replace(node, client=id) for node, id in zip(nodes, clients, strict=True)]
        crowd = Crowd(named, pause=PAUSE)
        thread = threading.Thread(target=crowd.serve, args=[over])
        thread.start()
        failure: BaseException | None = None
        try:
            yield crowd
        except BaseException as error:  # Flower's connection would take it for its own, and go on
            failure = error
        finally:
            over.set()
            thread.join()
    if failure is not None:
        raise failure
