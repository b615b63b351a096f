"""What stands behind the door between server and clients for a whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fedcl.core.accounting.ledger import Ledger
from fedcl.core.aggregation import Aggregation
from fedcl.core.channel import Aggregate, Channel, hides_replies
from fedcl.core.client import Program
from fedcl.core.coverage import UNDECLARED, Coverage
from fedcl.core.engine import Engine
from fedcl.core.errors import ConfigError
from fedcl.core.exchange import Exchange
from fedcl.core.exposure import least_answers
from fedcl.core.local import Local
from fedcl.core.memories import Memories
from fedcl.core.owed import Owed
from fedcl.core.privacy.examples import ExampleMechanism
from fedcl.core.request import Position, program_name
from fedcl.core.seeds import seed_of
from fedcl.core.watch import Watch
from fedcl.core.wire import Vocabulary, check


class TooFewReplies(Exception):
    """Fewer clients answered than needed: the round is skipped or repeated."""


@dataclass
class Door:
    """What stays the same behind the door for the whole run.

    Attributes:
        engine: Runs the clients.
        aggregation: How replies become one.
        channel: Transforms on the wire.
        channel_state: State of the channel's server half, one value a step.
        memories: The clients' memories.
        words: What a program and a message may name.
        seed: Seed of the experiment.
        minimum: Replies that a round needs.
        availability: Chance that a client that is asked answers.
        watches: Audits at work.
        committed: Stage and round where a resumed run would start now.
        exchanges: Exchanges of the present round, not yet recorded.
        sampling: How cohorts are drawn.
        size: Clients of a cohort, on average; 0 for all members.
        enough: Answers of a cohort after which no more are needed; 0 for all.
        waits: Whether the engine itself takes the first answers that come, as those of devices.
        root: Secret root of what protects clients, 32 bytes, or None where nothing does.
        ledger: What was released.
        promise: What the trainer promises to single records, or None.
        coverage: What the method says of its client half's use of records.
        owed: Tells what answers spend of records before anybody is asked, where an answer may come
            too late to be read; None where each is read.
    """

    engine: Engine
    aggregation: Aggregation
    channel: Channel
    channel_state: list[Any]
    memories: Memories
    words: Vocabulary
    seed: int
    minimum: int = 1
    availability: float = 1.0
    watches: Sequence[Watch] = ()
    committed: tuple[int, int] = (0, 0)
    exchanges: list[Exchange] = field(default_factory=list)
    sampling: Literal["fixed", "poisson", "round_robin"] = "fixed"
    size: int = 0
    enough: int = 0
    waits: bool = False
    root: bytes | None = None
    ledger: Ledger = field(default_factory=Ledger)
    promise: ExampleMechanism | None = None
    coverage: Coverage = UNDECLARED
    owed: Owed | None = None

    def fewest(self, least: int, program: str, expected: int) -> tuple[str, int]:
        """Returns how many replies an exchange needs, and what says so.

        Args:
            least: What the rule that combines them needs.
            program: Name of the program that makes them.
            expected: Clients asked on average.
        """
        channel = least_answers(self.channel, self.channel_state, program, expected)
        bounds = {
            "training.minimum": self.minimum,
            "the channel's least": channel,
            "what the rule of [aggregation] needs": least,
        }
        return max(bounds.items(), key=lambda bound: bound[1])

    def check_words(self, program: Program[Any] | Local, message: Any) -> None:
        """Raises ConfigError for a program or a message that cannot travel."""
        for value, fact in (
            (program, "has no name that a client could look up"),
            (message, "is sent with a message that cannot travel"),
        ):
            try:
                check(value, self.words)
            except TypeError as error:
                raise ConfigError(f"program {program_name(program)!r} {fact}: {error}") from error

    def receive(self, total: Aggregate, position: Position) -> Aggregate:
        """Returns what the server halves of the channel's steps, the last first, make of a sum."""
        at = (position.stage, position.round, position.exchange)
        for index in reversed(range(len(self.channel))):
            key = seed_of(self.seed, *at, "receive", index)
            total, self.channel_state[index] = self.channel[index].receive(
                total, self.channel_state[index], key
            )
        return replace(total, metrics={}) if hides_replies(self.channel) else total
