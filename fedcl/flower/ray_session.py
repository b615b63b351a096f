"""Ray as this process's session: started when nobody has, joined when somebody has."""

from __future__ import annotations

import os
import warnings

import ray


def start_ray(workers: int) -> bool:
    """Starts Ray unless this process has it; returns whether it did."""
    if ray.is_initialized():
        return False
    # Actors run at the niceness of this process; they compute the experiment, no background job.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Ray tells of defaults to come
        ray.init(
            num_cpus=max(workers, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )
    return True
