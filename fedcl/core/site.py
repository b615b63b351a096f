"""Where clients run: a site answers for single clients and gathers the answers of a block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fedcl.core.block import Block
from fedcl.core.channel import Channel, Sending, fold
from fedcl.core.client import Client, Each, Reply, Unchanged
from fedcl.core.local import Local, Trainer
from fedcl.core.params import not_finite
from fedcl.core.population import Population
from fedcl.core.privacy.examples import ExampleMechanism
from fedcl.core.privacy.noise import key_of
from fedcl.core.privacy.statistic import PrivateStatistic
from fedcl.core.request import Answer, BlockResult, Position, Request, diverged, failure
from fedcl.core.seeds import seed_of
from fedcl.core.statistic import Statistic
from fedcl.core.training.precision import reduced
from fedcl.core.training.schedule import Pace
from fedcl.core.tree import settle


@dataclass(frozen=True)
class Site:
    """All that is needed where clients run.

    Attributes:
        population: Builds clients where their data lie.
        model: The architecture.
        trainer: How one client trains.
        channel: Transforms of replies.
        seed: Seed of the experiment.
        fold: Clients in a fold block: sums are made block by block, whatever the engine.
        equal: Whether all replies weigh the same.
        device: Where clients compute.
        precision: Of matrix products on a GPU; see `reduced`.
        pace: The learning rate's course over the run.
        strict: Whether a reply that does not fit ends the run here; else a guard judges replies.
    """

    population: Population
    model: nn.Module
    trainer: Trainer
    channel: Channel
    seed: int
    fold: int
    equal: bool
    device: torch.device
    precision: str = "full"
    pace: Pace = field(default_factory=Pace)
    strict: bool = True

    def trainer_at(self, position: Position) -> Trainer:
        """Returns the trainer with the learning rate of a round."""
        factor = self.pace.factor(position.stage, position.round)
        return self.trainer if factor == 1.0 else self.trainer.scaled(factor)

    @property
    def promise(self) -> ExampleMechanism | None:
        """What the trainer promises to single records, or None."""
        return getattr(self.trainer, "protection", None)

    def blocks(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        """Returns the ids cut into fold blocks."""
        return [tuple(ids[start : start + self.fold]) for start in range(0, len(ids), self.fold)]

    def _seeds(self, request: Request, ids: Sequence[int]) -> list[int]:
        at = request.position
        # A repeated round draws anew; a first attempt has the seed of a run that was never
        # repeated.
        again = (at.attempt,) if at.attempt else ()
        return [seed_of(self.seed, at.stage, at.round, at.exchange, *again, id) for id in ids]

    def block(self, request: Request, ids: Sequence[int], memories: Mapping[int, Any]) -> Block:
        """Builds the clients of a block for one exchange, together."""
        at = request.position
        block = self.population.at(at.round).block(
            ids,
            at.stage,
            self.model,
            [memories.get(id) for id in ids],
            self._seeds(request, ids),
        )
        if request.secret is None:
            return block
        return replace(block, keys=tuple(key_of(request.secret, id) for id in ids))

    def clients(
        self, request: Request, ids: Sequence[int], memories: Mapping[int, Any]
    ) -> list[Client]:
        """Builds the clients of a block for one exchange."""
        stage, population = request.position.stage, self.population.at(request.position.round)
        clients = [
            population.client(id, stage, self.model, memories.get(id), seed)
            for id, seed in zip(ids, self._seeds(request, ids), strict=True)
        ]
        if request.secret is None:
            return clients
        return [replace(client, key=key_of(request.secret, client.id)) for client in clients]

    def loop(
        self, request: Request, ids: Sequence[int], memories: Mapping[int, Any]
    ) -> BlockResult:
        """Runs the clients of a block one after the other: the reference."""
        message, absent = settle(request.message, self.device), self.absent(request, ids)
        with reduced(self.device, self.precision):
            answers = [
                self.answer(request, id, memories.get(id), message)
                for id in ids
                if id not in absent
            ]
        return replace(self.gather(request, answers), failures=absent)

    def absent(self, request: Request, ids: Sequence[int]) -> Mapping[int, str]:
        """Returns which clients have nothing to take part with, and why."""
        return self.population.at(request.position.round).absent(ids, request.position.stage)

    def answer(self, request: Request, id: int, memory: Any, message: Any) -> Answer:
        """Runs one client and the channel's `upload` steps: all that happens where it lives.

        Args:
            request: What is asked.
            id: The client.
            memory: What it remembers, or None.
            message: The request's message, settled on the site's device.

        Raises:
            ClientError: Its program failed.
        """
        client = self.clients(request, (id,), {id: memory})[0]
        if isinstance(message, Each):
            message = message.messages[id]
        program = request.program
        if isinstance(program, Local):
            program = self.trainer_at(request.position)(program)
        elif isinstance(program, Statistic) and self.promise is not None:
            program = PrivateStatistic(program, self.promise)
        try:
            reply = program(client, message)
        except Exception as error:
            raise failure(request, id, str(error) or repr(error)) from error
        return self.send(request, client, reply)

    def sent(self, request: Request, client: Client, reply: Reply) -> Reply:
        """Returns a reply after the channel's `upload` steps.

        Where a trainer protects single records, metrics are dropped, and steps are shown none of
        the client's records: what they add would go up without protection.
        """
        if self.promise is not None:
            client = replace(client, data=client.data.part(0, 0), state=None)
            reply = replace(reply, metrics={})
        for index, step in enumerate(self.channel):
            told = request.told[index] if request.told else None
            reply = step.upload(reply, client, Sending(request.name, told))
        return reply

    def send(self, request: Request, client: Client, reply: Reply) -> Answer:
        """Takes the channel's `upload` steps, and parts what goes up from what stays."""
        memory = reply.state
        if memory is client.state or isinstance(memory, Unchanged):
            memory = Unchanged()
        else:
            memory = settle(memory, torch.device("cpu"))
        reply = self.sent(request, client, reply)
        tensors = settle(dict(reply.tensors), self.device)
        return Answer(client.id, replace(reply, tensors=tensors, state=Unchanged()), memory)

    def gather(self, request: Request, answers: Sequence[Answer]) -> BlockResult:
        """Checks, books and folds what the clients of a block sent: the server's side.

        Args:
            request: What was asked.
            answers: The clients' answers, in the order of their ids, tensors on the site's device.

        Raises:
            ClientError: A reply differs from the others in its form, or holds NaN or infinity.
        """
        uploaded: Counter[str] = Counter()
        kind = "model" if isinstance(request.program, Local) else request.name
        replies = [answer.reply for answer in answers]
        for reply in replies:
            for name, value in reply.tensors.items():
                uploaded[name.split("/")[0] if "/" in name else kind] += (
                    value.numel() * value.element_size()
                )
            uploaded["metrics"] += 8 * (1 + len(reply.metrics))
        if self.strict:
            self._check(request, answers)
        return BlockResult(
            ids=tuple(answer.id for answer in answers),
            total=None if request.reveal else fold(replies, self.equal),
            replies=tuple(replies) if request.reveal else None,
            memories={a.id: a.memory for a in answers if not isinstance(a.memory, Unchanged)},
            uploaded=dict(uploaded),
            steps=sum(reply.steps for reply in replies),
            examples=sum(reply.examples for reply in replies),
            spent={a.id: a.reply.spent for a in answers if a.reply.spent is not None},
        )

    def _check(self, request: Request, answers: Sequence[Answer]) -> None:
        first = _form(answers[0].reply) if answers else {}
        for answer in answers:
            if _form(answer.reply) != first:
                reason = (
                    f"its reply differs in names, shapes or types from client {answers[0].id}'s"
                )
                raise failure(request, answer.id, reason)
            bad = not_finite(answer.reply.tensors)
            if bad is not None:
                raise failure(request, answer.id, diverged(bad))


def _form(reply: Reply) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in reply.tensors.items()}
