"""Judges replies one by one before they are summed: what does not fit never reaches an aggregate.

The form against which a reply is judged is no single client's: for local training that reports its
change it is the message's own parameters; for other programs, and where a step of the channel
changes the form, it is the form of more than half of the replies of the exchange. Without such a
majority no reply is accepted. Values that fit are not judged: a changed sign is no error of form
(that is what robust rules and bounded norms are for).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fedcl.core.around import Around
from fedcl.core.attacks.lies import Attackers
from fedcl.core.channel import Aggregate, Channel, Sending, fold
from fedcl.core.client import Each, Reply
from fedcl.core.errors import FedclError
from fedcl.core.local import Local, change
from fedcl.core.memories import Memories
from fedcl.core.params import not_finite
from fedcl.core.privacy.clipping import norm
from fedcl.core.request import Answer, BlockResult, Request, diverged, failure
from fedcl.core.site import Site

Form = Mapping[str, tuple[torch.Size, torch.dtype]]
_METRICS = 64  # numbers that a reply may bring for the record
_PATIENCE = 20  # exchanges in a row without a reply that fits


@dataclass
class Guarded(Around):
    """Runs the inner engine, lets attackers lie, and accepts the replies that fit.

    All replies of an exchange are held at once. Sums are made of those accepted, in the order of
    their ids in fold blocks: to the bit as if the others had never been asked.

    Attributes:
        inner: Runs the clients; it reveals every reply to the guard.
        site: Its fold, weights and channel.
        attackers: Who lies, and how; None for nobody.
        stops: Whether a reply that does not fit ends the run instead of being left out.
        norm: Largest norm of a whole reply; 0 for no bound but the channel's.
        weight: Largest weight of a reply.
    """

    site: Site
    attackers: Attackers | None
    stops: bool
    norm: float
    weight: float
    _fruitless: int = field(default=0, init=False)

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the sums, or the replies, of the clients whose replies fit.

        Raises:
            ClientError: A reply does not fit, and `stops`.
            FedclError: No reply fitted in many exchanges in a row.
        """
        results = list(self.inner.run(replace(request, reveal=True), ids, memories))
        answers = [
            Answer(id, reply)
            for result in results
            for id, reply in zip(result.ids, result.replies or (), strict=True)
        ]
        bound = bound_of(self.site.channel, request)
        if self.attackers is not None:
            answers = self.attackers.act(request, answers, bound)
        form = declared(request, self.site.channel) or majority([a.reply for a in answers])
        accepted: dict[int, Reply] = {}
        rejected: dict[int, str] = {}
        for answer in answers:
            reason = self._fault(answer, form, ids, accepted, bound)
            if reason is None:
                tensors = {name: answer.reply.tensors[name] for name in form or {}}
                accepted[answer.id] = replace(answer.reply, tensors=tensors)
            elif self.stops:
                raise failure(request, answer.id, reason)
            else:
                rejected[answer.id] = reason
        self._count(len(answers), accepted, rejected)
        yield from self._blocks(request, results, accepted, rejected, form)

    def _fault(
        self,
        answer: Answer,
        form: Form | None,
        ids: Sequence[int],
        accepted: Mapping[int, Reply],
        bound: float,
    ) -> str | None:
        if answer.id not in ids:
            return "it was not asked"
        if answer.id in accepted:
            return "it answered twice; the first answer counts"
        return fault(answer.reply, form, self.norm, self.weight) or beyond(answer.reply, bound)

    def _count(
        self, answered: int, accepted: Mapping[int, Reply], rejected: Mapping[int, str]
    ) -> None:
        self._fruitless = self._fruitless + 1 if answered and not accepted else 0
        if self._fruitless >= _PATIENCE:
            id, reason = next(iter(rejected.items()))
            raise FedclError(
                f"no reply of the last {_PATIENCE} exchanges was accepted (client {id}: {reason}); "
                'lower training.local.lr, or see all reasons with replies.bad = "stop"'
            )

    def _blocks(
        self,
        request: Request,
        results: Sequence[BlockResult],
        accepted: Mapping[int, Reply],
        rejected: Mapping[int, str],
        form: Form | None,
    ) -> Iterator[BlockResult]:
        found = []
        for ids in self.site.blocks(sorted(accepted)):
            replies = tuple(accepted[id] for id in ids)
            total = None if request.reveal else fold(replies, self.site.equal)
            found.append(BlockResult(ids, total, replies if request.reveal else None, {}, {}))
        if not found:
            # The noise of a sum of nothing has its form too.
            zeros = {
                name: torch.zeros(shape, dtype=torch.float64, device=self.site.device)
                for name, (shape, _) in (form or {}).items()
            }
            total = None if request.reveal or not zeros else Aggregate(zeros, 0.0, 0)
            found.append(BlockResult((), total, () if request.reveal else None, {}, {}))
        uploaded: Counter[str] = Counter()
        for result in results:
            uploaded.update(result.uploaded)
        found[0] = replace(
            found[0],
            memories={id: m for result in results for id, m in result.memories.items()},
            uploaded=dict(uploaded),
            steps=sum(result.steps for result in results),
            examples=sum(result.examples for result in results),
            padded=sum(result.padded for result in results),
            failures={id: why for result in results for id, why in result.failures.items()},
            rejected={
                **{id: why for result in results for id, why in result.rejected.items()},
                **rejected,
            },
            spent={id: spent for result in results for id, spent in result.spent.items()},
        )
        yield from found


def fault(reply: Reply, form: Form | None, largest: float, weight: float) -> str | None:
    """Returns what is wrong with a reply, or None.

    Args:
        reply: What came up.
        form: What it must look like; None when nobody can tell.
        largest: Largest norm of all its floating numbers; 0 for none.
        weight: Largest weight.
    """
    if form is None:
        return "replies differ in their form, and no form has a majority"
    for name in form:
        if name not in reply.tensors:
            return f"its reply has no tensor {name!r}"
    for name, value in reply.tensors.items():
        if name not in form:
            return f"its reply has a tensor {name!r} that nobody asked for"
        shape, dtype = form[name]
        if value.shape != shape:
            return f"its reply {name!r} has shape {tuple(value.shape)}, not {tuple(shape)}"
        if value.dtype != dtype:
            return f"its reply {name!r} has type {value.dtype}, not {dtype}"
    if (bad := not_finite(reply.tensors)) is not None:
        return diverged(bad)
    if not (math.isfinite(reply.weight) and 0 <= reply.weight <= weight):
        return f"its weight {reply.weight:g} does not lie in [0, {weight:g}]"
    if len(reply.metrics) > _METRICS:
        return f"its reply has {len(reply.metrics)} metrics; {_METRICS} are allowed"
    if not all(math.isfinite(number) for number in reply.metrics.values()):
        return "one of its metrics is NaN or infinite"
    return beyond(reply, largest)


def beyond(reply: Reply, largest: float) -> str | None:
    """Returns what is wrong with the norm of a reply, or None; rounding is forgiven."""
    size = norm(reply.tensors) if largest else 0.0
    return None if size <= largest * (1 + 1e-6) else f"its norm {size:.4g} exceeds {largest:g}"


def bound_of(channel: Channel, request: Request) -> float:
    """Returns the norm that a step promises for every reply of an exchange; 0 for none."""
    told = request.told or (None,) * len(channel)
    bounds = (
        float(step.bound(Sending(request.name, words)))
        for step, words in zip(channel, told, strict=True)
        if hasattr(step, "bound")
    )
    return max(bounds, default=0.0)


def declared(request: Request, channel: Channel) -> Form | None:
    """Returns the form that a program's message decides, or None where it does not."""
    program, message = request.program, request.message
    keeps = all(
        getattr(step, "leaves_tensors", False) or getattr(step, "keeps_form", False)
        for step in channel
    )
    if not (isinstance(program, Local) and program.report is change and keeps):
        return None
    if isinstance(message, Each):
        message = next(iter(message.messages.values()), None)
    return None if message is None else _form(message.params)


def majority(replies: Sequence[Reply]) -> Form | None:
    """Returns the form of more than half of the replies, or None."""
    votes = [_form(reply.tensors) for reply in replies]
    for form in votes:
        if 2 * sum(other == form for other in votes) > len(votes):
            return form
    return None


def _form(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in tensors.items()}
