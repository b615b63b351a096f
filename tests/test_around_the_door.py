"""Ways around the privacy claim that were looked for: each is closed, or the report names it."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import fedcl
from fedcl.channels.central_dp import CentralDp
from fedcl.config import available
from fedcl.core import release
from fedcl.core.accounting.composition import Charge, epsilon
from fedcl.core.accounting.ledger import Draw, Event, charges
from fedcl.core.errors import ConfigError, ExposureError, ResumeError
from fedcl.core.population import sample
from fedcl.core.privacy.noise import gaussian
from fedcl.ledgerfile import LedgerFile, opened_ledger
from tests import sly
from tests.tiny import Interrupted, interrupt_after, read_csv, same, tiny

POISSON = {"training.sampling": "poisson"}
METHODS = Path(fedcl.__file__).parent / "methods"


def private(changes: Mapping[str, Any] | None = None, **options: Any) -> fedcl.Experiment:
    step = {"name": "central_dp", "noise_multiplier": 0.5, **options}
    return tiny({**POISSON, "evaluation.every": 0, **(changes or {})}, channel=[step])


def tricked(trick: str, changes: Mapping[str, Any] | None = None, **options: Any) -> fedcl.Record:
    sly.KEPT.clear()
    method = {"method.name": "tests.sly:Sly", "method.trick": trick}
    return fedcl.run(private({**method, **(changes or {})}, **options))


# --- What a method sees. ---


@pytest.mark.parametrize("trick", ["cohort", "size"])
def test_who_was_drawn_is_no_ones_business(trick: str) -> None:
    with pytest.raises(ExposureError, match="who was drawn is a secret"):
        tricked(trick)
    for sampling in ("fixed", "round_robin"):  # credited nothing for, or public
        tricked(trick, {"training.sampling": sampling})


@pytest.mark.parametrize("name", ["fot", "kron"])
def test_statistics_of_the_cohort_are_charged_with_its_round(name: str) -> None:
    changes = {"method.name": name, "method.statistics_clients": "cohort"}
    # Three of the four releases in a stage share one of the two draws.
    summary = fedcl.run(private(changes, noise_multiplier=4.0)).summary
    once, twice = Charge(4.0, 0.6, 2), Charge(4.0 / math.sqrt(2), 0.6, 2)
    assert summary["epsilon"] == pytest.approx(epsilon([once, twice], 1e-5), rel=1e-9)


def test_no_method_reaches_behind_the_door() -> None:
    for file in METHODS.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                assert own or node.attr.startswith("__"), f"{file.name}: {node.attr}"


# --- One release a place. ---


def test_the_door_of_another_round_gives_nothing() -> None:
    """It would release another sum with the same noise, and nobody would be charged for it."""
    with pytest.raises(ConfigError, match="second release at stage 0, round 0, exchange 0"):
        tricked("stale")


def test_a_method_cannot_have_a_round_again() -> None:
    with pytest.raises(ConfigError, match="second release at stage 0, round 0, exchange 0"):
        tricked("again", {"training.shortfall": "repeat"})


# --- Charges of clients in turns. ---


@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_clients_in_turns_are_charged_for_all_of_their_turns(every: int, size: int) -> None:
    """The slow way: whoever is asked most often, in rounds that a method leaves out between."""
    rounds, members = 12, 6
    for stage, offset in ((0, 0), (1, 0), (1, 1)):
        numbers = range(offset, rounds, every)
        cohorts = (
            sample(range(members), size, "round_robin", 0, stage * rounds + k) for k in numbers
        )
        most = max(Counter(chain.from_iterable(cohorts)).values())
        draws = (Draw("round_robin", members, size, number) for number in numbers)
        events = [Event(stage, d.number, 0, "train", 1.0, 1.0, d) for d in draws]
        (charge,) = charges(events)
        assert most <= charge.times <= len(events)
        if every == 1:
            assert charge.times == math.ceil(rounds * size / members)


def test_a_method_that_asks_seldom_is_charged_for_the_same_client_each_time() -> None:
    changes = {"method.every": 2, "stream.clients": 2, "training.cohort": 1, "training.rounds": 8}
    record = tricked("seldom", {**changes, "training.sampling": "round_robin"})
    # Of two clients in turns every second round asks the same one: four times in each stage.
    assert record.summary["epsilon"] == pytest.approx(epsilon([Charge(0.5, 1.0, 8)], 1e-5))


# --- What survives. ---


def test_a_run_that_has_lost_its_ledger_does_not_go_on(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fedcl.run(private(), tmp_path / "run", watch=interrupt_after(3))
    (tmp_path / "run" / "checkpoint" / "ledger.sqlite").unlink()
    with pytest.raises(ResumeError, match="has lost releases"):
        fedcl.run(private(), tmp_path / "run", resume=True)


def test_noise_is_not_used_again_for_another_config(tmp_path: Path) -> None:
    """Nothing is committed yet, so the run would begin anew, with the noise of the first one."""
    slow = {"checkpoint.seconds": 1000}

    def kill(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fedcl.run(private(slow), tmp_path / "run", watch=kill)
    with pytest.raises(ResumeError, match=r"ledger.* another config: training\.local\.lr was"):
        fedcl.run(private({**slow, "training.local.lr": 0.1}), tmp_path / "run", resume=True)
    fedcl.run(private(), tmp_path / "run", resume=True)  # what changes no result may change


def test_a_crash_between_charge_and_release_costs_once_and_repeats_the_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[tuple[Any, ...], Any] = {}

    def crash(root: bytes, shape: Any, scale: float, *place: Any) -> Any:
        if place[1:3] == (1, 0) and len(drawn) < 100:
            drawn.update({(*place, k): None for k in range(100)})
            raise Interrupted
        return gaussian(root, shape, scale, *place)

    monkeypatch.setattr(release, "gaussian", crash)
    with pytest.raises(Interrupted):
        fedcl.run(private(), tmp_path / "run")
    file = LedgerFile(tmp_path / "run" / "checkpoint")
    before, root = dict(file.events()), file.root()
    file.close()
    assert list(before) == [(0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0)], "charged, not released"
    whole = fedcl.run(private(), tmp_path / "run", resume=True)
    file = LedgerFile(tmp_path / "run" / "checkpoint")
    assert len(file.events()) == 4 and file.root() == root
    written = file._db.execute("SELECT COUNT(*) FROM events").fetchone()
    file.close()
    assert written == (4,), "each is written once"
    assert whole.summary["epsilon"] == pytest.approx(epsilon([Charge(0.5, 0.6, 4)], 1e-5))


def test_what_was_sent_bare_stays_bare_after_a_resume(tmp_path: Path) -> None:
    protection = CentralDp().mechanism
    with opened_ledger(tmp_path, protection, 0) as (_, ledger):
        ledger.uncharged("gram")
    with opened_ledger(tmp_path, protection, 0) as (_, ledger):
        assert ledger.bare == {"gram"} and ledger.epsilon(1e-5) == math.inf


# --- What one client can change, on the path that batches clients. ---


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("lr", [0.2, 50.0, 1e30])
def test_engines_that_batch_clients_clip_each_of_them(
    engine: str, lr: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"stream.tasks": 1, "training.rounds": 1, "training.cohort": 0}
    changes |= {"engine.name": engine, "training.local.lr": lr, "training.dtype": "float64"}
    experiment = private(changes, noise="seeded", clip=0.3)
    present = fedcl.run(experiment).params
    right = CentralDp.upload

    def without(self: CentralDp, reply: Any, client: Any, sending: Any) -> Any:
        found = right(self, reply, client, sending)
        if client.id == 2:
            for value in found.tensors.values():
                value.zero_()
        return found

    monkeypatch.setattr(CentralDp, "upload", without)
    absent = fedcl.run(experiment).params
    # Parameters move by the mean over five clients.
    change = torch.cat([5 * (present[name] - absent[name]).flatten() for name in present])
    assert float(change.norm()) <= 0.3 * (1 + 1e-6)
    if lr < 1e9:
        assert float(change.norm()) > 0.3 * (1 - 1e-6)


@pytest.mark.parametrize("name", [n for n in available("aggregations") if n != "mean"])
def test_rules_whose_sums_no_clip_bounds_are_refused(name: str) -> None:
    with pytest.raises((ConfigError, ExposureError), match=name):
        private({"aggregation.name": name})


# --- What the report names. ---


def test_what_is_assumed_stands_in_the_report(tmp_path: Path) -> None:
    fedcl.run(private(delta=0.2), tmp_path / "run")
    rows = {row["channel"]: row for row in read_csv(tmp_path / "run" / "privacy.csv")}
    for name in ("members", "label space", "task borders", "form", "other runs", "delta"):
        assert rows[name]["mechanism"] == "not covered" and rows[name]["epsilon"] == "inf", name
    assert "one of 5 clients" in rows["delta"]["note"]
    fedcl.run(private(delta=0.1), tmp_path / "lower")
    assert "delta" not in {row["channel"] for row in read_csv(tmp_path / "lower" / "privacy.csv")}


def test_rows_of_costs_and_evaluations_tell_more_than_releases(tmp_path: Path) -> None:
    """They are the simulator's own view; nothing in them may be taken for private."""
    run = tmp_path / "run"
    first, second = (fedcl.run(private(), run / str(k)) for k in range(2))
    assert not same(dict(first.params), dict(second.params))
    asked = [
        [row["bytes"] for row in read_csv(run / str(k) / "costs.csv") if row["direction"] == "down"]
        for k in range(2)
    ]
    # The bytes that went down count the cohort, which is a secret: `docs/privacy.md` says so.
    assert len({size for sizes in asked for size in sizes}) > 1


def test_no_count_of_clients_decides_what_is_released(tmp_path: Path) -> None:
    """A secure sum of too few is withheld, but under a mechanism that would tell their number."""
    changes = {**POISSON, "training.cohort": 1, "training.rounds": 8, "evaluation.every": 0}
    channel = [{"name": "central_dp", "noise": "seeded"}, {"name": "secure_aggregation"}]
    record = fedcl.run(tiny(changes, channel=channel), tmp_path / "run")
    assert record.summary["skipped_or_repeated_rounds"] == []
    file = LedgerFile(tmp_path / "run" / "checkpoint")
    assert len(file.events()) == 16, "each round is released, whoever was drawn"
    file.close()
