"""What audits of payloads have in common: whom they look at, and what each really trained on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedcl.audits._originals import chosen_round, together, trained_on
from fedcl.core.audit import Subject
from fedcl.core.channel import hides_replies
from fedcl.core.client import Reply
from fedcl.core.exchange import Exchange
from fedcl.core.memories import Memories
from fedcl.core.params import Params
from fedcl.core.request import Request
from fedcl.core.task import Examples
from fedcl.core.watch import Watch


@dataclass
class PayloadWatch(Watch, ABC):
    """Looks at replies where the server receives them one by one, else at the sum it receives.

    Attributes:
        options: Has `rounds`, the first rounds of each stage that are looked at.
        subject: The run.
        request: The exchange that is going on.
        truths: What the clients who are looked at train on in it.
    """

    options: Any
    subject: Subject
    request: Request | None = field(default=None, init=False)
    truths: dict[int, Examples] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.hidden = hides_replies(self.subject.site.channel)

    def wants(self, request: Request) -> bool:
        """Looks at replies where the server receives them one by one."""
        return not self.hidden and chosen_round(self.subject, request, self.options.rounds)

    def asked(self, request: Request, ids: Any, memories: Memories) -> None:
        """Notes what clients train on, before they change what they keep."""
        if self.request is not None and self.request.position == request.position:
            return  # a probe for the form of an empty sum
        self.request, self.truths = request, {}
        if chosen_round(self.subject, request, self.options.rounds):
            own = self.picked(request, ids)
            self.truths = {id: trained_on(self.subject, request, id, memories) for id in own}

    def picked(self, request: Request, ids: Sequence[int]) -> Sequence[int]:
        """Returns the clients that are looked at, of those who are asked."""
        return ids

    def sent(self, request: Request, replies: Mapping[int, Reply]) -> None:
        """Looks at replies as they left their clients."""
        for id, reply in replies.items():
            if id in self.truths:
                self.look(request, str(id), reply.tensors, self.truths[id])

    def observe(self, exchange: Exchange) -> None:
        """Looks at the sum that the server received, where it received no more."""
        if not self.hidden or self.request is None or exchange.total is None:
            return
        truth = together(self.truths, exchange.answered)
        if truth is not None:
            self.look(self.request, "sum", exchange.total.total, truth)

    @abstractmethod
    def look(self, request: Request, view: str, tensors: Params, truth: Examples) -> None:
        """Looks at what one client, or all together (`view` is "sum"), sent."""
