"""One client after the other in this process: the reference for every other engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site

__all__ = ["Serial"]


@dataclass
class Serial:
    """A plain loop over the clients."""

    _site: Site | None = field(default=None, init=False, repr=False)

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Remembers where clients run."""
        self._site = site

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the results of the fold blocks of `ids`, in their order."""
        assert self._site is not None
        for block in self._site.blocks(ids):
            yield self._site.loop(request, block, memories.load(block))

    def close(self) -> None:
        """Has nothing to end."""
        self._site = None
