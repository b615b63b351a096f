"""What a run says of privacy: its epsilon, by unit, stage and channel, and what no proof covers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from fedcl.assembly import is_live
from fedcl.config import Experiment
from fedcl.core.accounting.ledger import Event, Ledger, Mechanism
from fedcl.core.accounting.units import client_round, client_task
from fedcl.core.channel import mechanism
from fedcl.core.privacy.examples import ExampleMechanism
from fedcl.record import Row
from fedcl.recordprivacy import SEEDED, UNKNOWN, record_rows, record_summary, row_of, written

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
_ANSWERED = "the method is told the expected number; a secure sum knows who answered"


def privacy_summary(
    ledger: Ledger,
    mechanism: Mechanism | None,
    stages: int,
    experiment: Experiment | None = None,
) -> dict[str, Any]:
    """Returns what summary.json says of privacy.

    Without a mechanism, and where anybody can repeat the noise, epsilon is None: no claim is made.
    Where clients and their records are protected the headline is the client's.

    Args:
        ledger: What was released.
        mechanism: What protects clients, or None.
        stages: Stages of the stream.
        experiment: Says how cohorts are drawn, and what protects single records.
    """
    promise = None if experiment is None else experiment.promise
    names = "epsilon delta noise privacy_unit adjacency sampling epsilon_by_unit epsilon_by_stage"
    blank: dict[str, Any] = dict.fromkeys([*names.split(), "epsilon_rdp", "epsilon_by_task_met"])
    records = record_summary(ledger.records, promise, stages)
    if mechanism is None:
        return {**blank, **records}
    told = {"delta": mechanism.delta, "privacy_unit": "client", "adjacency": adjacency(mechanism)}
    told["sampling"] = None if experiment is None else experiment.training.sampling
    if mechanism.seeded:
        return {**blank, **told, "noise": "seeded"}
    delta = mechanism.delta
    by_unit = {
        "client": ledger.epsilon(delta),
        "client_task": client_task(ledger, delta),
        "client_round": client_round(ledger, delta),
    }
    return {
        **blank,
        **records,
        **told,
        "noise": "secret",
        "epsilon": written(by_unit["client"]),
        "epsilon_by_unit": {
            **{unit: written(value) for unit, value in by_unit.items()},
            "record": records.get("epsilon"),
        },
        "epsilon_by_stage": [written(value) for value in ledger.by_stage(stages, delta)],
        "epsilon_rdp": written(ledger.epsilon_rdp(delta)),
    }


def spent_so_far(experiment: Experiment, ledger: Ledger) -> float | None:
    """Returns a bound on what a live federation has spent, quickly: by Rényi divergences.

    Args:
        experiment: Says what protects whom.
        ledger: What was released.

    Returns:
        Epsilon of a client, or of a record where only records are protected; None in a simulation
        and where nothing is claimed.
    """
    own, promise = mechanism(experiment.channel), experiment.promise
    protection = own or promise
    if not is_live(experiment) or protection is None or protection.seeded:
        return None
    found = ledger if own is not None else ledger.records
    epsilon = found.epsilon_rdp(protection.delta)
    return epsilon if math.isfinite(epsilon) else None


def privacy_rows(
    costs: Iterable[Row],
    ledger: Ledger,
    mechanism: Mechanism | None,
    promise: ExampleMechanism | None = None,
) -> list[Row]:
    """Returns a row for each channel that left the clients, and each unit that is protected.

    Args:
        costs: Rows of `costs.csv`.
        ledger: What was released.
        mechanism: What protects clients, or None: then each payload is a channel of its own, and
            nothing protects any of them.
        promise: What protects single records, or None.
    """
    if promise is not None:
        own = [] if mechanism is None else privacy_rows(costs, ledger, mechanism)
        return own + record_rows(ledger.records, promise)
    if mechanism is None:
        payloads = sorted({row["payload"] for row in costs if row["direction"] == "up"})
        note = "sent as it is: no mechanism bounds what it reveals"
        return [row_of(payload, "none", math.inf, None, note) for payload in payloads]
    delta, rows = mechanism.delta, []
    kind = "gaussian" if mechanism.shares is None else mechanism.shares.kind
    for channel, epsilon in ledger.by_channel(delta).items():
        events = [event for event in ledger.events.values() if event.channel == channel]
        note = f"{len(events)} releases, sensitivity {_range(events)}, "
        note += f"noise multiplier {mechanism.noise_multiplier:g}, {_shares(events)}"
        note += "sampling " + " and ".join(sorted({event.draw.how for event in events}))
        rows.append(row_of(channel, kind, epsilon, delta, note))
    rows.append(row_of("all", kind, ledger.epsilon(delta), delta, adjacency(mechanism)))
    if mechanism.seeded:
        rows = [{**row, "epsilon": "inf", "note": f"{SEEDED}; {row['note']}"} for row in rows]
    unknown = set(mechanism.programs) - {event.channel for event in ledger.events.values()}
    rows += [row_of(name, "not sent", 0.0, None, UNKNOWN) for name in sorted(unknown)]
    withheld = WITHHELD if mechanism.shares is None else {**WITHHELD, "counts": _ANSWERED}
    rows += [row_of(name, "not sent", 0.0, None, note) for name, note in withheld.items()]
    rows += [row_of(name, "not covered", math.inf, None, note) for name, note in ASSUMED.items()]
    members = max((event.draw.members for event in ledger.events.values()), default=0)
    if delta * members >= 1:
        note = f"delta = {delta:g} allows to publish all of one of {members} clients: lower it"
        rows.append(row_of("delta", "not covered", math.inf, delta, note))
    return rows


def adjacency(mechanism: Mechanism) -> str:
    """Returns what neighbouring runs differ in."""
    if mechanism.shares is None:
        return "add or remove all that one client sends; that it is a member stays public"
    return "one client's replies become zeros: that it takes part is not hidden; Rényi bound"


def _shares(events: Iterable[Event]) -> str:
    """Returns a remark on sums to which clients added the noise, or nothing."""
    found = [event.discrete for event in events if event.discrete is not None]
    if not found:
        return ""
    shares = sorted({one.shares for one in found})
    return f"in {' or '.join(map(str, shares))} shares at least, "


def _range(events: Iterable[Event]) -> str:
    sizes = [event.sensitivity for event in events]
    least, most = min(sizes, default=0.0), max(sizes, default=0.0)
    return f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
