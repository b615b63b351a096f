"""A block of clients as one batched computation: fast for small models and batches.

Uneven clients are padded and masked; dropout masks come from outside. Programs other than local
training run in a loop. Measured on a CPU, a computation of 8 to 32 clients is best: larger ones
leave the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedcl.core.batch import run_batched
from fedcl.core.block import Batching, Path
from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site

__all__ = ["Vectorized"]


@dataclass
class Vectorized:
    """Batched local training in this process.

    Attributes:
        block: Clients of one batched computation; a fold block is cut into them. 0 means 16, or 8
            where the model has convolutions.
        path: How one computation trains several clients; `auto` takes what the model allows.
        tune: Measure, before the run begins, which path and block are fastest here, and write the
            choice into the run's config.
    """

    block: int = 0
    path: Path = "auto"
    tune: bool = False
    _site: Site | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._batching = Batching(self.path, self.block)

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Remembers where clients run."""
        self._site = site

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the results of the fold blocks of `ids`, in their order."""
        assert self._site is not None
        for block in self._site.blocks(ids):
            yield run_batched(self._site, request, block, memories.load(block), self._batching)

    def close(self) -> None:
        """Has nothing to end."""
        self._site = None
