"""How the clients of an exchange run: what a file in `engines/` offers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site


class Engine(Protocol):
    """Runs the clients of an exchange, from the beginning of a run to its end."""

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Gets ready (workers, data); `launch` holds the resolved config, for clients elsewhere."""
        ...

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the results of the fold blocks of `ids`, in their order."""
        ...

    def close(self) -> None:
        """Ends what `open` began."""
        ...
