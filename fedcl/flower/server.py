"""The server's end of Flower: asks nodes through a Grid, and folds answers as every engine does."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode

from fedcl.core import wire
from fedcl.core.client import Each, Kept, Unchanged
from fedcl.core.engine import Answer, BlockResult, Request, failure
from fedcl.core.errors import ConfigError, ExposureError, FedclError, ResumeError
from fedcl.core.memories import Memories
from fedcl.core.site import Site
from fedcl.core.tree import settle
from fedcl.flower import messages
from fedcl.flower.post import WINDOW, Post

_ABSENT = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)


@dataclass
class Link:
    """What connects one experiment with its nodes.

    Attributes:
        post: How messages travel.
        nodes: Flower's node of each client.
        site: Checks, books and folds what comes back.
        words: What a message may name.
        experiment: Name under which nodes keep their config.
        config: Fingerprints of the server's config.
        timeout: Seconds after which an answer counts as missing; 0 waits for ever.
    """

    post: Post
    nodes: Mapping[int, int]
    site: Site
    words: wire.Vocabulary
    experiment: str
    config: Mapping[str, str]
    timeout: float = 0.0

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the results of the fold blocks of `ids`, in their order.

        Raises:
            ClientError: A client's program failed: the first one in the order of ids.
            ConfigError: A node has another config.
        """
        coded = self._coded(request)
        waiting = deque(self.site.blocks(ids))
        blocks: deque[tuple[int, ...]] = deque()
        asked: dict[str, int] = {}
        came: dict[int, Message] = {}
        late: dict[int, str] = {}
        while waiting or blocks:
            while waiting and (not blocks or len(self.post.flight) < WINDOW):
                blocks.append(waiting.popleft())
                bases = memories.load(blocks[-1])
                for id in blocks[-1]:
                    content = self._question(request, coded(id), bases.get(id))
                    asked[self.post.send(content, self.nodes[id], messages.EXCHANGE)] = id
            for message in self.post.receive():
                came[asked[message.metadata.reply_to_message_id]] = message
            for message_id in self._overdue():
                late[asked[message_id]] = f"no answer within {self.timeout:g} s"
                self.post.abandon(message_id)
            while blocks and all(id in came or id in late for id in blocks[0]):
                block = blocks.popleft()
                found = {id: came.pop(id) for id in block if id in came}
                missing = {id: late.pop(id) for id in block if id in late}
                yield self._result(request, found, missing)

    def _coded(self, request: Request) -> Callable[[int], messages.Coded]:
        """Returns what a client gets; what is the same for all is written once."""
        message, words = request.message, self.words
        if isinstance(message, Each):
            own = message.messages
            return lambda id: messages.Coded.of((request.program, own[id], request.told), words)
        shared = messages.Coded.of((request.program, message, request.told), words)
        return lambda id: shared

    def _question(self, request: Request, coded: messages.Coded, base: Kept | None) -> RecordDict:
        question = messages.Question(
            self.experiment,
            self.config,
            coded,
            request.position,
            base,
            request.committed,
            request.secret or b"",
            request.blank,
        )
        return question.write()

    def _overdue(self) -> list[str]:
        if not self.timeout:
            return []
        now = time.monotonic()
        return [id for id, sent in self.post.flight.items() if now - sent > self.timeout]

    def _result(
        self, request: Request, found: Mapping[int, Message], missing: Mapping[int, str]
    ) -> BlockResult:
        answers: list[Answer] = []
        failures = dict(missing)
        for id, message in sorted(found.items()):
            if message.has_error() and message.error.code in _ABSENT:
                failures[id] = message.error.reason or "no reason given"
            else:
                answers.append(self._read(request, id, message))
        return replace(self.site.gather(request, answers), failures=failures)

    def _read(self, request: Request, id: int, message: Message) -> Answer:
        if message.has_error():
            raise failure(request, id, f"Flower reports: {message.error.reason}")
        try:
            told = messages.read_failure(message.content)
            if told is not None:
                raise _error(request, id, *told)
            reply, remembered = messages.read_reply(message.content, request.position, self.words)
        except (KeyError, TypeError, ValueError) as error:
            raise failure(request, id, f"its answer cannot be read: {error}") from error
        memory = Kept(messages.moment(request.position)) if remembered else Unchanged()
        return Answer(id, settle(reply, self.site.device), memory)


def _error(request: Request, id: int, kind: str, reason: str, trace: str) -> FedclError:
    """Returns the error of which a client told."""
    if kind != messages.PROGRAM:
        known = {cls.__name__: cls for cls in (ConfigError, ExposureError, ResumeError)}
        return known.get(kind, FedclError)(f"client {id}: {reason}")
    error = failure(request, id, reason)
    error.__cause__ = FedclError(f"on the client's side:\n{trace}")
    return error
