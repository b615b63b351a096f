"""Faults of privacy that somebody might make, each with the checks that must notice it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fedcl import rounds
from fedcl.auditing import canaries, gaussians, leakage, membership, thresholds
from fedcl.channels.central_dp import CentralDp
from fedcl.core import federation, release, site
from fedcl.core.accounting import composition as accounting
from fedcl.core.accounting import ledger
from fedcl.core.accounting.composition import Charge
from fedcl.core.accounting.ledger import Event, Ledger, Mechanism
from fedcl.core.channel import Aggregate, Sending
from fedcl.core.client import Client, Reply
from fedcl.core.population import sample
from fedcl.core.privacy import banded
from fedcl.core.privacy.clipping import clipped_to_send
from fedcl.core.privacy.noise import gaussian
from fedcl.core.privacy.renyi import Renyi
from tests import privacy_checks as checks

Check = Callable[[], None]
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Break:
    """A fault.

    Attributes:
        apply: Makes it, until the patch is undone.
        noticed: The checks that must fail then.
    """

    apply: Callable[[Patch], None]
    noticed: tuple[Check, ...]


def noise(broken: Callable[..., Any], *noticed: Check) -> Break:
    """Returns a fault of the noise that joins a sum."""
    return Break(lambda patch: patch.setattr(release, "gaussian", broken), noticed)


def upload(broken: Callable[[CentralDp, Reply, Client, Sending], Reply], *noticed: Check) -> Break:
    """Returns a fault of what a client does to its reply."""
    return Break(lambda patch: patch.setattr(CentralDp, "upload", broken), noticed)


RIGHT, RELEASE, RMIA = CentralDp.upload, release.release, membership.rmia
TPR = leakage.tpr_at_fpr
INTEND, BOUND, LOSSES = Ledger.intend, thresholds.rates, accounting._losses
DRAW, P_VALUE, DELTA_OF = release.draw_of, canaries.one_run_p_value, gaussians._delta


def _uniform(root: bytes, shape: Any, scale: float, *place: Any) -> Any:
    ranks = torch.special.ndtr(gaussian(root, shape, 1.0, *place))
    return scale * 12**0.5 * (ranks - 0.5)


def _clip(self: CentralDp, reply: Reply, bound: float) -> Reply:
    return replace(reply, tensors=clipped_to_send(reply.tensors, bound), weight=1.0, metrics={})


def _by_tensor(self: CentralDp, reply: Reply, client: Client, sending: Sending) -> Reply:
    tensors = {
        name: clipped_to_send({name: value}, self.clip)[name]
        for name, value in reply.tensors.items()
    }
    return replace(reply, tensors=tensors, weight=1.0, metrics={})


def _unchecked(self: CentralDp, reply: Reply, client: Client, sending: Sending) -> Reply:
    """A minimum of 1 and NaN is 1 in some languages: what is no number is not clipped."""
    fits = all(v.isfinite().all() for v in reply.tensors.values() if v.is_floating_point())
    return RIGHT(self, reply, client, sending) if fits else replace(reply, weight=1.0, metrics={})


def _counters(self: CentralDp, reply: Reply, client: Client, sending: Sending) -> Reply:
    sent = RIGHT(self, reply, client, sending)
    own = {k: v for k, v in reply.tensors.items() if not v.is_floating_point()}
    return replace(sent, tensors={**sent.tensors, **own})


def _told(door: Any, mechanism: Any, draw: Any, position: Any, program: str, total: Any) -> Any:
    found = RELEASE(door, mechanism, draw, position, program, total)
    return Aggregate(found.total, max(1.0, float(total.count)), total.count)


def _silent(door: Any, mechanism: Any, draw: Any, position: Any, program: str, total: Any) -> Any:
    found = RELEASE(door, mechanism, draw, position, program, total)
    return found if total.count else replace(found, total=dict(total.total))


def _late(self: Ledger, event: Event, mechanism: Mechanism) -> None:
    waiting = self.__dict__.setdefault("waiting", [])
    for before in waiting:
        INTEND(self, before, mechanism)
    waiting[:] = [event]


def _forgotten(self: Ledger, event: Event, mechanism: Mechanism) -> None:
    if event.round != 1:
        INTEND(self, event, mechanism)


def _as_poisson(*asked: Any) -> Any:
    draw = DRAW(*asked)
    return replace(draw, how="poisson") if draw.how == "fixed" else draw


def _each_alone(events: Any) -> list[Charge | Renyi]:
    events = list(events)
    drawn = [event for event in events if event.draw.how == "poisson"]
    others = [event for event in events if event.draw.how != "poisson"]
    return [charge for event in drawn for charge in CHARGES([event])] + CHARGES(others)


CHARGES = ledger.charges


def _pairs(members: Sequence[int], size: int, how: str, seed: int, turn: int) -> tuple[int, ...]:
    half = sample(range(len(members) // 2), size // 2, how, seed, turn)
    return tuple(sorted(members[2 * k + more] for k in half for more in (0, 1)))


def _fixed(members: Sequence[int], size: int, how: str, seed: int, turn: int) -> tuple[int, ...]:
    return sample(members, size, "fixed", seed, turn)


def _half_rate(noise_multiplier: float, rate: float, times: int) -> Any:
    return LOSSES(noise_multiplier, rate if rate == 1 else rate / 2, times)


def _five_times(scores: Any, members: Any, fpr: float, **options: Any) -> Any:
    return TPR(scores, members, 5 * fpr, **options)


def _one_turn(column: Any, number: int, separation: int) -> float:
    return math.sqrt(banded.squared_norms(column, number)[0])


def _patch(target: Any, name: str, broken: Any, *noticed: Check) -> Break:
    return Break(lambda patch: patch.setattr(target, name, broken), noticed)


c = checks
BREAKS: dict[str, Break] = {
    # The noise.
    "half the noise": noise(
        lambda *at: 0.5 * gaussian(*at), c.noise_is_as_claimed, c.audits_do_not_accuse
    ),
    "2 % less noise": noise(lambda *at: 0.98 * gaussian(*at), c.noise_is_as_claimed),
    "no noise": noise(
        lambda *at: 0.0 * gaussian(*at), c.noise_is_as_claimed, c.audits_do_not_accuse
    ),
    "noise on some tensors only": noise(
        lambda *at: gaussian(*at) * (at[-1] != "a"), c.noise_is_as_claimed
    ),
    "uniform noise of the same variance": noise(_uniform, c.noise_is_as_claimed),
    "no noise in one round": noise(
        lambda *at: gaussian(*at) * (at[5] != 1), c.noise_is_as_claimed, c.audits_do_not_accuse
    ),
    "the same noise every round": noise(
        lambda root, shape, scale, *at: gaussian(root, shape, scale, at[-1]),
        c.noise_is_independent,
        c.audits_do_not_accuse,
    ),
    "the same noise in every run": noise(
        lambda root, *rest: gaussian(b"0" * 32, *rest), c.noise_is_independent
    ),
    "the same key for all clients": _patch(
        site, "key_of", lambda secret, *at: secret, c.noise_is_independent
    ),
    # What a client can change.
    "a weight of three": upload(
        lambda self, *sent: replace(RIGHT(self, *sent), weight=3.0),
        c.a_client_is_bounded,
        c.audits_do_not_accuse,
    ),
    "a clip three times too large": upload(
        lambda self, reply, client, sending: _clip(self, reply, 3 * self.clip),
        c.a_client_is_bounded,
        c.audits_do_not_accuse,
    ),
    "a clip for each tensor": upload(_by_tensor, c.a_client_is_bounded),
    "NaN passes the clip": upload(_unchecked, c.a_client_is_bounded),
    "counters are not clipped": upload(_counters, c.a_client_is_bounded),
    # Who is drawn, and what is told of it.
    "cohorts of fixed size": _patch(rounds, "sample", _fixed, c.cohorts_are_poisson),
    "clients drawn in pairs": _patch(rounds, "sample", _pairs, c.cohorts_are_poisson),
    "divided by who answered": _patch(federation, "release", _told, c.counts_are_not_told),
    "no noise where nobody was drawn": _patch(
        federation, "release", _silent, c.counts_are_not_told
    ),
    # What is charged.
    "an event forgotten": _patch(
        Ledger, "intend", _forgotten, c.releases_are_composed, c.charges_come_first
    ),
    "charged after the release": _patch(Ledger, "intend", _late, c.charges_come_first),
    "a fixed sample charged as Poisson": _patch(
        federation, "draw_of", _as_poisson, c.releases_are_composed
    ),
    "one draw credited twice": _patch(ledger, "charges", _each_alone, c.releases_are_composed),
    "half the sampling rate": _patch(accounting, "_losses", _half_rate, c.epsilon_is_exact),
    # Correlated noise.
    "bands without correlation": _patch(
        release, "correlated", lambda column, t, drawn: drawn(t), c.banded_noise_is_the_mechanisms
    ),
    "bands whose clients do not wait": _patch(
        release, "separation_of", lambda *asked: 99, c.banded_noise_is_the_mechanisms
    ),
    "bands charged for one turn alone": _patch(
        banded, "sensitivity", _one_turn, c.banded_noise_is_the_mechanisms
    ),
    # The audits' own mathematics.
    "guesses judged without delta": _patch(
        canaries,
        "one_run_p_value",
        lambda guesses, epsilon, delta: P_VALUE(guesses, epsilon, 0.0),
        c.audits_compute_what_they_say,
    ),
    "thresholds that do not share a level": _patch(
        thresholds,
        "rates",
        lambda a, b, level, number: BOUND(a, b, 1 - 40 * (1 - level), number),
        c.audits_compute_what_they_say,
    ),
    "two Gaussians compared one way": _patch(
        gaussians,
        "_delta",
        lambda p, q, epsilon: DELTA_OF(min(p, q), max(p, q), epsilon),
        c.audits_compute_what_they_say,
    ),
    "a rate at five times the false positives": _patch(
        leakage, "tpr_at_fpr", _five_times, c.membership_is_calibrated
    ),
    "membership upside down": _patch(
        membership, "rmia", lambda *parts: -RMIA(*parts), c.membership_is_calibrated
    ),
}
