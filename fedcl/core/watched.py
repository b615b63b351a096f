"""An engine whose clients' replies audits look at before they are summed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedcl.core.around import Around
from fedcl.core.channel import fold
from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site
from fedcl.core.watch import Watch


@dataclass
class Watched(Around):
    """Runs the inner engine, and shows watches what they want to see.

    Where a watch wants single replies they are revealed to it and summed here: in the order of an
    engine that loops, so that the sum is the same to the bit there, and up to rounding on engines
    that sum a block without ever writing out its replies.

    Attributes:
        watches: Who looks.
    """

    watches: Sequence[Watch]
    equal: bool = False

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Opens the inner engine."""
        self.equal = site.equal
        super().open(site, launch)

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the inner engine's results, and those of the clients that watches add."""
        for watch in self.watches:
            watch.asked(request, ids, memories)
        looking = [watch for watch in self.watches if watch.wants(request)]
        asked = replace(request, reveal=True) if looking else request
        form: dict[str, Tensor] = {}
        for result in self.inner.run(asked, ids, memories):
            if result.replies is not None:
                replies = dict(zip(result.ids, result.replies, strict=True))
                for watch in looking:
                    watch.sent(request, replies)
                if not request.reveal:
                    total = fold(result.replies, self.equal)
                    result = replace(result, total=total, replies=None)
            if not form and result.total is not None and result.ids:
                form = dict(result.total.total)
            yield result
        joined = [reply for watch in self.watches for reply in watch.join(request, form)]
        if joined:
            yield BlockResult((), fold(joined, self.equal), None, {}, {})
