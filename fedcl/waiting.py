"""When a stage begins where data arrive: with enough clients that have new ones, or with time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from fedcl.config import Experiment
from fedcl.core.engine import Engine
from fedcl.core.errors import AbsentError
from fedcl.core.site import Site

_SOON, _LATE = 0.05, 5.0  # seconds between two looks: twice as long each time


def await_data(experiment: Experiment, site: Site, engine: Engine, stage: int) -> None:
    """Waits until a stage may begin, as `stream.arrivals` and `stream.patience` say.

    Args:
        experiment: The experiment; where its data do not arrive, nobody waits.
        site: Where clients run; where their folders are here, they are looked at.
        engine: Asks clients elsewhere, if it can: `ready(stage)` returns those with new data, and
            `waits(why)` tells who looks on.
        stage: The stage that is to begin; clients that have begun with it already count.

    Raises:
        AbsentError: Nobody has new data, and patience is over.
    """
    plan: Any = experiment.stream
    if not plan.elsewhere:
        return
    if not plan.arrivals:
        time.sleep(plan.patience)
        return
    if stage and not plan.borders:
        return
    ready: Callable[[int], Collection[int]] = getattr(engine, "ready", None) or _here(site)
    began, pause = time.monotonic(), _SOON
    while len(found := ready(stage)) < plan.arrivals:
        late = plan.patience and time.monotonic() - began >= plan.patience
        if late and found:
            break
        if late:
            raise AbsentError(
                f"no client has new data for stage {stage} after {plan.patience:g} s: resume the "
                "run when there are some, raise stream.patience, or lower stream.stages"
            )
        _tell(engine, f"for {plan.arrivals} clients with new data ({len(found)} so far)")
        time.sleep(pause)
        pause = min(2 * pause, _LATE)
    _tell(engine, "")


def _tell(engine: Engine, why: str) -> None:
    tell: Callable[[str], None] | None = getattr(engine, "waits", None)
    if tell is not None:
        tell(why)


def _here(site: Site) -> Callable[[int], Collection[int]]:
    """Returns a look at the folders of all clients."""
    population: Any = site.population
    clients = range(population.stream.clients)
    return lambda stage: [id for id in clients if population.ready(id, stage)]
