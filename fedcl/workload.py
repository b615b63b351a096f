"""How much a run will compute, from its config and its stream, before anything is trained."""

from __future__ import annotations

from typing import Any

from fedcl.config import Experiment
from fedcl.core.cost import forward_flops
from fedcl.core.data.stream import Stream
from fedcl.core.site import Site


def visits(experiment: Experiment, stream: Stream) -> float:
    """Returns the expected number of examples that local training passes in the whole run.

    Every client of a cohort is taken to hold an equal share of its task and no memory.
    """
    training = experiment.training
    local: dict[str, Any] = experiment.resolved["training"]["local"]
    total = 0.0
    for stage in range(stream.stages):
        tasks = stream.present(stage)
        share = sum(len(stream.tasks[task].train) for task in tasks) / len(tasks) / stream.clients
        own = share * local.get("epochs", 1)
        if local.get("steps"):
            own = min(own, local["steps"] * local.get("batch_size", 1))
        members = len(stream.members(stage))
        total += training.rounds * min(training.cohort or members, members) * own
    return total


def training_flops(experiment: Experiment, site: Site, stream: Stream) -> float:
    """Returns the floating-point operations of all local training, about."""
    # The gradients of inputs and weights cost as much as the outputs.
    each = 3 * forward_flops(site.model, stream.dataset.shape)
    return each * visits(experiment, stream)
