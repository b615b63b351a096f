"""Clients as nodes of Flower, through its ServerApp, Grid and ClientApp: simulated, or devices.

Each client answers a message of its own: a node looks program and config up by name and keeps its
memory to itself. Replies are checked and folded here as by every other engine, in the order of ids
within fold blocks, so results are equal to `serial`'s to the bit. By itself it starts Flower's own
simulation, as the slowest engine: it shows that a method runs where only messages go between server
and clients. Inside Flower's ServerApp (`fedcl.flower.server_app`) it asks whatever nodes are
connected there.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from fedcl.core.errors import ConfigError
from fedcl.core.memories import Memories
from fedcl.core.request import BlockResult, Request
from fedcl.core.site import Site
from fedcl.core.survey import Examination, Finding
from fedcl.core.vocabulary import vocabulary

__all__ = ["Flower"]


@dataclass
class Flower:
    """One node a client, in Flower's simulation or in a live federation.

    Attributes:
        workers: Number of processes that run simulated nodes; 0 means one a core.
        gpus: Share of a GPU that each of them has.
        timeout: Seconds after which a client's answer counts as missing; 0 waits for ever in a
            simulation, and for an hour in a live federation. With any other value a result depends
            on how fast the machines are.
        grace: Seconds that a live federation waits for clients who are not connected: for all
            members before the first round of a sitting, and for one that has left.
        patience: Seconds that it waits for as many as a round needs, before the run ends.
        limit: Most bytes that a client's answer may have: a larger one is refused unread.
    """

    workers: int = 0
    gpus: float = 0.0
    timeout: float = 0.0
    grace: float = 60.0
    patience: float = 600.0
    limit: int = 1_000_000_000
    presence: Any = field(default=None, init=False, repr=False)
    _simulation: Any = field(default=None, init=False, repr=False)
    _own: bool = field(default=False, init=False, repr=False)
    _link: Any = field(default=None, init=False, repr=False)
    _memory: Path = field(default=Path(), init=False, repr=False)
    _temporary: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("workers", "gpus", "timeout", "grace", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.limit < 1:
            raise ValueError(f"limit must be at least 1 byte, not {self.limit}")

    @property
    def live(self) -> bool:
        """Whether clients are devices: a ServerApp of a deployment has handed its Grid over."""
        own = _flower("server.handed").handed()
        return own is not None and bool(own.live)

    def open(self, site: Site, launch: Mapping[str, Any]) -> None:
        """Takes the Grid that was handed over, or starts Flower's simulation, or joins a kept one.

        Raises:
            ConfigError: Ray is not installed, or simulated clients have no GPU while the server has
                one.
        """
        own = _flower("server.handed").handed()
        if own is not None:
            self._link, self.presence = _flower("server.deployment").connect(
                own,
                site,
                launch,
                timeout=self.timeout,
                grace=self.grace,
                patience=self.patience,
                limit=self.limit,
            )
            return
        if find_spec("ray") is None:
            raise ConfigError(
                '[engine] name = "flower" needs Ray, which is not installed: '
                'pip install "fedcl[sim]"'
            )
        if site.device.type != "cpu" and not self.gpus:
            raise ConfigError(
                "[engine] gpus = 0 leaves clients without the GPU that the server has: set "
                'engine.gpus to the share of a process, such as 1.0, or training.device = "cpu"'
            )
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
        try:
            self._connect(site, launch)
        except BaseException:
            self.close()
            raise

    def _connect(self, site: Site, launch: Mapping[str, Any]) -> None:
        if launch["folder"] is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fedcl-memory-")
            self._memory = Path(self._temporary.name)
        else:
            self._memory = Path(launch["folder"]) / "checkpoint" / "clients"
        simulation = _flower("simulation.session")
        self._simulation, self._own = simulation.obtain(launch["clients"], self.workers, self.gpus)
        experiment = uuid4().hex
        _flower("simulation.nodes").enter(
            self._simulation.home, experiment, launch["resolved"], self._memory
        )
        self._link = _flower("server.link").Link(
            post=self._simulation.post(),
            seats=_flower("server.seats").Fixed(self._simulation.nodes),
            site=site,
            words=vocabulary(launch["method_object"]),
            experiment=experiment,
            config=_flower("protocol.agreement").fingerprints(launch["resolved"]),
            timeout=self.timeout,
            limit=self.limit,
        )

    def run(
        self, request: Request, ids: Sequence[int], memories: Memories
    ) -> Iterator[BlockResult]:
        """Yields the results of the fold blocks of `ids`, in their order."""
        if self._simulation is not None:
            memories.recall = self._recall
        results: Iterator[BlockResult] = self._link.run(request, ids, memories)
        return results

    def present(self, ids: Sequence[int]) -> Sequence[int]:
        """Returns those of some clients who are there now: in a simulation all."""
        found: Sequence[int] = ids if self.presence is None else self.presence.present(ids)
        return found

    def ready(self, stage: int) -> Sequence[int]:
        """Returns which clients say that they have new data for a stage, where data arrive."""
        ids = self.present(range(self._link.site.population.stream.clients))
        found: Sequence[int] = _flower("protocol.arrivals").ask(self._link, ids, stage)
        return found

    def waits(self, why: str) -> None:
        """Tells who looks on why nothing happens; nothing when something does."""
        self._link.status.tell(waiting=why)

    def evaluate(
        self, examination: Examination, ids: Sequence[int], memories: Memories
    ) -> tuple[Mapping[int, Sequence[Finding]], Mapping[int, str]]:
        """Returns what clients find on their own held-out data, and what is wrong with answers."""
        told: tuple[Mapping[int, Sequence[Finding]], Mapping[int, str]]
        told = _flower("protocol.evaluation").ask(self._link, examination, ids, memories)
        return told

    def _recall(self, id: int, kept: Any) -> Any:
        return _flower("simulation.nodes").recall(self._memory, id, kept, self._link.words)

    def close(self) -> None:
        """Ends what `open` began; a kept simulation goes on."""
        if self._own:
            self._simulation.stop()
        elif self._simulation is not None and self._link is not None:
            self._link.post.drain()
            _flower("simulation.nodes").leave(self._simulation.home, self._link.experiment)
        elif self._link is not None:
            self._link.post.close()
            self._link.seats.close()
        if self._temporary is not None:
            self._temporary.cleanup()
        self._simulation, self._own, self._link, self._temporary = None, False, None, None
        self.presence = None


def _flower(name: str) -> Any:
    """Returns a module of the Flower app, which stands above the engines and takes long to load."""
    return importlib.import_module(f"fedcl.flower.{name}")
