"""Privacy of single records through the real server: what is charged, refused, and told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.accountants import PRVAccountant

import fedcl
from fedcl.channels.secure_aggregation import SecureAggregation
from fedcl.core.accounting.appearances import appearances
from fedcl.core.accounting.composition import Charge, epsilon
from fedcl.core.accounting.recordledger import RecordEvent, RecordLedger, grouped
from fedcl.core.channel import Sending
from fedcl.core.client import Client, Reply, Spent
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.population import Simulated
from fedcl.core.privacy.clipping import norm
from fedcl.core.task import Examples
from fedcl.ledgerfile import LedgerFile
from fedcl.report import write_report
from tests import asking
from tests.conformance import every_method, light
from tests.tiny import (
    Interrupted,
    assert_same_folders,
    distance,
    interrupt_after,
    read_csv,
    same,
    scenario,
    stream_of,
    tiny,
)

# Five clients of 16 examples at each of two stages; no row comes again.
EVEN = {**scenario("class"), "stream.partition": {"name": "iid"}}
DP = {"name": "dp_sgd", "noise_multiplier": 2.0, "batch_size": 8, "lr": 0.05}


def private(changes: Mapping[str, Any] | None = None, **options: Any) -> fedcl.Experiment:
    local = {"training.local": {**DP, **options}}
    return tiny({**EVEN, "evaluation.every": 0, **(changes or {}), **local})


def test_a_record_pays_for_the_rounds_of_its_stage(tmp_path: Path) -> None:
    summary = fedcl.run(private({"training.cohort": 0}, delta=1e-4), tmp_path / "run").summary
    stage = epsilon([Charge(2.0, 8 / 16, 2 * 2)], 1e-4)
    assert summary["epsilon"] == pytest.approx(stage, rel=1e-9)
    assert summary["epsilon_by_stage"] == [summary["epsilon"]] * 2
    assert summary["epsilon_by_task_met"] == [[summary["epsilon"]] * 2, [None, summary["epsilon"]]]
    assert (summary["delta"], summary["privacy_unit"]) == (1e-4, "record")
    assert summary["epsilon_rdp"] > summary["epsilon"]
    assert summary["sampling"] == "poisson" and "record" in summary["adjacency"]
    by_unit = {"client": None, "client_task": None, "client_round": None}
    assert summary["epsilon_by_unit"] == {**by_unit, "record": summary["epsilon"]}


@every_method
def test_every_method_runs_with_an_exact_epsilon_or_is_refused_by_name(name: str) -> None:
    public = {"stream.public": 0.1} if name == "cfed" else {}
    changes = {"method": light(name), "training.rounds": 1, **public}
    try:
        experiment = private(changes, clip=0.5)
    except ExposureError as error:
        assert f"method {name!r}" in str(error) and "; " in str(error)
        assert name in ("fedcbdr", "fpf", "glfc", "prd", "refed")
        return
    record = fedcl.run(experiment)
    assert 0 < record.summary["epsilon"] < math.inf
    assert all(math.isfinite(float(v.abs().sum())) for v in record.params.values())


# --- What a noised statistic may look like. ---

DROWNED = ("analytic", "cuber", "ewc", "fot", "gpm", "kron", "lander", "mas", "mfcl", "target")


@pytest.mark.parametrize("name", DROWNED)
@pytest.mark.parametrize("clip", [1e-3, 1e5])
def test_methods_stay_finite_with_statistics_that_are_noise(name: str, clip: float) -> None:
    names = ("correlations", "fisher", "gram", "moments", "sensitivity")
    clips = {"clips": dict.fromkeys(names, clip)}
    changes = {"method.name": name, "training.rounds": 1, "stream.tasks": 4, "training.cohort": 0}
    cheap: dict[str, dict[str, Any]] = {
        "analytic": {"method.balance": "expected"},
        "lander": {"method.steps": 2, "method.images": 32, "stream.tasks": 2},
        "mfcl": {"method.steps": 2, "stream.tasks": 2},
        "target": {"method.steps": 2, "method.images": 32, "stream.tasks": 2},
    }
    changes |= cheap.get(name, {})
    record = fedcl.run(private(changes, clip=1e-3, noise_multiplier=20.0, **clips))
    assert all(math.isfinite(float(v.abs().sum())) for v in record.params.values())
    assert all(math.isfinite(row["value"]) for row in record.evaluations)


# --- What is charged, once, and before it is handed out. ---


def asked(what: str, declared: str = "nothing", **options: Any) -> fedcl.Experiment:
    changes = {
        "method.name": "tests.asking:Asking",
        "method.what": what,
        "method.declared": declared,
        "training.cohort": 0,
        "stream.tasks": 1,
        "training.rounds": 1,
    }
    asking.RECEIVED.clear()
    return private(changes, **options)


def test_remembered_records_go_on_paying_and_others_do_not() -> None:
    plain, taught, replayed = (
        fedcl.run(private({"training.cohort": 0, "method.name": name})).summary[
            "epsilon_by_task_met"
        ]
        for name in ("fedavg", "lwf", "replay")
    )
    assert plain[0][1] == plain[0][0]
    assert taught == plain, "a teacher's answers bring no other record"
    assert replayed[0][1] > replayed[0][0] == plain[0][0]


def test_rows_that_come_again_are_charged_for_both_stages() -> None:
    """Permuted inputs of the same rows; with fixed shares clients meet all of them again."""
    own = {"stream.name": "domain_incremental", "stream.tasks": 2, "stream.clients": 5}
    changes = {"training.cohort": 0, "stream.fixed_shares": True, **own}
    matrix = fedcl.run(private(changes)).summary["epsilon_by_task_met"]
    two = [epsilon([Charge(2.0, 8 / 32, 8 * stages)], 1e-5) for stages in (1, 2)]
    assert matrix[0] == pytest.approx(two, rel=1e-9)
    assert matrix[1][1] == matrix[0][1]
    patterns = appearances(stream_of(private({**own, "stream.fixed_shares": False})))(0)
    assert set(patterns) <= {(1, 0), (0, 1), (1, 1)} and (1, 1) in patterns


def test_a_resumed_run_repeats_its_noise_and_is_charged_once(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    changes = {"method.name": "fot"}
    fedcl.run(private(changes), whole)
    file = LedgerFile(whole / "checkpoint")
    root, events = file.root(), file.record_events()
    file.close()
    assert len(events) == 6, "four rounds of training, two of statistics"
    file = LedgerFile(halves / "checkpoint")  # one secret for both, so that they can be compared
    file._db.execute("INSERT INTO root VALUES (0, ?)", (root,))
    file.close()
    slow = {**changes, "checkpoint.seconds": 1000}  # the second round is charged, not committed
    with pytest.raises(Interrupted):
        fedcl.run(private(slow), halves, resume=True, watch=interrupt_after(3))
    fedcl.run(private(slow), halves, resume=True)
    (halves / "config.toml").write_text((whole / "config.toml").read_text())
    assert_same_folders(whole, halves)
    file = LedgerFile(halves / "checkpoint")
    assert file.record_events() == events
    file.close()


def test_a_budget_ends_the_run_before_a_reply_is_handed_out(tmp_path: Path) -> None:
    budget = epsilon([Charge(2.0, 8 / 16, 2)], 1e-5) * 1.001
    with pytest.raises(ConfigError, match=r"stage 0, round 1 would spend .* of a record"):
        fedcl.run(private({"training.cohort": 0}, budget=budget), tmp_path / "run")
    file = LedgerFile(tmp_path / "run" / "checkpoint")
    assert [place[:2] for place in file.record_events()] == [(0, 0)]
    file.close()
    with pytest.raises(ConfigError, match="sends what nothing protects"):
        fedcl.run(asked("mean", "own", budget=50.0))
    assert not asking.RECEIVED


def test_what_comes_without_protection_has_no_bound_and_a_name(tmp_path: Path) -> None:
    """A program that is neither training nor a statistic is not believed what it claims."""
    misspelt = {"clips": {"grams": 1.0}}
    summary = fedcl.run(asked("mean", "own", **misspelt), tmp_path / "run").summary
    assert summary["epsilon"] == summary["epsilon_rdp"] == "inf"
    rows = {row["channel"]: row for row in read_csv(tmp_path / "run" / "privacy.csv")}
    assert (rows["mean"]["epsilon"], rows["mean"]["mechanism"]) == ("inf", "none")
    assert "spelt right" in rows["grams"]["note"]
    assert rows["records"]["mechanism"] == rows["copies"]["mechanism"] == "not covered"
    again = fedcl.run(asked("mean", "own", **misspelt), tmp_path / "run", resume=True)
    assert again.summary["epsilon"] == "inf"


def test_a_method_that_declares_nothing_gets_training_and_statistics_alone() -> None:
    for what in ("training", "statistic"):
        fedcl.run(asked(what))
        assert len(asking.RECEIVED) == 1 and asking.RECEIVED[0].metrics == {}
    for what, program in (("own", "train"), ("remember", "train"), ("mean", "mean")):
        with pytest.raises(ExposureError, match=f"program '{program}' is no plain local training"):
            fedcl.run(asked(what))
    with pytest.raises(ExposureError, match="lets clients remember something"):
        fedcl.run(asked("remember", "own"))
    fedcl.run(asked("own", "own"))
    fedcl.run(asked("remember", "kept"))


def test_methods_say_no_for_options_that_are_not_covered() -> None:
    for changes, reason in (
        ({"method.name": "replay", "method.selection": "herding"}, 'take "random" or "reservoir"'),
        ({"method.name": "replay", "method.selection": "balanced"}, "what other examples hold"),
        ({"method.name": "fot", "method.gpse": "sketch"}, 'gpse = "gram"'),
        ({"method.name": "fot", "method.eps_rule": "paper_code"}, 'eps_rule = "energy"'),
    ):
        with pytest.raises(ExposureError, match=reason):
            private(changes)
    private({"method.name": "replay", "method.selection": "reservoir"})


# --- Channels and other units. ---


def test_steps_that_read_examples_and_noise_of_two_kinds_are_refused() -> None:
    with pytest.raises(ExposureError, match=r"channel\[0\]\] adds what it reads off"):
        tiny({**EVEN, "training.local": DP}, channel=[{"name": "head_owners"}])
    step = {"name": "central_dp", "noise": "seeded"}
    with pytest.raises(ConfigError, match="must be of one kind"):
        tiny({**EVEN, "training.local": DP, "training.sampling": "poisson"}, channel=[step])


def test_other_steps_are_shown_no_example(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def upload(step: Any, reply: Reply, client: Client, sending: Sending) -> Reply:
        seen.append((len(client.data), client.state, dict(reply.metrics)))
        return reply

    monkeypatch.setattr(SecureAggregation, "upload", upload)
    local = {"training.local": DP, "evaluation.every": 0}
    fedcl.run(tiny({**EVEN, **local}, channel=[{"name": "secure_aggregation"}]))
    assert seen and set(map(str, seen)) == {"(0, None, {})"}


def test_clients_and_their_records_have_an_epsilon_each(tmp_path: Path) -> None:
    step = {"name": "central_dp", "noise_multiplier": 1.0}
    changes = {**EVEN, "training.local": DP, "training.sampling": "poisson"}
    summary = fedcl.run(tiny(changes, channel=[step]), tmp_path / "run").summary
    units = summary["epsilon_by_unit"]
    client = [epsilon([Charge(1.0, 3 / 5, times)], 1e-5) for times in (4, 2, 1)]
    found = [units[name] for name in ("client", "client_task", "client_round")]
    assert found == pytest.approx(client, rel=1e-9)
    assert summary["privacy_unit"] == "client" and summary["epsilon"] == units["client"]
    assert summary["epsilon_by_stage"][0] == units["client_task"] < units["client"]
    asked = epsilon([Charge(2.0, 8 / 16, 4)], 1e-5)
    assert 0 < units["record"] <= asked * (1 + 1e-9)
    rows = read_csv(tmp_path / "run" / "privacy.csv")
    assert {row["unit"] for row in rows if row["channel"] == "all"} == {"client", "record"}
    text = write_report(tmp_path / "run").read_text(encoding="utf-8")
    for word in ("client_task", "record", "poisson", "Neighbouring runs"):
        assert word in text, word


def test_seeded_noise_claims_nothing_and_secret_noise_is_nobodys() -> None:
    runs = [fedcl.run(private(noise=noise)) for noise in ("seeded", "seeded", "secret", "secret")]
    assert same(dict(runs[0].params), dict(runs[1].params))
    assert distance(runs[2].params, runs[3].params) > 1e-3
    assert (runs[0].summary["epsilon"], runs[0].summary["noise"]) == (None, "seeded")
    assert runs[0].summary["epsilon_by_unit"] is None


# --- T3 through the real server. ---


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, 1e30, 1e-30, 50.0])
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_no_record_changes_a_statistics_sum_by_more_than_the_clip(
    value: float, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = []
    original = Simulated.client
    for present in (True, False):

        def client(
            own: Simulated, id: int, *rest: Any, present: bool = present, **more: Any
        ) -> Client:
            built = original(own, id, *rest, **more)
            if id:
                return built
            x = built.data.x.clone()
            x[3] = value
            data = Examples(x, built.data.y, built.data.extra)
            left = torch.tensor([k for k in range(len(x)) if present or k != 3])
            return replace(built, data=data.take(left))

        monkeypatch.setattr(Simulated, "client", client)
        experiment = asked("statistic", noise="seeded", clips={"gram": 0.3})
        fedcl.run(replace(experiment, engine=tiny({"engine.name": engine}).engine))
        totals.append(asking.RECEIVED[0])
    names = totals[0].total
    moved = norm({k: v - totals[1].total[k] for k, v in names.items()})
    assert moved <= 0.3 * (1 + 1e-6)
    assert totals[0].noise == pytest.approx(2.0 * 0.3 * math.sqrt(5))
    if value == 50.0:
        assert moved > 0.3 * (1 - 1e-5)


@pytest.mark.parametrize("name", ["fot", "replay"])
def test_batched_engines_charge_and_learn_as_the_loop(name: str) -> None:
    changes = {"method.name": name, "training.dtype": "float64", "training.cohort": 0}
    runs = [
        fedcl.run(
            replace(private(changes, noise="seeded"), engine=tiny({"engine.name": engine}).engine)
        )
        for engine in ("serial", "vectorized")
    ]
    assert distance(runs[0].params, runs[1].params) < 1e-9


# --- Another accountant. ---


@pytest.mark.parametrize("steps", [1, 25])
def test_opacus_bounds_the_same_training_a_little_above(steps: int) -> None:
    """Its accountant adds an error of 0.01 to what it found, to be sure."""
    spent = {0: Spent(1.0, 0.25, steps)}
    events = [RecordEvent(0, number, 0, 0, "train", grouped(spent)) for number in range(4)]
    ours = RecordLedger(events={one.place: [one] for one in events}).epsilon(1e-5)
    theirs = PRVAccountant()
    theirs.history = [(1.0, 0.25, 4 * steps)]
    assert ours <= theirs.get_epsilon(delta=1e-5) <= ours + 0.02
