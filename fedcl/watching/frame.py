"""What a watcher sees of a run at one moment: a pure function of what its folder tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcl.watching.learnt import TaskNow, learnt
from fedcl.watching.sources import Told


@dataclass(frozen=True)
class Frame:
    """A run at one moment; None stands for what nobody tells.

    Attributes:
        folder: The run's folder.
        title: Method, stream and seed.
        finished: Whether the run has ended well.
        stage: Present stage, counted from 1; the last one when finished.
        stages: Number of stages.
        round: Finished rounds of the present stage.
        rounds: Rounds of a stage.
        done: Finished rounds of the whole run.
        total: Rounds of the whole run.
        connected: Clients that are connected; None in a simulation, where all always are.
        clients: Registered clients.
        asked: Clients asked in the present exchange.
        answered: Those that have answered.
        waiting: What the server waits for.
        tasks: The tasks that were met and evaluated.
        accuracy: Mean over them.
        forgetting: As `fedcl.metrics.forgetting`, of the stages so far; in a stage its last
            evaluation stands for its end.
        evaluated: Finished rounds of the run at the last evaluation.
        by: Who evaluates, `server` or `clients`.
        up: Bytes from clients.
        down: Bytes to clients.
        epsilon: Privacy spent.
        rejected: Messages that were refused.
        skipped: Rounds that were skipped or repeated.
        failures: Why clients of the last round did not answer, by client.
        seconds: How long the last round's exchanges took.
        silent: Seconds since the run wrote anything.
        trouble: What could not be read.
    """

    folder: Path
    title: str
    finished: bool
    stage: int | None
    stages: int | None
    round: int | None
    rounds: int | None
    done: int
    total: int | None
    connected: tuple[int, ...] | None
    clients: int | None
    asked: int | None
    answered: int | None
    waiting: str
    tasks: tuple[TaskNow, ...]
    accuracy: float | None
    forgetting: float | None
    evaluated: int | None
    by: str
    up: int
    down: int
    epsilon: float | None
    rejected: int
    skipped: int
    failures: Mapping[str, str]
    seconds: float | None
    silent: float | None
    trouble: str


def frame_of(told: Told, now: float) -> Frame:
    """Returns what there is to see.

    Args:
        told: What the folder tells.
        now: Seconds since the epoch.
    """
    live, summary, meta = told.live or {}, told.summary or {}, told.meta
    finished = told.summary is not None
    rounds = live.get("rounds") or _get(told.config, "training", "rounds")
    stages = live.get("stages") or _stages(told.config, summary)
    done = int(summary.get("rounds") or meta.get("rounds") or 0)
    stage, round = _place(live, meta, finished, stages, rounds)
    now_known = learnt(told.evaluations, _shared(told.config))
    events = summary.get("skipped_or_repeated_rounds") or meta.get("events") or ()
    rejected = summary.get("rejected_replies") or live.get("rejected_total")
    connected = live.get("connected") if live and not finished else None
    return Frame(
        folder=told.folder,
        title=_title(told.config),
        finished=finished,
        stage=stage,
        stages=stages,
        round=round,
        rounds=rounds,
        done=max(done, int(live.get("done") or 0)),
        total=stages * rounds if stages and rounds else None,
        connected=None if connected is None else tuple(connected),
        clients=_get(told.config, "stream", "clients"),
        asked=live.get("asked"),
        answered=live.get("answered"),
        waiting="" if finished else str(live.get("waiting") or ""),
        tasks=now_known.tasks,
        accuracy=now_known.accuracy,
        forgetting=now_known.forgetting,
        evaluated=now_known.evaluated,
        by=_get(told.config, "evaluation", "where") or "server",
        up=max(told.traffic.get("up", 0), int(live.get("bytes_up") or 0)),
        down=max(told.traffic.get("down", 0), int(live.get("bytes_down") or 0)),
        epsilon=_epsilon(told),
        rejected=int(rejected if rejected is not None else len(meta.get("rejected") or ())),
        skipped=len(events),
        failures=dict(live.get("failures") or {}),
        seconds=told.seconds,
        silent=None if told.heard is None else max(0.0, now - told.heard),
        trouble=told.trouble,
    )


def _get(config: Mapping[str, Any], table: str, key: str) -> Any:
    found = config.get(table)
    return found.get(key) if isinstance(found, Mapping) else None


def _title(config: Mapping[str, Any]) -> str:
    method, stream = _get(config, "method", "name"), _get(config, "stream", "name")
    return f"{method} on {stream}, seed {config.get('seed')}" if method else "a run"


def _shared(config: Mapping[str, Any]) -> bool:
    """Returns whether all clients meet the same task at the same stage."""
    order = _get(config, "stream", "order")
    return not isinstance(order, Mapping) or order.get("name") == "shared"


def _stages(config: Mapping[str, Any], summary: Mapping[str, Any]) -> int | None:
    """Returns the number of stages, where the folder tells it: an order may need more than tasks.

    It is known of a stream whose clients share their order, and of a finished run.
    """
    rounds, done = _get(config, "training", "rounds"), summary.get("rounds")
    if rounds and done:
        return int(done) // int(rounds)
    stages = _get(config, "stream", "stages") or _get(config, "stream", "tasks")
    return int(stages) if stages and _shared(config) else None


def _place(
    live: Mapping[str, Any],
    meta: Mapping[str, Any],
    finished: bool,
    stages: int | None,
    rounds: int | None,
) -> tuple[int | None, int | None]:
    """Returns the present stage, from 1, and its finished rounds."""
    if finished:
        return stages, rounds
    # A server that has just been resumed has not told of any round yet.
    if live.get("total") and live["done"] >= meta.get("rounds", 0):
        return live["stage"] + 1, live["round"]
    if not meta:
        return None, None
    if stages and meta["stage"] >= stages:  # only the summary is missing
        return stages, rounds
    return meta["stage"] + 1, meta["round"]


def _epsilon(told: Told) -> float | None:
    """Returns what is spent: as the server says now, else as of the last stage's end."""
    if told.summary is not None:
        return _number(told.summary.get("epsilon"))
    if told.live is not None and told.live.get("epsilon") is not None:
        return _number(told.live["epsilon"])
    # Of several units the headline is the first: the client's, as in the summary.
    rows = [row for row in told.privacy if row.get("channel") == "all"]
    return _number(rows[0].get("epsilon")) if rows else None


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None
