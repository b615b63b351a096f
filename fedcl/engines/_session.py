"""Ray as this process's session: started, or joined where somebody has started it."""

from __future__ import annotations

import math
import os
import socket
import warnings
from collections.abc import Mapping
from typing import Any

import ray
import torch

from fedcl.core.errors import ConfigError

_PATIENCE = 5.0  # seconds in which a cluster must accept a connection
# Results below this size come with the answer itself; Ray's object store takes twice the time.
_DIRECT = 4 * 2**20


def enter(address: str, processors: int) -> bool:
    """Starts or joins Ray, unless this process has; returns whether `ray.shutdown` must follow.

    Args:
        address: `host:port` of a cluster's head, `auto` for a cluster of this machine; empty starts
            a session of this process's own.
        processors: Processors that a session of its own must have.

    Raises:
        ConfigError: The cluster does not answer, or Ray cannot start.
    """
    if ray.is_initialized():
        return False
    # Workers run at this process's niceness: they are the experiment, not background jobs.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray's server keeps what happened to every task, which grows for as long as a run goes on.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    # Ray's many threads each take a heap of their own, and give little of it back.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    options: dict[str, Any] = {"address": address or "local"}
    if not address:
        options |= {
            "num_cpus": max(processors, os.cpu_count() or 1),
            "_system_config": {"max_direct_call_object_size": _DIRECT},
        }
    try:
        _knock(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Ray tells of defaults to come
            ray.init(
                include_dashboard=False, log_to_driver=False, configure_logging=False, **options
            )
    except (ValueError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"[engine] Ray cannot be started or joined: {error}; check engine.address "
            f"({address!r}), or leave it out"
        ) from error
    return True


def name() -> str:
    """Returns what tells this process's session from any other, or nothing when it has none."""
    return ray.get_runtime_context().get_worker_id() if ray.is_initialized() else ""


def divide(
    workers: int, gpus: float, device: torch.device, there: Mapping[str, float]
) -> tuple[int, float]:
    """Returns the number of workers, and how many GPUs each of them has.

    Args:
        workers: As asked for; 0 means as many as there is room for.
        gpus: As asked for; 0 means none, unless the server has one: then workers divide them.
        device: Where the server computes.
        there: What Ray's session has.

    Raises:
        ConfigError: Some workers would wait for ever.
    """
    processors, devices = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    if device.type != "cpu" and not gpus:
        gpus = 1 / max(1, math.ceil(workers / max(1, devices)))
    room = processors
    if gpus > 1:
        room = min(room, int(devices // gpus))
    elif gpus:
        room = min(room, devices * math.floor(1 / gpus + 1e-9))
    workers = workers or max(1, room)
    if workers > room:
        raise ConfigError(
            f"engine.workers = {workers} with engine.gpus = {gpus:g}, but the Ray session has "
            f"{processors} processors and {devices} GPUs, so some would wait for ever: lower them"
        )
    return workers, gpus


def _knock(address: str) -> None:
    """Raises OSError when nobody listens at an address: Ray itself would try for ever."""
    host, _, port = address.rpartition(":")
    if "/" in host:
        raise ValueError(f"{address!r} is none of a cluster's head, such as 10.0.0.1:6379")
    if port.isdigit():
        socket.create_connection((host, int(port)), _PATIENCE).close()
