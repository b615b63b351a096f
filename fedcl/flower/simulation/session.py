"""Flower's own simulation in a thread of this process, for one experiment or for several."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue

import ray
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedcl.core.errors import FedclError
from fedcl.flower.ray_session import start_ray
from fedcl.flower.server.seats import introduce
from fedcl.flower.simulation.nodes import simulated_app
from fedcl.flower.simulation.runtime import Actors, simulate
from fedcl.flower.transport.post import Post


class Simulation:
    """A running simulation.

    Attributes:
        size: Number of nodes.
        workers: Number of actors that run nodes.
        gpus: Share of a GPU that an actor has.
        home: Folder where the nodes look for their configs.
        nodes: Flower's node of each client.
    """

    def __init__(self, size: int, workers: int, gpus: float) -> None:
        """Starts the simulation; `stop` must follow."""
        self.size, self.workers, self.gpus = size, workers, gpus
        self._logger = logging.getLogger("flwr")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)  # Flower tells of every message
        self._started_ray = start_ray(workers)
        self._session = ray.get_runtime_context().get_node_id()
        self._folder = tempfile.TemporaryDirectory(prefix="fedcl-flower-")
        self.home = Path(self._folder.name)
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._actors = Actors(workers, gpus)
        self._grids: Queue[Grid] = Queue()
        self._thread = threading.Thread(target=self._run, name="fedcl-flower", daemon=True)
        self._thread.start()
        try:
            self._grid = self._handed()
            self.nodes = introduce(self.post())
        except BaseException:
            self.stop()
            raise

    @property
    def alive(self) -> bool:
        """Whether nodes can answer: nobody has ended the thread, or Ray."""
        return self._thread.is_alive() and self._ray_is_the_same()

    def post(self) -> Post:
        """Returns a way to send messages."""
        return Post(self._grid, self._check)

    def stop(self) -> None:
        """Ends the nodes, whatever they are doing, and Ray when this simulation started it."""
        self._stopping.set()
        self._logger.setLevel(logging.CRITICAL)  # that nodes are cut off now is no news
        self._actors.terminate()
        self._thread.join()
        if self._started_ray and self._ray_is_the_same():
            ray.shutdown()
        self._folder.cleanup()
        self._logger.setLevel(self._level)

    def _ray_is_the_same(self) -> bool:
        return ray.is_initialized() and ray.get_runtime_context().get_node_id() == self._session

    def _handed(self) -> Grid:
        """Returns the grid that the server app hands over."""
        while True:
            try:
                return self._grids.get(timeout=0.2)
            except Empty:
                self._check()

    def _check(self) -> None:
        if not self._thread.is_alive() or self._failure is not None:
            raise FedclError(
                f"Flower's simulation has ended: {self._failure or 'its thread is gone'}"
            ) from self._failure
        if not self._ray_is_the_same():
            raise FedclError("Flower's simulation has ended: Ray was shut down under it")

    def _run(self) -> None:
        """Runs until told to stop: the body of the thread."""
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            self._grids.put(grid)
            self._stopping.wait()

        try:
            simulate(server, simulated_app(self.home), self.size, self._stopping, self._actors)
        except BaseException as error:
            self._failure = error


_kept: Simulation | None = None


@contextmanager
def keep(size: int, workers: int = 0, gpus: float = 0.0) -> Iterator[None]:
    """Keeps one simulation for all experiments inside: starting one takes longer than a small run.

    Args:
        size: Number of nodes: at least the clients of every experiment.
        workers: Number of actors; 0 means one a core.
        gpus: Share of a GPU that an actor has.
    """
    global _kept
    if _kept is not None:
        raise FedclError("a simulation is kept already: leave that context first")
    _kept = Simulation(size, workers or os.cpu_count() or 1, gpus)
    try:
        yield
    finally:
        _kept.stop()
        _kept = None


def obtain(size: int, workers: int = 0, gpus: float = 0.0) -> tuple[Simulation, bool]:
    """Returns a simulation with at least `size` nodes, and whether it was started for the caller.

    Args:
        size: Number of clients.
        workers: Number of actors; 0 means one a core, or what the kept simulation has.
        gpus: Share of a GPU that an actor has.
    """
    global _kept
    if _kept is not None and _kept.size >= size and workers in (0, _kept.workers):
        if not _kept.alive:
            _kept.stop()
            _kept = Simulation(_kept.size, _kept.workers, _kept.gpus)
        if _kept.gpus == gpus:
            return _kept, False
    return Simulation(size, workers or os.cpu_count() or 1, gpus), True
