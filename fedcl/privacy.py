"""What a run says of privacy: its epsilon, by stage and by channel, and what no proof covers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from fedcl.core.ledger import Event, Ledger, Mechanism
from fedcl.record import Row

# What nobody noises because it is taken to be known already; the report says so.
ASSUMED = {
    "members": "who has data at which stage is taken to be public",
    "label space": "the classes of the stream, and which of them a stage has, are taken as public",
    "task borders": "when a stage begins and ends is taken to be public",
    "form": "names, shapes and types of replies are taken to be the same whatever the data",
    "other runs": "each run is charged alone; choosing one of several, or an audited repeat, adds",
}
WITHHELD = {
    "weights": "every client weighs 1",
    "counts": "the expected number of clients is told instead",
    "metrics": "no metric leaves a client",
}
UNKNOWN = "clips names it, but no exchange of this run had that name: is it spelt right?"
_SEEDED = "ε not valid: seeded noise"


def privacy_summary(ledger: Ledger, mechanism: Mechanism | None, stages: int) -> dict[str, Any]:
    """Returns what summary.json says of privacy.

    Without a mechanism, and where anybody can repeat the noise, epsilon is None: no claim is made.

    Args:
        ledger: What was released.
        mechanism: What protects clients, or None.
        stages: Stages of the stream.
    """
    blank = {"epsilon": None, "delta": None, "noise": None, "privacy_unit": None}
    blank |= {"epsilon_by_stage": None, "epsilon_rdp": None}
    if mechanism is None:
        return blank
    told = {"delta": mechanism.delta, "privacy_unit": "client"}
    if mechanism.seeded:
        return {**blank, **told, "noise": "seeded"}
    delta = mechanism.delta
    return {
        **told,
        "noise": "secret",
        "epsilon": _told(ledger.epsilon(delta)),
        "epsilon_by_stage": [_told(value) for value in ledger.by_stage(stages, delta)],
        "epsilon_rdp": _told(ledger.epsilon_rdp(delta)),
    }


def _told(epsilon: float) -> float | str:
    """JSON has no infinity."""
    return "inf" if math.isinf(epsilon) else epsilon


def privacy_rows(costs: Iterable[Row], ledger: Ledger, mechanism: Mechanism | None) -> list[Row]:
    """Returns a row for each channel that left the clients.

    Args:
        costs: Rows of `costs.csv`.
        ledger: What was released.
        mechanism: What protects clients, or None: then each payload is a channel of its own, and
            nothing protects any of them.
    """
    if mechanism is None:
        payloads = sorted({row["payload"] for row in costs if row["direction"] == "up"})
        note = "sent as it is: no mechanism bounds what it reveals"
        return [_row(payload, "none", math.inf, None, note) for payload in payloads]
    delta, rows = mechanism.delta, []
    for channel, epsilon in ledger.by_channel(delta).items():
        events = [event for event in ledger.events.values() if event.channel == channel]
        note = f"{len(events)} releases, sensitivity {_range(events)}, "
        note += f"noise multiplier {mechanism.noise_multiplier:g}, "
        note += "sampling " + " and ".join(sorted({event.draw.how for event in events}))
        rows.append(_row(channel, "gaussian", epsilon, delta, note))
    note = "add or remove all that one client sends; that it is a member stays public"
    rows.append(_row("all", "gaussian", ledger.epsilon(delta), delta, note))
    if mechanism.seeded:
        rows = [{**row, "epsilon": "inf", "note": f"{_SEEDED}; {row['note']}"} for row in rows]
    unknown = set(mechanism.programs) - {event.channel for event in ledger.events.values()}
    rows += [_row(name, "not sent", 0.0, None, UNKNOWN) for name in sorted(unknown)]
    rows += [_row(name, "not sent", 0.0, None, note) for name, note in WITHHELD.items()]
    rows += [_row(name, "not covered", math.inf, None, note) for name, note in ASSUMED.items()]
    members = max((event.draw.members for event in ledger.events.values()), default=0)
    if delta * members >= 1:
        note = f"delta = {delta:g} allows to publish all of one of {members} clients: lower it"
        rows.append(_row("delta", "not covered", math.inf, delta, note))
    return rows


def _range(events: Iterable[Event]) -> str:
    sizes = [event.sensitivity for event in events]
    least, most = min(sizes, default=0.0), max(sizes, default=0.0)
    return f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"


def _row(channel: str, mechanism: str, epsilon: float, delta: float | None, note: str) -> Row:
    told = "inf" if math.isinf(epsilon) else repr(epsilon)
    row = {"channel": channel, "mechanism": mechanism, "unit": "client", "epsilon": told}
    return {**row, "delta": delta, "note": note}
