"""An engine around another one, which runs the clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedcl.core.engine import Engine
from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site


@dataclass
class Around(ABC):
    """Does something to what the inner engine answers.

    Attributes:
        inner: Runs the clients.
    """

    inner: Engine

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Opens the inner engine."""
        self.inner.open(site, launch)

    @property
    def reason(self) -> str:
        """Why this engine, where the inner one chose."""
        return getattr(self.inner, "reason", "")

    @abstractmethod
    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields results of the clients; see `fedcl.core.engine.Engine`."""

    def close(self) -> None:
        """Closes the inner engine."""
        self.inner.close()
