"""What T1 to T12 demand, each as a function that raises AssertionError where it does not hold.

All but the pure mathematics goes through the real server. `tests/test_broken_mechanisms.py` runs
each once as it is and once under every fault that it must notice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.stats import binom, chisquare
from torch import Tensor

import fedcl
from fedcl.assembly import build_site
from fedcl.auditing import canaries, leakage, membership, thresholds
from fedcl.auditing.gaussians import two_gaussians_epsilon
from fedcl.auditing.residuals import judged
from fedcl.core.accounting import composition as accounting
from fedcl.core.accounting.composition import Charge
from fedcl.core.channel import Aggregate
from fedcl.core.errors import ConfigError, FedclError
from fedcl.core.privacy import banded
from fedcl.core.privacy.noise import gaussian, seeded_root
from fedcl.core.watch import Release
from fedcl.rounds import Rounds
from tests import hostile, onlooker
from tests.tiny import tiny, watched

DELTA, CLIP, Z = 1e-5, 0.25, 2.0
LEVEL = 1e-4  # of each test of noise, in each of its tails


def asked(
    changes: Mapping[str, Any] | None = None, audits: tuple[str, ...] = (), **step: Any
) -> fedcl.Experiment:
    """Returns a run in which a server asks for vectors, under client-level privacy."""
    base = {"method.name": "tests.hostile:Hostile", "stream.tasks": 1, "training.rounds": 1}
    base |= {"training.cohort": 0, "training.sampling": "poisson", "evaluation.every": 0}
    channel = {"name": "central_dp", "clip": CLIP, "noise_multiplier": Z, "noise": "seeded", **step}
    watches = [{"name": name} for name in ("tests.onlooker:Onlooker", *audits)]
    return tiny({**base, **(changes or {})}, channel=[channel], audit=watches)


def seen(experiment: fedcl.Experiment) -> list[tuple[Release, float]]:
    """Runs it and returns its releases, after the method got just these sums."""
    onlooker.SEEN.clear()
    hostile.RECEIVED.clear()
    fedcl.run(experiment)
    for (release, _), total in zip(onlooker.SEEN, hostile.RECEIVED, strict=True):
        assert all(torch.equal(total.total[name], v) for name, v in release.released.items())
    return list(onlooker.SEEN)


def received(changes: Mapping[str, Any], **step: Any) -> list[Aggregate]:
    """Runs it and returns what the method got."""
    hostile.RECEIVED.clear()
    try:
        fedcl.run(asked(changes, **step))
    except FedclError as error:
        raise AssertionError("what a client sent ended the run") from error
    return list(hostile.RECEIVED)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns all numbers, in the order of the names."""
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def noises(experiment: fedcl.Experiment, scale: float) -> list[dict[str, Tensor]]:
    """Returns each release's noise in units of its promised deviation."""
    return [
        {name: (value - release.clean[name].double()) / scale for name, value in after.items()}
        for release, after in ((release, release.released) for release, _ in seen(experiment))
    ]


def epsilon_is_exact() -> None:
    """T1: known values of dp-accounting's loss distributions, and of Gaussians in closed form."""
    for row, known in (((1.0, 0.1, 100), 7.0466), ((0.7, 0.05, 500), 16.4828)):
        found = accounting.epsilon([Charge(*row)], DELTA)
        assert abs(found - known) <= 1e-3 * max(1.0, known)
        assert accounting.epsilon_rdp([Charge(*row)], DELTA) >= found
    assert abs(accounting.epsilon([Charge(5.0, 1.0, 100)], DELTA) - 9.99726) <= 1e-4


def releases_are_composed() -> None:
    """T2: a run's epsilon is that of one accountant fed by hand, for each way to draw cohorts."""
    many = {"training.rounds": 4, "training.cohort": 2, "method.size": 3}
    for sampling, charge in (
        ("poisson", Charge(Z, 0.4, 8)),
        ("fixed", Charge(Z, 1.0, 8)),
        ("round_robin", Charge(Z, 1.0, 4)),  # two of five clients, in four rounds: twice a stage
    ):
        changes = {**many, "training.sampling": sampling, "stream.tasks": 2}
        summary = fedcl.run(asked(changes, noise="secret")).summary
        wanted = accounting.epsilon([charge], DELTA)
        assert math.isclose(summary["epsilon"], wanted, rel_tol=1e-9), sampling
        assert summary["epsilon_by_stage"][0] < summary["epsilon"]
    twice = {"method.name": "tests.twice:Twice", **many}
    del twice["method.size"]
    summary = fedcl.run(asked(twice, noise="secret")).summary
    wanted = accounting.epsilon([Charge(Z / math.sqrt(2), 0.4, 4)], DELTA)
    assert math.isclose(summary["epsilon"], wanted, rel_tol=1e-9), "one draw, two releases"


def charges_come_first() -> None:
    """T2: each release was charged before it was made, and a budget stops before it."""
    changes = {"training.rounds": 3, "method.size": 3}
    for number, (_, spent) in enumerate(seen(asked(changes, noise="secret")), start=1):
        wanted = accounting.epsilon([Charge(Z, 1.0, number)], DELTA)
        assert math.isclose(spent, wanted, rel_tol=1e-9)
    budget = accounting.epsilon([Charge(Z, 1.0, 2)], DELTA) * 1.001
    onlooker.SEEN.clear()
    try:
        fedcl.run(asked(changes, noise="secret", budget=budget))
    except ConfigError:
        assert len(onlooker.SEEN) == 2
    else:
        raise AssertionError("the budget stopped nothing")


def a_client_is_bounded() -> None:
    """T3: 100 exchanges with hostile values of one client, uneven data, some of whom drop out."""
    changes = {"training.rounds": 100, "training.availability": 0.7, "method.size": 300}
    present = received({**changes, "method.attack": "mixed"})
    absent = received({**changes, "method.attack": "absent"})
    moved = [
        float((flat(a.total) - flat(b.total)).norm()) for a, b in zip(present, absent, strict=True)
    ]
    assert len(moved) == 100 and all(size <= CLIP * (1 + 1e-6) for size in moved), max(moved)
    assert sum(size > CLIP * (1 - 1e-5) for size in moved) > 20, "large ones are clipped, not lost"


def noise_is_as_claimed() -> None:
    """T4: size and shape of the noise, in each tensor and in all."""
    for noise in noises(asked({"training.rounds": 3}), Z * CLIP):
        for verdict in judged(noise, LEVEL):
            assert not verdict.faults, (verdict.layer, verdict.faults)


def noise_is_independent() -> None:
    """T5: between rounds, between clients that share a user's seed, and between two runs."""
    run = [flat(noise) for noise in noises(asked({"training.rounds": 3, "method.size": 9000}), 1.0)]
    other = [
        flat(noise)
        for noise in noises(asked({"training.rounds": 2, "method.size": 9000}, noise="secret"), 1.0)
    ]
    _, engine = watched(asked({"training.rounds": 2, "method.size": 3}))
    site = build_site(asked())
    drawn = [
        gaussian(client.key, (len(run[0]),), 1.0, "noise")
        for request, _ in engine.requests
        for client in site.clients(request, (0, 1), {})
        if client.key is not None
    ]
    assert len(drawn) == 4
    table = torch.corrcoef(torch.stack([*run, *other, *drawn])) - torch.eye(9)
    assert float(table.abs().max()) < 5 / math.sqrt(len(run[0]))


def cohorts_are_poisson() -> None:
    """T6: sizes fit the binomial law, and no pair of clients depends on each other."""
    rate, members, many = 0.3, 10, 3000
    experiment = asked({"training.cohort": 3, "stream.clients": 10})
    site = build_site(experiment)
    door: Any = SimpleNamespace(root=seeded_root(1), channel=experiment.channel)
    rounds = Rounds(experiment, site, door, [], lambda: None)
    drawn = np.zeros((many, members))
    for number in range(many):
        drawn[number, list(rounds._cohort(0, number))] = 1
    counts = np.bincount(drawn.sum(1).astype(int), minlength=members + 1)
    expected = many * binom.pmf(np.arange(members + 1), members, rate)
    counts[7], expected[7] = counts[7:].sum(), expected[7:].sum()
    assert chisquare(counts[:8], expected[:8]).pvalue > LEVEL
    for one, two in combinations(range(members), 2):
        table = np.bincount((2 * drawn[:, one] + drawn[:, two]).astype(int), minlength=4)
        law = many * np.outer([1 - rate, rate], [1 - rate, rate]).ravel()
        assert chisquare(table, law).pvalue > LEVEL / 10, (one, two)


def counts_are_not_told() -> None:
    """T6: a round of nobody is released with noise, and the divisor is a constant."""
    changes = {"training.rounds": 20, "training.cohort": 1, "method.size": 300}
    totals = received(changes, noise_multiplier=1e-6)
    assert {(total.weight, total.count) for total in totals} == {(1.0, 1)}
    norms = [float(flat(total.total).norm()) for total in totals]
    empty = [norm for norm in norms if norm < CLIP / 2]
    assert len(totals) == 20 and 2 <= len(empty) <= 14 and min(empty) > 0.0


def banded_noise_is_the_mechanisms() -> None:
    """T9: covariance of the noise, who may take part when, and the sensitivity by brute force."""
    rounds, bands, column = 6, 3, banded.coefficients(3)
    changes: dict[str, Any] = {"training.rounds": rounds, "stream.clients": 6, "training.cohort": 2}
    changes |= {"training.sampling": "round_robin", "method.size": 60_000}
    noise = torch.stack([flat(one) for one in noises(asked(changes, bands=bands), CLIP)]).numpy()
    matrix = np.array([[(*column, *[0.0] * rounds)[i - j] if i >= j else 0.0 for j in range(rounds)]
                       for i in range(rounds)])  # fmt: skip
    inverse = np.linalg.inv(matrix)
    expected = Z**2 * inverse @ inverse.T
    spread = (np.outer(np.diag(expected), np.diag(expected)) + expected**2) / noise.shape[1]
    found = noise @ noise.T / noise.shape[1]
    assert np.linalg.norm(found - expected) < 3 * math.sqrt(spread.sum())
    for total in range(1, 9):
        for apart in range(bands, bands + 3):
            worst = max(
                sum(sum(c * c for c in column[: total - start]) for start in chosen)
                for count in range(total + 1)
                for chosen in combinations(range(total), count)
                if all(b - a >= apart for a, b in pairwise(chosen))
            )
            assert math.isclose(banded.sensitivity(column, total, apart) ** 2, worst, abs_tol=1e-9)
    last: dict[int, int] = {}
    experiment = asked({**changes, "method.size": 3}, bands=bands)
    for request, ids in watched(experiment)[1].requests:
        for id in ids:
            assert request.position.round - last.get(id, -bands) >= bands
            last[id] = request.position.round
    onlooker.SEEN.clear()
    with suppress(ConfigError, ValueError):
        fedcl.run(asked({**changes, "training.cohort": 3, "method.size": 3}, bands=bands))
    assert not onlooker.SEEN, "clients that do not wait were let in"


def audits_do_not_accuse() -> None:
    """T10: noise tests and canaries on a short run; the long form is a study (docs/audits.md)."""
    changes = {"training.rounds": 4, "method.size": 6000}
    step = {"clip": 1.0, "noise_multiplier": 2.5}
    summary = fedcl.run(asked(changes, ("residual", "canaries"), **step)).summary
    for name in ("residual", "canaries"):
        assert not summary["audits"][name]["failed"], summary["audits"][name]["note"]


def audits_compute_what_they_say() -> None:
    """T11: values that the slow way gives (`tests/auditing/test_oracles.py`), to 1e-6."""
    guesses = canaries.Guesses(500, 50, 46)
    for bound, known in (
        (canaries.one_run_bound(guesses, DELTA), ONE_RUN),
        (canaries.gaussian_one_run_bound(guesses, DELTA), GAUSSIAN),
        (thresholds.gdp_bound(np.arange(100) + 95.5, np.arange(100), DELTA), GDP),
        (two_gaussians_epsilon((0.0, 0.5), (0.2, 1.0), DELTA), TWO),
    ):
        assert abs(bound - known) <= 1e-6 * max(1.0, known), (bound, known)


ONE_RUN, GAUSSIAN, GDP, TWO = 1.554398402, 2.385147041, 13.853367624, 29.451293934


def membership_is_calibrated() -> None:
    """T12: nothing is found where nothing is known, almost all where all is known by heart."""
    for gain in (0.0, 4.0):
        scores, members = [], []
        for seed in range(12):
            random = np.random.default_rng(seed)
            own = random.random((17, 4000)) < 0.5
            own[0], own[1] = True, False
            values = 3 * random.standard_normal(4000) + gain * own
            values = 1 / (1 + np.exp(-values - random.standard_normal(own.shape)))
            x, z = (
                membership.Observed(
                    np.arange(4000)[part], values[-1, part], values[:-1, part], own[:-1, part]
                )
                for part in (slice(0, None, 2), slice(1, None, 2))
            )
            scores.append(membership.rmia(x, z))
            members.append(own[-1, ::2])
        flags, told = np.concatenate(members), np.concatenate(scores)
        inside, outside = int(flags.sum()), int((~flags).sum())
        area = leakage.auc(told, flags)
        if gain:
            assert area > 0.9
            continue
        assert abs(area - 0.5) <= 3 * math.sqrt((len(flags) + 1) / (12 * inside * outside))
        rate = leakage.tpr_at_fpr(told, flags, 0.001).value
        error = math.sqrt(0.001 * 0.999 * (1 / inside + 1 / outside))
        assert rate and abs(rate - 0.001) <= 3 * error
