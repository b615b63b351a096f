"""Distributed noise through the real server: bounds, shares, drop-outs, ledger, engines, resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from scipy.stats import chi2 as chi_square
from scipy.stats import kstest, norm
from torch import Tensor

import fedcl
from fedcl.core.accounting.composition import Charge, epsilon, epsilon_rdp
from fedcl.core.channel import Aggregate
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.privacy import distributed
from fedcl.core.privacy.discrete import discrete_gaussian
from fedcl.core.privacy.distributed import Plan, Shares, plan
from fedcl.core.privacy.noise import generator
from fedcl.core.privacy.renyi import Renyi
from fedcl.ledgerfile import LedgerFile
from tests import hostile, sealing
from tests.conformance import every_method, light
from tests.ray_house import RayHouse
from tests.tiny import (
    Interrupted,
    assert_same_folders,
    assert_same_runs,
    distance,
    interrupt_after,
    read_csv,
    same,
    tiny,
)

FINE = {"bits": 30}  # rounding is nothing beside the noise
CLIP = 0.25


def private(changes: Mapping[str, Any] | None = None, **options: Any) -> fedcl.Experiment:
    step = {"name": "distributed_dp", "noise_multiplier": 0.5, **options}
    return tiny(changes or {}, channel=[step])


def received(
    attack: str, rounds: int = 1, changes: Mapping[str, Any] | None = None, **options: Any
) -> list[Aggregate]:
    """Returns what the server gets in each round of all five clients, with seeded noise."""
    hostile.RECEIVED.clear()
    fedcl.run(hostiles(attack, rounds, changes, **options))
    return list(hostile.RECEIVED)


def hostiles(
    attack: str, rounds: int = 1, changes: Mapping[str, Any] | None = None, **options: Any
) -> fedcl.Experiment:
    table = {
        "method.name": "tests.hostile:Hostile",
        "method.attack": attack,
        "stream.tasks": 1,
        "training.rounds": rounds,
        "training.cohort": 0,
        "evaluation.every": 0,
        **(changes or {}),
    }
    return private(table, **{"noise": "seeded", "clip": CLIP, **FINE, **options})


def together(total: Aggregate) -> Tensor:
    return torch.cat([total.total[name].double().flatten() for name in ("a", "b")])


# --- T3: what one client can change. ---


@pytest.mark.parametrize("distribution", ["discrete_gaussian", "skellam"])
@pytest.mark.parametrize("attack", hostile.ATTACKS)
def test_no_client_changes_the_sum_by_more_than_the_clip(attack: str, distribution: str) -> None:
    own: dict[str, Any] = {"distribution": distribution, "clip": 0.7, "bits": 24}
    (present,), (absent,) = received(attack, **own), received("absent", **own)
    change = together(present) - together(absent)
    assert float(change.norm()) <= 0.7 * (1 + 1e-5)
    if attack in ("large", "random", "huge"):
        assert float(change.norm()) > 0.7 * (1 - 1e-4), "it is clipped, not thrown away"
    assert present.weight == absent.weight == present.count == 5
    assert present.metrics == {} and present.noise == 0.5 * 0.7
    # What is no floating number becomes zero and gets noise.
    assert 0 < abs(float(present.total["counter"])) < 6 * 0.5 * 0.7


def test_on_a_coarse_grid_the_norm_is_the_one_that_is_charged() -> None:
    own: dict[str, Any] = {"bits": 9, "clip": 1.0, "noise_multiplier": 0.6}
    (present,), (absent,) = received("random", **own), received("absent", **own)
    made = plan(Shares("discrete_gaussian", 9, 1.0), 1.0, 0.6, 5)
    change = float((together(present) - together(absent)).norm())
    most = made.norm(hostile.SIZE + 21 + 1) / made.scale
    assert 2.0 < change <= most * (1 + 1e-9), "more than the clip, and accounted for"


def test_programs_have_clips_of_their_own() -> None:
    own = [
        received("large", clip=9.0, noise_multiplier=1e-3, clips=c)[0] for c in ({}, {"send": 1.0})
    ]
    assert float(together(own[0]).norm()) > 4 * float(together(own[1]).norm())
    assert [total.noise for total in own] == pytest.approx([9e-3, 1e-3])
    with pytest.raises(ConfigError, match=r"clips\.send must be above 0"):
        private(clips={"send": 0.0})


# --- T4, T5: the noise. ---


def residuals(rounds: int, z: float = 2.0, **options: Any) -> list[Tensor]:
    """Returns the noise of each round over its promised standard deviation."""
    noised = received("random", rounds, noise_multiplier=z, **options)
    clean = received("random", rounds, noise_multiplier=0.0, **options)
    pairs = zip(noised, clean, strict=True)
    return [(together(a) - together(b)) / (2.0 * CLIP) for a, b in pairs]


def fits(residual: Tensor) -> bool:
    tail = float(chi_square.sf(float(residual.square().sum()), len(residual)))
    return 1e-4 < tail < 1 - 1e-4 and float(kstest(residual.numpy(), norm.cdf).pvalue) > 1e-4


@pytest.mark.parametrize("distribution", ["discrete_gaussian", "skellam"])
def test_the_noise_has_the_promised_size_and_shape_and_is_new_in_every_round(
    distribution: str,
) -> None:
    own: dict[str, Any] = {"distribution": distribution, "bits": 26}
    found = residuals(3, **own)
    assert all(fits(residual) for residual in found)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        correlation = float(torch.corrcoef(torch.stack([found[a], found[b]]))[0, 1])
        assert abs(correlation) < 5 / math.sqrt(len(found[0]))
    assert not any(fits(residual) for residual in residuals(2, 1.96, **own))


def test_half_a_share_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(own: Plan, size: int, key: bytes) -> Any:
        return discrete_gaussian(generator(key, "noise"), size, math.sqrt(own.variance / 2))

    with monkeypatch.context() as within:
        within.setattr(distributed, "_noise", halved)
        noised = received("random", 1, noise_multiplier=2.0)
    (clean,) = received("random", 1, noise_multiplier=0.0)
    assert not fits((together(noised[0]) - together(clean)) / (2.0 * CLIP))


def shares(experiment: fedcl.Experiment) -> list[Tensor]:
    """Returns what clients sent in all rounds, which is nearly nothing but noise."""
    sent = sealing.spied(experiment)
    return [torch.cat([v.double().flatten() for v in r.tensors.values()]) for r in sent.values()]


def largest_correlation(parts: list[Tensor]) -> float:
    found = torch.corrcoef(torch.stack(parts)) - torch.eye(len(parts))
    return float(found.abs().max()) * math.sqrt(len(parts[0]))


def test_clients_under_the_same_seed_share_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = hostiles("random", 2, noise_multiplier=8.0)
    found = shares(experiment)
    assert len(found) == 10 and largest_correlation(found) < 5.0
    with monkeypatch.context() as within:  # one key for all clients of an exchange
        within.setattr("fedcl.core.site.key_of", lambda root, *place: root)
        assert largest_correlation(shares(experiment)) > 100.0


def test_nobody_can_repeat_secret_noise_and_seeded_noise_claims_nothing() -> None:
    first, second = fedcl.run(private()), fedcl.run(private())
    assert distance(first.params, second.params) > 1e-3
    seeded = [fedcl.run(private(noise="seeded")) for _ in range(2)]
    assert same(dict(seeded[0].params), dict(seeded[1].params))
    assert seeded[0].summary["epsilon"] is None and seeded[0].summary["noise"] == "seeded"


# --- Drop-outs. ---


def strengths(z: float) -> list[float]:
    """Returns the noise variance of each released round over what is charged."""
    rare = {"training.availability": 0.7}
    noised = received("random", 12, rare, noise_multiplier=z, survivors=0.6)
    clean = received("random", 12, rare, noise_multiplier=0.0, survivors=0.6)
    pairs = zip(noised, clean, strict=True)
    return [float((together(a) - together(b)).square().mean()) / (z * CLIP) ** 2 for a, b in pairs]


def test_with_drop_outs_the_noise_is_never_less_than_what_is_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three of five must answer; three to five shares of a third of the noise arrive."""
    own = strengths(2.0)
    spread = 6 * math.sqrt(2 / hostile.SIZE)
    assert 5 <= len(own) < 12, "rounds with one or two replies were skipped"
    assert {round(3 * one) for one in own} == {3, 4, 5}
    assert all(abs(3 * one - round(3 * one)) < 3 * spread for one in own)
    assert min(own) > 1 - spread

    def for_all(kind: Shares, clip: float, z: float, expected: int) -> Plan:
        made = plan(kind, clip, z, expected)
        return replace(made, variance=made.variance * made.least / expected)

    with monkeypatch.context() as within:  # calibrated for all instead of the survivors
        within.setattr("fedcl.channels.distributed_dp.plan", for_all)
        assert min(strengths(2.0)) < 0.7


def test_who_does_not_answer_shrinks_the_sum_and_never_the_divisor() -> None:
    few = received("random", 6, {"training.availability": 0.7}, survivors=0.4, noise_multiplier=0.0)
    assert {total.weight for total in few} == {total.count for total in few} == {5}
    assert len({round(float(together(total).norm()), 3) for total in few}) > 1


def test_rounds_that_are_repeated_have_new_noise_and_are_charged_each_time(tmp_path: Path) -> None:
    """The first of two exchanges may be released before the second has too few replies."""
    rare = {
        "method.name": "tests.plugins:Twice",
        "training.availability": 0.8,
        "training.shortfall": "repeat",
        "training.cohort": 5,
    }
    experiment = private(rare, survivors=0.8)
    record = fedcl.run(experiment, tmp_path)
    file = LedgerFile(tmp_path / "checkpoint")
    events = list(file.events().values())
    file.close()
    assert len(record.summary["skipped_or_repeated_rounds"]) > 0
    assert len(events) > 2 * 4 and max(event.attempt for event in events) > 0
    assert len({event.place for event in events}) == len(events)
    one = events[0].discrete
    assert one is not None and one.shares == 4
    together = Renyi(one.divergences(), len(events))
    assert record.summary["epsilon"] == pytest.approx(epsilon([together], 1e-5), rel=1e-12)


# --- What is handed out, and what a run says. ---


def test_nothing_that_the_server_reaches_is_one_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """T14; the last fold block of five clients in blocks of two is one client."""
    for z in (0.0, 1.0):
        experiment = private({"training.cohort": 5}, noise="seeded", noise_multiplier=z)
        looks = sealing.looked(experiment, monkeypatch)
        sent = sealing.spied(experiment)
        assert len(sent) == 4 * 5 and sealing.betrayed(looks.everything, sent) == []
        half = 2**19
        for _, result in looks.results:
            assert result.total is not None and not result.total.metrics
            for value in result.total.total.values():
                assert float(value.min()) >= -half and float(value.max()) < half


def test_a_run_tells_the_epsilon_of_its_rounds_and_of_what(tmp_path: Path) -> None:
    own = private({"training.cohort": 0}, delta=1e-4, survivors=0.8, noise_multiplier=1.0)
    summary = fedcl.run(own, tmp_path).summary
    size = 16 * 12 + 12 + 12 * 4 + 4
    one = plan(Shares("discrete_gaussian", 20, 0.8), 1.0, 1.0, 5).discrete(size)
    expected = [epsilon([Renyi(one.divergences(), n)], 1e-4) for n in (2, 4)]
    assert summary["epsilon_by_stage"] == pytest.approx(expected, rel=1e-12)
    assert summary["epsilon"] == summary["epsilon_rdp"] == summary["epsilon_by_stage"][-1]
    nearly = epsilon_rdp([Charge(1.0, 1.0, 4)], 1e-4)
    assert nearly < summary["epsilon"] < nearly * 1.001
    rows = {row["channel"]: row for row in read_csv(tmp_path / "privacy.csv")}
    assert {rows[name]["mechanism"] for name in ("train", "all")} == {"discrete_gaussian"}
    assert "in 4 shares at least" in rows["train"]["note"]
    assert "that it takes part is not hidden; Rényi bound" in rows["all"]["note"]
    assert "a secure sum knows who answered" in rows["counts"]["note"]


def test_what_goes_up_is_whole_numbers_of_four_bytes_without_metrics() -> None:
    record = fedcl.run(private())
    size = 16 * 12 + 12 + 12 * 4 + 4
    assert record.summary["bytes_by_payload"]["up"] == {"model": 4 * 3 * 4 * size, "metrics": 96}


def test_a_budget_ends_the_run_before_the_release(tmp_path: Path) -> None:
    one = plan(Shares("discrete_gaussian", 20, 1.0), 1.0, 0.5, 3).discrete(256)
    budget = epsilon([Renyi(one.divergences(), 3)], 1e-5) * 1.001
    with pytest.raises(ConfigError, match=r"stage 1, round 1 would spend"):
        fedcl.run(private(budget=budget), tmp_path / "run")
    file = LedgerFile(tmp_path / "run" / "checkpoint")
    assert [place[:2] for place in file.events()] == [(0, 0), (0, 1), (1, 0)]
    file.close()


def test_noise_that_is_none_claims_nothing() -> None:
    assert fedcl.run(private(noise_multiplier=0.0)).summary["epsilon"] == "inf"


def test_a_resumed_run_repeats_its_noise_and_is_charged_once(tmp_path: Path) -> None:
    rare = {"training.availability": 0.8, "training.cohort": 5, "training.shortfall": "repeat"}
    slow = {**rare, "checkpoint.seconds": 1000}  # the second round is charged, but not committed
    own = private(slow, noise="seeded", survivors=0.6)
    fedcl.run(own, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fedcl.run(own, tmp_path / "halves", watch=interrupt_after(3))
    fedcl.run(own, tmp_path / "halves", resume=True)
    assert_same_folders(tmp_path / "whole", tmp_path / "halves")
    ledgers = []
    for name in ("whole", "halves"):
        file = LedgerFile(tmp_path / name / "checkpoint")
        ledgers.append(file.events())
        file.close()
    assert ledgers[0] == ledgers[1] and len(ledgers[0]) >= 4


# --- Engines. ---


@pytest.mark.ray
@pytest.mark.parametrize("inner", ["serial", "vectorized"])
def test_workers_give_the_bits_of_one_process(
    inner: Literal["serial", "vectorized"], ray_house: RayHouse
) -> None:
    own = private({"training.cohort": 5}, noise="seeded")
    alone = replace(own, engine=tiny({"engine.name": inner}).engine)
    assert_same_runs(fedcl.run(ray_house.on(own, 2, inner)), fedcl.run(alone))


def test_batched_clients_give_the_same_up_to_rounding() -> None:
    own = private({"training.rounds": 1, "stream.tasks": 1}, noise="seeded", bits=30)
    batched = replace(own, engine=tiny({"engine.name": "vectorized"}).engine)
    assert distance(fedcl.run(own).params, fedcl.run(batched).params) < 1e-5


# --- What goes with it. ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"training.sampling": "poisson"},
            r"\[training\] sampling = .poisson. is credited nothing",
        ),
        ({"adversary.attack": "sign_flip", "adversary.share": 0.2}, r"\[adversary\] .* no noise"),
        ({"replies.norm": 1.0}, r"\[replies\] norm cannot be judged"),
        ({"training.cohort": 1}, r"cohort = 1 is smaller than the 2 clients"),
        ({"aggregation.name": "median"}, "median"),
        ({"method.name": "cfed", "stream.public": 0.1}, "asks for single replies"),
    ],
)
def test_what_no_proof_covers_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, ExposureError), match=words):
        private(changes)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("clip", 0.0),
        ("noise_multiplier", -1.0),
        ("survivors", 0.0),
        ("survivors", 1.5),
        ("bits", 33),
        ("bits", 3),
        ("delta", 1.0),
        ("budget", -1),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"channel\[0\]\] {option} must"):
        private(**{option: value})


def test_bits_that_hold_no_sum_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bits = 5 has no room for the sum of 3 clients"):
        fedcl.run(private(bits=5), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.parametrize("audit", ["residual", "canaries"])
def test_audits_say_that_they_do_not_cover_it(audit: str) -> None:
    own = private()
    table = {**own.resolved, "audit": [{"name": audit}]}
    with pytest.raises(ConfigError, match=r"\[audit\[0\]\] clients add the noise .* not covered"):
        fedcl.run(fedcl.config.parse(table))


@every_method
def test_every_method_runs_with_an_epsilon_or_is_refused(name: str) -> None:
    changes = {"method": light(name), "stream.public": 0.1, "evaluation.every": 0}
    try:
        experiment = private(changes, noise_multiplier=1.0, clip=0.05)
    except ExposureError:
        assert name in ("cfed", "fedcbdr", "glfc")
        return
    summary = fedcl.run(experiment).summary
    assert epsilon_rdp([Charge(1.0, 1.0, 4)], 1e-5) < summary["epsilon"] < math.inf
