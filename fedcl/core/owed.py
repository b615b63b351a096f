"""What answers cost their clients' records, as a server knows it before it asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedcl.core.client import Program, Spent
from fedcl.core.coverage import Coverage, covered
from fedcl.core.data.stream import Stream
from fedcl.core.errors import ConfigError
from fedcl.core.local import Local, own_data
from fedcl.core.site import Site

# Returns what clients that are asked to run a program at a stage spend with their answers at most.
Owed = Callable[[Coverage, Program[Any] | Local, int, Sequence[int]], Mapping[int, Spent]]


def owed(
    site: Site,
    coverage: Coverage,
    program: Program[Any] | Local,
    stage: int,
    ids: Sequence[int],
) -> dict[int, Spent]:
    """Returns what clients spend of their records at most when they answer.

    It is what their answers will say where a program looks at the client's present examples alone.
    Of remembered and made-up examples nobody but the client knows how many there are: a record is
    in a step as often as without any, and there are as many steps as with all that there may be.

    Args:
        site: Knows how many examples clients have, and how they train.
        coverage: What the method declares.
        program: Local training, or a statistic.
        stage: The stage.
        ids: Clients with data at this stage.

    Raises:
        ConfigError: The trainer does not tell what it spends.
    """
    assert site.promise is not None
    if not isinstance(program, Local):
        return dict.fromkeys(ids, Spent(site.promise.noise_multiplier, 1.0, 1))
    spends = getattr(site.trainer, "spends", None)
    if spends is None:
        raise ConfigError(
            f"trainer {type(site.trainer).__name__} does not tell what an answer costs before it "
            "comes, and an answer of a device may come too late: give it `spends(local, least, "
            "most)`, which returns a fedcl.core.client.Spent for the examples of a client"
        )
    found: dict[int, Spent] = {}
    for id in ids:
        least = most = _rows(site.population.stream_of(id, stage), id, stage)
        if not knows_rows(coverage, program):
            most += _more(site.population.stream_of(id, stage), coverage, id, stage, least)
        found[id] = spends(program, least, most)
    return covered(coverage, found)


def knows_rows(coverage: Coverage, program: Program[Any] | Local) -> bool:
    """Returns whether a server knows on how many examples a client runs a program."""
    if not isinstance(program, Local) or program.data is own_data:
        return True
    return coverage.kind == "own" and not coverage.drawn


def _rows(stream: Stream, id: int, stage: int) -> int:
    return len(stream.rows_at(id, stage)) if stream.task_at(id, stage) is not None else 0


def _more(stream: Stream, coverage: Coverage, id: int, stage: int, own: int) -> int:
    """Returns how many further examples a client may train on at most."""
    kept = 0 if coverage.kind == "own" else sum(_rows(stream, id, s) for s in range(stage))
    return kept + (max(1, math.ceil(coverage.drawn * own)) if coverage.drawn else 0)
