"""The server's end of Flower: asks nodes through a Grid, and folds answers as every engine does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from flwr.app import Message, RecordDict

from fedcl.core import wire
from fedcl.core.client import Each, Kept, Spent, Unchanged
from fedcl.core.errors import (
    AbsentError,
    ClientError,
    ConfigError,
    ExposureError,
    FedclError,
    ResumeError,
)
from fedcl.core.memories import Memories
from fedcl.core.request import Answer, BlockResult, Request, failure
from fedcl.core.site import Site
from fedcl.core.tree import settle
from fedcl.flower.protocol import messages
from fedcl.flower.protocol.inspection import check_reply, inspect
from fedcl.flower.server.inquiry import Inquiry
from fedcl.flower.server.seats import Seats
from fedcl.flower.server.status import Status
from fedcl.flower.transport.post import Post

_NOTHING = Spent(0.0, 1.0, 0)  # of a client who was not asked
_QUIET = 60.0  # seconds without any answer before who has not answered is asked again


@dataclass
class Link:
    """What connects one experiment with its nodes.

    Attributes:
        post: How messages travel.
        seats: Flower's node of each client.
        site: Checks, books and folds what comes back.
        words: What a message may name.
        experiment: Name under which nodes keep their config.
        config: Fingerprints of the server's config.
        timeout: Seconds after which an answer counts as missing; 0 waits for ever.
        limit: Most bytes that an answer may have.
        live: Whether clients are devices of other people: what one of them does wrong is a reply
            that is left out, and their secret keys are their own.
        status: Told how an exchange goes on.
    """

    post: Post
    seats: Seats
    site: Site
    words: wire.Vocabulary
    experiment: str
    config: Mapping[str, str]
    timeout: float = 0.0
    limit: int = 1_000_000_000
    live: bool = False
    status: Status = field(default_factory=lambda: Status(None))

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the results of the fold blocks of `ids`, in their order.

        Raises:
            ClientError: A client's program failed, or its answer cannot be read: the first one in
                the order of ids; not in a live federation.
            ConfigError: A node has another config; not in a live federation.
        """
        coded, bases = self._coded(request), dict[int, Kept | None]()
        inquiry: Inquiry[Answer] = Inquiry(
            self.post,
            self.seats,
            messages.EXCHANGE,
            lambda id: self._question(request, coded(id), bases.get(id)),
            partial(self._read, request),
            self.timeout,
            request.enough,
            self._quiet,
        )
        waiting, blocks = deque(self.site.blocks(ids)), deque[tuple[int, ...]]()
        while waiting or blocks:
            while waiting and (not blocks or inquiry.open < self.post.window):
                blocks.append(waiting.popleft())
                bases.update(memories.load(blocks[-1]))
                inquiry.ask(blocks[-1])
            inquiry.poll()
            self._tell(inquiry, len(ids))
            while blocks and all(map(inquiry.settled, blocks[0])):
                yield self._result(request, blocks.popleft(), inquiry)
        self.post.sweep()

    def ask(
        self, kind: str, contents: Mapping[int, RecordDict], timeout: float | None = None
    ) -> tuple[dict[int, RecordDict], dict[int, str], dict[int, str]]:
        """Asks clients what belongs to no exchange, and returns what they answer.

        Args:
            kind: Of message, such as `query.evaluation`.
            contents: What each client is asked, by client.
            timeout: Seconds after which an answer counts as missing; None for those of exchanges.

        Returns:
            The answers by client, of which nothing is known but that they keep to the limit; why
            others have none; and what is wrong with those of further ones.
        """
        timeout = self.timeout if timeout is None else timeout
        inquiry: Inquiry[RecordDict] = Inquiry(
            self.post,
            self.seats,
            kind,
            contents.__getitem__,
            self._open,
            timeout,
            quiet=self._quiet,
        )
        inquiry.ask(sorted(contents))
        while inquiry.open:
            inquiry.poll()
            self._tell(inquiry, len(contents))
        self.post.sweep()
        bad = {id: str(error) for id, error in sorted(inquiry.bad.items())}
        return dict(sorted(inquiry.found.items())), dict(sorted(inquiry.missing.items())), bad

    @property
    def _quiet(self) -> float:
        return _QUIET if self.live else 0.0  # a simulation loses nothing

    def _tell(self, inquiry: Inquiry[Answer] | Inquiry[RecordDict], asked: int) -> None:
        failures = {**inquiry.missing, **{id: str(error) for id, error in inquiry.bad.items()}}
        self.status.tell(
            waiting=f"for {inquiry.open} clients to answer" if inquiry.open else "",
            asked=asked,
            answered=inquiry.answered,
            failures={str(id): why for id, why in sorted(failures.items())},
        )

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
            b"" if self.live else request.secret or b"",
            request.blank,
        )
        return question.write()

    def _result(
        self, request: Request, block: Sequence[int], inquiry: Inquiry[Answer]
    ) -> BlockResult:
        bad = {id: inquiry.bad[id] for id in block if id in inquiry.bad}
        if bad and not self.live:
            raise next(iter(bad.values()))
        answers = [inquiry.found.pop(id) for id in block if id in inquiry.found]
        result = self.site.gather(request, answers)
        return replace(
            result,
            spent={**result.spent, **{id: _NOTHING for id in block if id not in inquiry.reached}},
            failures={id: inquiry.missing[id] for id in block if id in inquiry.missing},
            rejected={
                id: error.reason if isinstance(error, ClientError) else str(error)
                for id, error in bad.items()
            },
        )

    def _open(self, id: int, message: Message) -> RecordDict:
        """Returns the content of a client's answer; raises FedclError where there is none."""
        if message.has_error():
            raise FedclError(f"client {id}: Flower reports: {message.error.reason}")
        try:
            inspect(message.content, self.limit)
            told = messages.read_failure(message.content)
        except Exception as error:  # it may hold anything
            raise FedclError(f"client {id}: its answer cannot be read: {error}") from error
        if told is not None:
            raise FedclError(f"client {id}: {told[1]}")
        return message.content

    def _read(self, request: Request, id: int, message: Message) -> Answer:
        if message.has_error():
            raise failure(request, id, f"Flower reports: {message.error.reason}")
        try:
            inspect(message.content, self.limit)
            told = messages.read_failure(message.content)
            if told is not None:
                raise _error(request, id, *told)
            reply, remembered = messages.read_reply(message.content, request.position, self.words)
            check_reply(reply)
        except FedclError:
            raise
        except KeyError as error:
            raise failure(request, id, f"its answer cannot be read: it has no {error}") from error
        except Exception as error:  # it may hold anything
            raise failure(request, id, f"its answer cannot be read: {error}") from error
        memory = Kept(messages.moment(request.position)) if remembered else Unchanged()
        return Answer(id, settle(reply, self.site.device), memory)


def _error(request: Request, id: int, kind: str, reason: str, trace: str) -> FedclError:
    """Returns the error of which a client told."""
    if kind != messages.PROGRAM:
        known = {
            cls.__name__: cls for cls in (AbsentError, ConfigError, ExposureError, ResumeError)
        }
        return known.get(kind, FedclError)(f"client {id}: {reason}")
    error = failure(request, id, reason)
    error.__cause__ = FedclError(f"on the client's side:\n{trace}")
    return error
