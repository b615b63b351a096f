"""What a run says of the privacy of single records, in its summary and by channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedcl.core.accounting.recordledger import RecordEvent, RecordLedger
from fedcl.core.privacy.examples import ExampleMechanism
from fedcl.record import Row

SEEDED = "ε not valid: seeded noise"
UNKNOWN = "clips names it, but no exchange of this run had that name: is it spelt right?"
ADJACENCY = "zero out one record of one client"
ASSUMED = {
    "records": "how many records a client has at each stage, so weights, rates and steps too, is "
    "taken to be public",
    "tasks": "which task, of which classes, a client meets at which stage is taken to be public",
    "copies": "a row that several clients hold counts as a record of each",
    "members": "who has data at which stage, and who answers, is taken to be public",
    "label space": "the classes of the whole stream are taken to be public",
    "task borders": "when a stage begins and ends is taken to be public",
}


def record_summary(
    ledger: RecordLedger, promise: ExampleMechanism | None, stages: int
) -> dict[str, Any]:
    """Returns what summary.json says where single records are protected, else nothing.

    Args:
        ledger: What was spent.
        promise: What the trainer promises, or None.
        stages: Stages of the stream.
    """
    if promise is None:
        return {}
    delta = promise.delta
    told = {"delta": delta, "privacy_unit": "record", "adjacency": ADJACENCY, "sampling": "poisson"}
    if promise.seeded:
        return {**told, "noise": "seeded"}
    matrix = ledger.matrix(stages, delta)
    ends = [max(row[t] or 0.0 for row in matrix[: t + 1]) for t in range(stages)]
    record = written(ledger.epsilon(delta))
    units = dict.fromkeys(("client", "client_task", "client_round"))
    return {
        **told,
        "noise": "secret",
        "epsilon": record,
        "epsilon_by_unit": {**units, "record": record},
        "epsilon_by_stage": [written(value) for value in ends],
        "epsilon_by_task_met": [
            [None if value is None else written(value) for value in row] for row in matrix
        ],
        "epsilon_rdp": written(ledger.epsilon_rdp(delta)),
    }


def record_rows(ledger: RecordLedger, promise: ExampleMechanism) -> list[Row]:
    """Returns a row for each program that sent something, and what is not covered.

    Args:
        ledger: What was spent.
        promise: What the trainer promises.
    """
    delta, rows, every = promise.delta, [], list(ledger.every())
    for channel, epsilon in ledger.by_channel(delta).items():
        events = [event for event in every if event.channel == channel]
        bare = channel in ledger.bare
        note = "sent without protection by some client" if bare else _note(events)
        mechanism = "none" if bare else "gaussian"
        rows.append(row_of(channel, mechanism, epsilon, delta, note, "record"))
    note = f"{ADJACENCY}; the largest of all clients' records, whose data are disjoint"
    rows.append(row_of("all", "gaussian", ledger.epsilon(delta), delta, note, "record"))
    if promise.seeded:
        rows = [{**row, "epsilon": "inf", "note": f"{SEEDED}; {row['note']}"} for row in rows]
    for name in sorted(set(promise.clips) - {event.channel for event in every}):
        rows.append(row_of(name, "not sent", 0.0, None, UNKNOWN, "record"))
    rows.append(row_of("metrics", "not sent", 0.0, None, "no metric leaves a client", "record"))
    rows += [
        row_of(k, "not covered", math.inf, None, note, "record") for k, note in ASSUMED.items()
    ]
    return rows


def _note(events: Sequence[RecordEvent]) -> str:
    spent = [one for event in events for one, _ in event.groups if one.steps]
    parts = [f"{len({event.place for event in events})} exchanges"]
    for name, values in (
        ("noise multiplier", [one.noise_multiplier for one in spent]),
        ("rate", [one.rate for one in spent]),
        ("steps", [one.steps for one in spent]),
    ):
        least, most = min(values, default=0), max(values, default=0)
        parts.append(f"{name} {least:.4g}" + (f" to {most:.4g}" if most > least else ""))
    if any(one.earlier for one in spent):
        parts.append("on remembered records too")
    unread = sum(len(event.clients) for event in events if event.asked)
    if unread:
        parts.append(f"{unread} answers that did not count, charged as if they did")
    return ", ".join(parts)


def row_of(
    channel: str,
    mechanism: str,
    epsilon: float,
    delta: float | None,
    note: str,
    unit: str = "client",
) -> Row:
    """Returns a row of `privacy.csv`."""
    told = "inf" if math.isinf(epsilon) else repr(epsilon)
    row = {"channel": channel, "mechanism": mechanism, "unit": unit, "epsilon": told}
    return {**row, "delta": delta, "note": note}


def written(epsilon: float) -> float | str:
    """Returns a number as JSON can hold it, which has no infinity."""
    return "inf" if math.isinf(epsilon) else epsilon
