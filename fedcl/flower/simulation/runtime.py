"""The parts of Flower's simulation (flwr 1.41): link state and nodes, grid, actors on Ray.

The steps are those of `flwr.simulation.run_simulation`. They are taken one by one, because that
function takes all of Ray for itself and ends it for everybody: here a simulation has as many
workers as it is asked for, lives beside other users of Ray, and ends what it started.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import Queue
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
from flwr.serverapp import ServerApp
from flwr.simulation.ray_transport.ray_actor import ClientAppActor
from flwr.simulation.run_simulation import run_serverapp_th
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid


def simulate(
    server: ServerApp,
    client: ClientApp,
    size: int,
    stop: threading.Event,
    backend: Backend,
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
            lambda: backend,
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


class Actors(Backend):
    """Flower's own actors, as many as asked for; they take none of the CPUs that Ray counts.

    Ray counts CPUs to share them out. Who asks for workers has decided that already, and a Ray
    engine may want the same CPUs at another moment.
    """

    def __init__(self, workers: int, gpus: float) -> None:
        """Remembers how many actors there shall be."""
        super().__init__({})
        self._workers, self._gpus = workers, gpus
        self._app: Any = None
        self._actors: list[Any] = []
        self._idle: Queue[Any] = Queue()
        self._ended = False

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
            self._idle.put(self._start())

    def _start(self) -> Any:
        kind: Any = ClientAppActor  # Ray's decorator is not typed
        actor = kind.options(num_cpus=0, num_gpus=self._gpus).remote()
        self._actors.append(actor)
        return actor

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Lets an actor run the client app for one node."""
        actor = self._idle.get()
        try:
            id = str(context.node_config[PARTITION_ID_KEY])
            _, answer, changed = ray.get(actor.run.remote(self._app, message, id, context))
        except ray.exceptions.RayActorError:
            if not self._ended:
                actor = self._start()  # the old one died, perhaps of too little memory
            raise
        finally:
            self._idle.put(actor)
        return answer, changed

    def terminate(self) -> None:
        """Ends the actors, busy or not."""
        self._ended = True
        while self._actors:
            actor = self._actors.pop()
            if ray.is_initialized():
                ray.kill(actor)
