"""Where a round's time goes: a stopwatch on the functions that fedcl's rounds are made of."""

from __future__ import annotations

import functools
import importlib
import sqlite3
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.clock import WARM, Clock, Enough
from bench.lanes import run_until_enough, write_config

# The functions of each part; time in a function that it calls counts for that one's part alone.
SEAMS: Mapping[str, tuple[str, ...]] = {
    "train": (
        "fedcl.trainers.sgd:Sgd.block",
        "fedcl.trainers.sgd:LocalSgd.__call__",
        # The weight gradients of all clients in one product, which a plain loop takes in training.
        "fedcl.core.trained:LowRank.sums",
    ),
    "copy": ("fedcl.core.site:Site.block", "fedcl.core.site:Site.clients"),
    "fold": (
        "fedcl.core.site:Site.gather",
        "fedcl.core.batch:_fold",
        "fedcl.core.exchange:add_block",
        "fedcl.core.federation:aggregate",
    ),
    "channel": ("fedcl.core.site:Site.send", "fedcl.core.batch:_weigh"),
    "door": ("fedcl.core.federation:Federation.aggregate",),
    "record": ("fedcl.journal:Journal.finish_round",),
    "commit": ("fedcl.journal:Journal.commit",),
}
PARTS = (*SEAMS, "loop")  # the loop is what is left: sampling, the method's arithmetic, watching


@dataclass
class Stopwatch:
    """Exclusive seconds of each part, and the whole duration of each call."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _inner: list[float] = field(default_factory=lambda: [0.0])

    def install(self) -> None:
        """Puts itself around every function of `SEAMS`, for the life of this process.

        Raises:
            AttributeError: A function is not there any more.
        """
        for part, places in SEAMS.items():
            for place in places:
                module, _, path = place.partition(":")
                owner: Any = importlib.import_module(module)
                *classes, name = path.split(".")
                for step in classes:
                    owner = getattr(owner, step)
                if not callable(getattr(owner, name, None)):
                    raise AttributeError(
                        f"{place} is gone: name what does its work now in bench/parts.py"
                    )
                setattr(owner, name, self._around(part, getattr(owner, name)))

    def reset(self) -> None:
        """Begins at 0."""
        self.seconds.clear()
        self.calls.clear()

    def _around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                self.seconds[part] += took - self._inner.pop()
                self._inner[-1] += took
                self.calls[part].append(took)

        return timed


def parts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Measures the parts of a round of an engine in this process, in seconds."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(spec, Path(folder))
        watch.install()
        clock = Clock(spec["seconds"])

        def tick(now: object) -> None:
            if clock.tick():
                raise Enough
            if len(clock.wall) == WARM + 1:
                watch.reset()

        run_until_enough(config, Path(folder) / "run", tick)
    result = clock.result(spec["cohort"])
    found = {part: watch.seconds[part] / result["rounds"] for part in SEAMS}
    found["loop"] = result["round_seconds"] - sum(found.values())
    return {**result, "parts": found}


# FOT's Permuted-MNIST network with a basis of each layer; a small model without one.
_STATES: Mapping[str, Mapping[str, Any]] = {
    "mlp": {"training.rounds": 12},
    "mlp_dropout": {"training.rounds": 12, "stream.tasks": 2, "method.name": "fot"},
}


def commit(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Measures one commit of a round in the last stage, and the size of what it writes."""
    import fedcl

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        changes = {"checkpoint.seconds": 0.0, **_STATES[spec["model"]]}
        config = write_config(spec, Path(folder), changes)
        watch.install()
        fedcl.run(fedcl.load_config(config), Path(folder) / "run")
        file = Path(folder) / "run" / "checkpoint" / "state.sqlite"
        with closing(sqlite3.connect(file)) as database:
            (size,) = database.execute("SELECT length(data) FROM state").fetchone()
    # The last one, of the stage's end, writes tables for people as well.
    rounds = watch.calls["commit"][-10:-1]
    return {"commit_ms": 1000 * statistics.median(rounds), "state_mb": size / 1e6}
