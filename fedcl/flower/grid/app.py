"""Runs an unchanged Flower app, server and client half, over a `BlockGrid`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from flwr.app import Context, RecordDict
from flwr.app.user_config import UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedcl.core.errors import ConfigError
from fedcl.core.seeds import seed_of
from fedcl.flower.grid.blocks import BlockGrid
from fedcl.flower.grid.contexts import Contexts
from fedcl.flower.grid.crew import InProcess
from fedcl.flower.grid.node import Facts, plant, untouched


@dataclass(frozen=True)
class Finished:
    """What a run came to.

    Attributes:
        state: The server app's `context.state`.
        answered: Replies that the server app got.
        failed: Those of them that tell of an error.
        seconds: Wall time of the server app.
    """

    state: RecordDict
    answered: int
    failed: int
    seconds: float


def run_app(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    clients: int,
    workers: int = 0,
    run_config: Mapping[str, UserConfigValue] | None = None,
    state: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    gpus: float = 0.0,
    name: str = "",
) -> Finished:
    """Runs an app until its server half returns.

    Args:
        server_app: The server half, such as one with a stock strategy.
        client_app: The client half.
        clients: Number of nodes; the app finds its own in `context.node_config`.
        workers: Processes on Ray that run the client half; 0 runs it in this process. The results
            are the same, to the bit.
        run_config: What both halves find in `context.run_config`.
        state: Folder for the contexts of all nodes; None keeps them in memory.
        resume: Whether the folder may hold those of an earlier sitting, to go on with.
        seed: Seed of the global random generators, which each message finds in a state of its own.
        gpus: Share of a GPU that each worker has.
        name: Name of the app: contexts belong to it.

    Raises:
        ConfigError: An argument cannot work, or the app waits for more nodes than there are.
        ResumeError: The folder's contexts belong to another run.
    """
    if clients < 1:
        raise ConfigError(f"clients must be at least 1, not {clients}")
    if workers < 0:
        raise ConfigError(f"workers must be at least 0, not {workers}: 0 means in this process")
    if workers and find_spec("ray") is None:
        raise ConfigError(
            "workers need Ray, which is not installed: pip install 'fedcl[sim]', or take 0 workers"
        )
    if resume and state is None:
        raise ConfigError("there is nothing to resume without a folder of contexts: name it")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    config = dict(run_config or {})
    with closing(Contexts(state, resume, app=name, clients=clients, seed=seed)) as contexts:
        facts = Facts(contexts.run, clients, dict(config), seed)
        server = Context(contexts.run, SUPERLINK_NODE_ID, {}, contexts.server_state(), config)
        contexts.server = server
        with _identity(contexts.run), untouched():
            torch.set_num_threads(1)  # one and two threads give different bits
            with closing(_grid(client_app, facts, contexts, workers, gpus)) as grid:
                plant(seed_of(seed, "server"))  # only now: Ray draws when it starts
                started = time.perf_counter()
                server_app(grid=grid, context=server)
        contexts.commit()
        seconds = time.perf_counter() - started
        return Finished(server.state, grid.answered, grid.failed, seconds)


def _grid(app: ClientApp, facts: Facts, contexts: Contexts, workers: int, gpus: float) -> BlockGrid:
    """Returns a grid with its crew."""
    grid = BlockGrid(Run.create_empty(facts.run), facts.clients, contexts)
    if workers:
        from fedcl.flower.grid.workers import Workers

        grid.crew = Workers(app, facts, grid, workers, gpus)
    else:
        grid.crew = InProcess(app, facts, grid)
    return grid


@contextmanager
def _identity(run: int) -> Iterator[None]:
    """Lets this process make messages in the name of a run's server."""
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id, TaskIdentity.run_id = 1, run
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before
