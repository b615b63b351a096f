"""The only door between server and clients: what a method asks goes through and is booked here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fedcl.core import local as parts
from fedcl.core.aggregation import aggregate
from fedcl.core.channel import Aggregate, hides_replies, mechanism, mechanism_at, told
from fedcl.core.client import Each, Program, Reply
from fedcl.core.coverage import admit
from fedcl.core.door import Door, TooFewReplies
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.exchange import Exchange, add_block
from fedcl.core.exposure import check_each, check_sum
from fedcl.core.local import Local, Loss, Penalty, Project
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.population import answering
from fedcl.core.privacy.noise import key_of
from fedcl.core.privacy.statistic import noise_in
from fedcl.core.recordrelease import charge, charge_ahead
from fedcl.core.release import draw_of, expected_of, nothing_of, release
from fedcl.core.request import BlockResult, Position, Request, program_name
from fedcl.core.seeds import seed_of
from fedcl.core.task import TaskInfo
from fedcl.core.tree import settle


@dataclass(frozen=True)
class Federation:
    """What a method sees of the federation in one round.

    Attributes:
        task: What may be known of the present stage.
        round: Round of the stage, from 0; -1 in `begin_task`, `rounds` in `end_task`.
        rounds: Rounds of a stage.
        members: All clients with data at this stage, ascending.
        model: The architecture.
        device: Where the server computes.
    """

    task: TaskInfo
    round: int
    rounds: int
    _cohort: tuple[int, ...] = field(repr=False)
    members: Sequence[int]
    model: nn.Module
    device: torch.device
    attempt: int = 0
    _door: Door = field(repr=False, kw_only=True)

    @property
    def cohort(self) -> tuple[int, ...]:
        """Clients sampled for this round (in `end_task`: for the last round), ascending.

        Raises:
            ExposureError: Privacy rests on nobody knowing who was drawn.
        """
        door = self._door
        if door.sampling == "poisson" and mechanism(door.channel) is not None:
            raise ExposureError(
                "who was drawn is a secret where a channel protects clients who are sampled: use "
                "fed.members, and let fed.aggregate ask the cohort by naming no clients"
            )
        return self._cohort

    @property
    def last_round(self) -> bool:
        """Whether this is the last round of its stage."""
        return self.round == self.rounds - 1

    def local(
        self,
        loss: Loss,
        *,
        penalty: Penalty | None = None,
        data: Any = parts.own_data,
        keep: Any = parts.own_state,
        report: Any = parts.change,
        project: Project | None = None,
        name: str = "train",
        passes: Any = parts.no_passes,
    ) -> Local:
        """Returns standard local training made of these parts; see `fedcl.core.local.Local`."""
        return Local(loss, penalty, data, keep, report, project, name, passes)

    def net(self, params: Params) -> Net:
        """Returns the network with these parameters, for work on the server."""
        return Net(self.model, params)

    def seed(self, purpose: str) -> int:
        """Returns a seed for a random draw of the server in this round."""
        again = (self.attempt,) if self.attempt else ()
        return seed_of(self._door.seed, self.task.index, self.round, *again, "server", purpose)

    def aggregate(
        self, program: Program[Any] | Local, message: Any, clients: Sequence[int] | None = None
    ) -> Aggregate:
        """Asks clients and returns nothing but the weighted sum of what they answer.

        Args:
            program: What each client runs.
            message: What each client gets, or `Each` with one for each.
            clients: Ids to ask; the cohort when None.

        Raises:
            ClientError: A client's program failed.
        """
        rule, name = self._door.aggregation, program_name(program)
        expected = expected_of(self._door, self.members, clients)
        protection = mechanism_at(self._door.channel, self._door.channel_state, name, expected)
        draw = None
        if protection is not None and len(self.members):
            at = self._position()
            draw = draw_of(
                self._door, self.members, self.rounds, at, clients, name, protection.bands
            )
        position, results, start = self._exchange(
            program, message, clients, rule.needs_replies, rule.least if rule.needs_replies else 0
        )
        total = aggregate(rule, results)
        if draw is not None and not total.count:
            # That nobody was drawn must not show: the noise of this sum is released like any other.
            probe = self._probe(position, program, message, expected)
            total = nothing_of(aggregate(rule, probe))
        metrics = {
            name: number / total.weight
            for name, number in total.metrics.items()
            if total.weight > 0
        }
        door, tensors = self._door, settle(dict(total.total), self.device)
        noise = noise_in(door.promise, program, total.count)
        total = Aggregate(tensors, total.weight, total.count, metrics, noise)
        if protection is not None and draw is not None:
            total = release(door, protection, draw, position, name, total)
        elif total.count:
            door.ledger.uncharged(name)
        total = door.receive(total, position)
        self._book(program, message, clients, position, results, start, total)
        return total

    def collect(
        self, program: Program[Any] | Local, message: Any, clients: Sequence[int] | None = None
    ) -> list[Reply]:
        """Asks clients and returns each one's reply, in the order of their ids.

        Weights are those of the aggregation: all are 1 under `aggregation.weights = "equal"`.

        Raises:
            ExposureError: The channel hides single replies.
            ClientError: A client's program failed.
        """
        if hides_replies(self._door.channel):
            raise ExposureError(
                f"program {program_name(program)!r} asks for single replies, but the channel hides "
                "them: use fed.aggregate, another method, or a channel without secure aggregation"
            )
        position, results, start = self._exchange(program, message, clients, reveal=True)
        self._door.ledger.uncharged(program_name(program))
        self._book(program, message, clients, position, results, start, None)
        found = [settle(reply, self.device) for result in results for reply in result.replies or ()]
        equal = self._door.aggregation.weights == "equal"
        return [replace(reply, weight=1.0) for reply in found] if equal else found

    def _exchange(
        self,
        program: Program[Any] | Local,
        message: Any,
        clients: Sequence[int] | None,
        reveal: bool,
        least: int = 0,
    ) -> tuple[Position, list[BlockResult], float]:
        door = self._door
        position = self._position()
        door.check_words(program, message)
        admit(door.promise, door.coverage, program)
        asked = self._asked(clients)
        check_each(program_name(program), message, asked)
        check_sum(door.channel, program_name(program), message, clients)
        start = time.perf_counter()
        expected = expected_of(door, self.members, clients)
        bound, fewest = door.fewest(least, program_name(program), expected)
        enough = door.enough if clients is None else 0
        request = replace(
            self._request(position, program, message, reveal, expected),
            least=fewest,
            enough=enough if door.waits else 0,
        )
        results: list[BlockResult] = []
        at = (door.seed, *position.numbers)
        # An engine that waits asks all, and takes the first answers itself.
        available = answering(asked, door.availability, 0 if door.waits else enough, at)
        charge_ahead(door, position, program, available)
        for result in door.engine.run(request, available, door.memories):
            door.memories.save(result.memories)
            add_block(request, results, result)
        charge(door, position, program, results)
        answered = sum(len(result.ids) for result in results)
        if answered < fewest:
            # What went up and down is paid for, though it is not used.
            self._book(program, message, clients, position, results, start, None)
            raise TooFewReplies(f"{answered} of {len(asked)} clients answered; {bound} is {fewest}")
        return position, results, start

    def _position(self) -> Position:
        exchange = len(self._door.exchanges)
        return Position(self.task.index, self.round, exchange, self.attempt)

    def _request(
        self,
        position: Position,
        program: Program[Any] | Local,
        message: Any,
        reveal: bool,
        expected: int,
    ) -> Request:
        door = self._door
        words = told(door.channel, door.channel_state, program_name(program), expected)
        secret = None if door.root is None else key_of(door.root, "clients", *position.numbers)
        return Request(position, program, message, reveal, door.committed, words, secret)

    def _probe(
        self, position: Position, program: Program[Any] | Local, message: Any, expected: int
    ) -> list[BlockResult]:
        """Returns one member's answer, for its form alone: nothing else of it is kept.

        It is that of the first who answers: of others there may be no data, or no sign.
        """
        request = replace(self._request(position, program, message, False, expected), blank=True)
        for id in message.messages if isinstance(message, Each) else self.members:
            found = list(self._door.engine.run(request, (id,), self._door.memories))
            if any(result.ids for result in found):
                return found
        raise ConfigError(
            f"program {program_name(program)!r} has a message for nobody who answers, so that the "
            "form of its sum is not known: sample a larger cohort, or wait for clients"
        )

    def _asked(self, clients: Sequence[int] | None) -> tuple[int, ...]:
        return tuple(sorted(set(self._cohort if clients is None else clients)))

    def _book(
        self,
        program: Program[Any] | Local,
        message: Any,
        clients: Sequence[int] | None,
        position: Position,
        results: Sequence[BlockResult],
        start: float,
        total: Aggregate | None,
    ) -> None:
        seconds, name = time.perf_counter() - start, program_name(program)
        exchange = Exchange.of(
            position, name, message, self._asked(clients), results, seconds, total
        )
        self._door.exchanges.append(exchange)
        for watch in self._door.watches:
            watch.observe(exchange)
