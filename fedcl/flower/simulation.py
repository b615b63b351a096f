"""Flower's own simulation in a thread of this process: nodes, messages, link state, actors on Ray.

The steps are those of `flwr.simulation.run_simulation` (1.41). They are taken one by one, because
that function takes all of Ray for itself and ends it for everybody: here a simulation has as many
workers as it is asked for, lives beside other users of Ray, and ends what it started.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any, cast

import ray
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import (
    PARTITION_ID_KEY,
    RUN_ID_NUM_BYTES,
    SUPERLINK_NODE_ID,
    TASK_ID_NUM_BYTES,
)
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend.backend import Backend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.server.superlink.linkstate.utils import generate_rand_int_from_bytes
from flwr.serverapp import Grid, ServerApp
from flwr.simulation.ray_transport.ray_actor import ClientAppActor
from flwr.simulation.run_simulation import run_serverapp_th
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from fedcl.core.errors import FedclError
from fedcl.flower.client_app import make_app
from fedcl.flower.server import Post, introduce


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
        self._started_ray = _start_ray(workers)
        self._session = ray.get_runtime_context().get_job_id()
        self._folder = tempfile.TemporaryDirectory(prefix="fedcl-flower-")
        self.home = Path(self._folder.name)
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
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
        """Ends the nodes, and Ray when this simulation started it."""
        self._stopping.set()
        self._thread.join()
        if self._started_ray and self._ray_is_the_same():
            ray.shutdown()
        self._folder.cleanup()
        self._logger.setLevel(self._level)

    def _ray_is_the_same(self) -> bool:
        return ray.is_initialized() and ray.get_runtime_context().get_job_id() == self._session

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
            _simulate(server, make_app(self.home), self.size, self._stopping, self._backend)
        except BaseException as error:
            self._failure = error

    def _backend(self) -> Backend:
        return _Actors(self.workers, self.gpus)


def _simulate(
    server: ServerApp,
    client: ClientApp,
    size: int,
    stop: threading.Event,
    backend: Callable[[], Backend],
) -> None:
    """Runs Flower's simulation until the server app returns or `stop` is set."""
    run = Run.create_empty(generate_rand_int_from_bytes(RUN_ID_NUM_BYTES))
    run.primary_task_id = generate_rand_int_from_bytes(TASK_ID_NUM_BYTES)
    run.federation_id = NOOP_FEDERATION_ID
    TaskIdentity.task_id, TaskIdentity.run_id = 1, run.run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    state = cast(InMemoryLinkState, states.state())
    state.run_ids[run.run_id] = RunRecord(run=run)
    state.task_store[run.primary_task_id] = Task(task_id=run.primary_task_id, run_id=run.run_id)
    grid = _OwnGrid(state_factory=states)
    grid.set_run(run)
    nodes = vce_api._register_nodes(size, states)
    thread = run_serverapp_th(
        server_app_attr=None,
        server_app=server,
        server_app_context=Context(
            run_id=run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={}
        ),
        grid=grid,
        app_dir="",
        f_stop=stop,
        exception_queue=Queue(),
        enable_tf_gpu_growth=False,
        ctx_queue=Queue(),
    )
    try:
        vce_api.run_api(
            lambda: client,
            backend,
            nodes,
            states,
            vce_api._register_node_info_stores(nodes, run),
            stop,
            VceMetrics(),
        )
    finally:
        stop.set()
        thread.join()


class _OwnGrid(InMemoryGrid):
    """Flower's grid, for one of several simulations: new messages belong to the last one's run."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages in the name of this simulation's run."""
        mine = list(messages)
        for message in mine:
            message.metadata.__dict__["_run_id"] = self.run.run_id
        return super().push_messages(mine)


class _Actors(Backend):
    """Flower's own actors, as many as asked for; they take none of the CPUs that Ray counts.

    Ray counts CPUs to share them out. Who asks for workers has decided that already, and a Ray
    engine may want the same CPUs at another moment.
    """

    def __init__(self, workers: int, gpus: float) -> None:
        """Remembers how many actors there shall be."""
        super().__init__({})
        self._workers, self._gpus = workers, gpus
        self._app: Any = None
        self._idle: Queue[Any] = Queue()

    @property
    def num_workers(self) -> int:
        """Number of messages that are answered at the same time."""
        return self._workers

    def is_worker_idle(self) -> bool:
        """Whether an actor waits for work."""
        return not self._idle.empty()

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        """Starts the actors."""
        self._app = ray.put(app_fn)
        for _ in range(self._workers):
            self._idle.put(self._actor())

    def _actor(self) -> Any:
        actor: Any = ClientAppActor  # Ray's decorator is not typed
        return actor.options(num_cpus=0, num_gpus=self._gpus).remote()

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Lets an actor run the client app for one node."""
        actor = self._idle.get()
        try:
            id = str(context.node_config[PARTITION_ID_KEY])
            _, answer, changed = ray.get(actor.run.remote(self._app, message, id, context))
        except ray.exceptions.RayActorError:
            actor = self._actor()  # it died, perhaps of too little memory
            raise
        finally:
            self._idle.put(actor)
        return answer, changed

    def terminate(self) -> None:
        """Ends the actors."""
        while ray.is_initialized() and not self._idle.empty():
            ray.kill(self._idle.get())


def _start_ray(workers: int) -> bool:
    """Starts Ray unless this process has it; returns whether it did."""
    if ray.is_initialized():
        return False
    # Actors run at the niceness of this process; they compute the experiment, no background job.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        num_cpus=max(workers, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    return True


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
