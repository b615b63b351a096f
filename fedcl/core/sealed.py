"""The trusted third party of an ideal secure sum: what stands above it holds no client's reply.

Engines are simulators: they run every client and see all that it answers. What the server of a real
federation may hold begins above this one: a single total of each exchange, without metrics, and no
total of fewer clients than the channel asks for. Below it, from the door down, stand audits
(`Watched`), which are the simulator's own view; the guard (`Guarded`), which judges single replies
and so stands where a real secure sum needs proofs of validity; and the engine. Which clients
answered, what they sent in bytes and steps, and why some did not, are the simulator's own view too;
memories go to their store from here, where the clients are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from fedcl.core.around import Around
from fedcl.core.channel import Aggregate
from fedcl.core.errors import ExposureError
from fedcl.core.exchange import add_block
from fedcl.core.memories import Memories
from fedcl.core.privacy.distributed import in_ring
from fedcl.core.request import BlockResult, Request


@dataclass
class Sealed(Around):
    """Runs the inner engine, and hands out one total of each exchange.

    It adds blocks in their order, so that the total is that of an engine without a seal, to the
    bit. A total of fewer than `least` replies, or than the request asks for, is not handed out: the
    result says who answered, and has none.

    Attributes:
        least: Fewest clients whose total is handed out.
        bits: Totals are handed out modulo 2**bits; 0 for as they are.
    """

    least: int = 0
    bits: int = 0

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields one result for all clients.

        Raises:
            ExposureError: Single replies are asked for.
        """
        if request.reveal:
            raise ExposureError(
                f"program {request.name!r} asks for single replies, which never reach the server "
                "of a secure sum: use fed.aggregate with an aggregation that needs none"
            )
        results: list[BlockResult] = []
        for result in self.inner.run(request, ids, memories):
            if not request.blank:
                memories.save(result.memories)
            add_block(request, results, result)
        yield self._together(request, results)

    def _together(self, request: Request, results: Sequence[BlockResult]) -> BlockResult:
        uploaded: Counter[str] = Counter()
        for result in results:
            uploaded.update(result.uploaded)
        answered = tuple(id for result in results for id in result.ids)
        total = results[0].total if results else None
        if total is not None and request.blank:
            zeros = {name: torch.zeros_like(value) for name, value in total.total.items()}
            total = Aggregate(zeros, 0.0, 0)
        elif len(answered) < max(self.least, request.least):
            total = None
        elif total is not None and self.bits:
            ring = {name: in_ring(value, self.bits) for name, value in total.total.items()}
            total = replace(total, total=ring)
        return BlockResult(
            ids=answered,
            total=None if total is None else replace(total, metrics={}),
            replies=None,
            memories={},
            uploaded=dict(uploaded),
            steps=sum(result.steps for result in results),
            examples=sum(result.examples for result in results),
            padded=sum(result.padded for result in results),
            failures={id: why for result in results for id, why in result.failures.items()},
            rejected={id: why for result in results for id, why in result.rejected.items()},
            spent={id: spent for result in results for id, spent in result.spent.items()},
        )
