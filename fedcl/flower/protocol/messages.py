"""Questions and answers as Flower carries them: one array, and plain values beside it.

The array holds tensors, numbers and the names of a program's parts (`fedcl.core.wire`): nothing
that can be run travels, and reading looks every name up in the reader's own vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, ConfigRecordValues, RecordDict
from torch import Tensor

from fedcl.core import wire
from fedcl.core.client import Kept, Reply
from fedcl.core.errors import FedclError
from fedcl.core.request import Position, Request
from fedcl.flower.protocol.envelope import Envelope, whole

EXCHANGE = "query.exchange"
INTRODUCTION = "query.introduction"
PROGRAM = "program"
VALUE = "value"  # the array of a message, and the only one


@dataclass(frozen=True)
class Coded:
    """A value as it travels: one array, however many tensors the value has.

    Each part of a message costs a SuperLink two requests, and each of Flower's arrays is two parts.

    Attributes:
        arrays: The bytes of the value (`fedcl.core.wire.dumps`), under `VALUE`.
    """

    arrays: ArrayRecord

    @classmethod
    def of(cls, value: Any, words: wire.Vocabulary) -> Coded:
        """Writes a value; raises TypeError that names what cannot travel."""
        data = np.frombuffer(wire.dumps(value, words), dtype=np.uint8)
        return cls(ArrayRecord({VALUE: Array.from_numpy_ndarray(data)}))

    @classmethod
    def found(cls, content: RecordDict, name: str) -> Coded:
        """Returns what a message holds under a name; raises KeyError or ValueError for nothing."""
        arrays = content.array_records[name]
        if list(arrays) != [VALUE]:
            raise ValueError(f"its arrays are {list(arrays)!r:.80}, not {VALUE!r} alone")
        return cls(arrays)

    def read(self, words: wire.Vocabulary) -> Any:
        """Returns the value; raises ValueError for anything else, or a name that is not known."""
        data = self.arrays[VALUE].numpy()
        if data.dtype != np.uint8 or data.ndim != 1:
            raise ValueError(f"{VALUE!r} are no bytes but {data.dtype} of shape {data.shape}")
        return wire.loads(data.tobytes(), words)

    def digest(self) -> bytes:
        """Returns a hash of the value."""
        return hashlib.blake2b(self.arrays[VALUE].data).digest()


@dataclass(frozen=True)
class Question:
    """One exchange as one client is asked it.

    Attributes:
        experiment: Name under which the client finds its own copy of the config.
        config: Fingerprints of the asker's config.
        coded: Program, message, and what the channel's steps tell clients.
        position: Where in the run.
        base: The memory that the client is to start from; None before it keeps any.
        committed: Stage and round where a resumed run would start.
        secret: 32 bytes below which the simulated clients' secret keys lie, or none.
        blank: Whether only the form of an answer is wanted: no memory changes.
    """

    experiment: str
    config: Mapping[str, str]
    coded: Coded
    position: Position
    base: Kept | None
    committed: tuple[int, int]
    secret: bytes = field(default=b"", repr=False)
    blank: bool = False

    def write(self) -> RecordDict:
        """Returns the content of a Flower message."""
        plain: dict[str, ConfigRecordValues] = {
            "position": list(self.position.numbers),
            "committed": list(self.committed),
            "secret": self.secret.hex(),
            "blank": self.blank,
        }
        about = Envelope(self.experiment, self.config, self.base)
        return about.write(plain, self.coded.arrays)

    @classmethod
    def read(cls, content: RecordDict) -> Question:
        """Returns the question in a Flower message.

        Raises:
            KeyError: A part is missing.
            TypeError: A part has another type.
            ValueError: It names no experiment, or a number is no place in a run.
        """
        about, plain = Envelope.read(content)
        stage, round, exchange, attempt = whole(plain["position"], 0, -1, 0, 0)
        stage_committed, round_committed = whole(plain["committed"], 0, 0)
        if not isinstance(plain["blank"], bool):
            raise TypeError(f"blank is no bool but {plain['blank']!r:.50}")
        return cls(
            experiment=about.experiment,
            config=about.config,
            coded=Coded.found(content, "message"),
            position=Position(stage, round, exchange, attempt),
            base=about.base,
            committed=(stage_committed, round_committed),
            secret=bytes.fromhex(plain["secret"]),
            blank=plain["blank"],
        )

    def digest(self) -> str:
        """Returns a hash of all that decides the answer but the client's own data.

        That is program, message, what the channel told, position with its attempt, base and config;
        not where a resumed run would start, which may be another place when a question is repeated.
        """
        words = [
            self.experiment,
            sorted(self.config.items()),
            self.coded.digest().hex(),
            list(self.position.numbers),
            None if self.base is None else self.base.moment,
        ]
        return hashlib.blake2b(json.dumps(words).encode()).hexdigest()

    def request(self, words: wire.Vocabulary) -> Request:
        """Returns the request with program and message looked up by the reader.

        Raises:
            FedclError: It names what the reader does not know, or holds something else.
        """
        try:
            program, message, told = self.coded.read(words)
        except (TypeError, ValueError) as error:
            raise FedclError(f"the question cannot be read: {error}") from error
        return Request(
            self.position,
            program,
            message,
            committed=self.committed,
            told=told,
            secret=self.secret or None,
            blank=self.blank,
        )


def write_reply(
    reply: Reply, remembered: bool, position: Position, words: wire.Vocabulary
) -> RecordDict:
    """Returns what a client answers.

    Args:
        reply: What goes up.
        remembered: Whether the client's memory is another one now.
        position: Position of the question.
        words: What may be named.
    """
    coded = Coded.of(reply, words)
    answer = ConfigRecord({"remembered": remembered, "position": list(position.numbers)})
    return RecordDict({"reply": coded.arrays, "answer": answer})


def read_reply(
    content: RecordDict, position: Position, words: wire.Vocabulary
) -> tuple[Reply, bool]:
    """Returns the reply, and whether the client's memory is another one now.

    Args:
        content: The answer.
        position: Position of the question.
        words: What may be named.

    Raises:
        ValueError: It answers another question, holds something else, or names outside the
            vocabulary.
        KeyError: It lacks a part.
    """
    answer = content.config_records["answer"]
    if answer["position"] != list(position.numbers):
        raise ValueError(
            f"it is stale: it answers (stage, round, exchange, attempt) = {answer['position']!r}, "
            f"not {list(position.numbers)}"
        )
    reply = Coded.found(content, "reply").read(words)
    if not isinstance(reply, Reply) or not all(
        isinstance(value, Tensor) for value in reply.tensors.values()
    ):
        raise ValueError(f"it is no reply but {type(reply).__name__}")
    return reply, bool(answer["remembered"])


def write_failure(kind: str, reason: str, trace: str = "") -> RecordDict:
    """Returns what a client says when it cannot answer.

    Args:
        kind: `PROGRAM` when its program failed, else the name of one of fedcl's errors.
        reason: What happened.
        trace: Where, for whoever looks for the cause.
    """
    return RecordDict({"failure": ConfigRecord({"kind": kind, "reason": reason, "trace": trace})})


def read_failure(content: RecordDict) -> tuple[str, str, str] | None:
    """Returns `(kind, reason, trace)`, or None for an answer."""
    failure = content.config_records.get("failure")
    if failure is None:
        return None
    return str(failure["kind"]), str(failure["reason"]), str(failure["trace"])


def moment(position: Position) -> tuple[int, int, int, int]:
    """Returns a position as a point in time: a repeated round comes after its first attempt."""
    return position.stage, position.round, position.attempt, position.exchange
