"""T15: replies that do not fit are named and left out, and the sum is that of the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import fedcl
from fedcl.core.attacks.adversary import Adversary
from fedcl.core.attacks.lies import Attackers, alie_factor
from fedcl.core.client import Model, Reply
from fedcl.core.errors import ClientError, ConfigError, FedclError
from fedcl.core.guard import fault, majority
from fedcl.core.local import Local, cross_entropy
from fedcl.core.request import Answer, Position, Request
from tests.test_watching import LOOKS, Look
from tests.tiny import Interrupted, assert_same_folders, interrupt_after, read_csv, same, tiny

# What attackers send, and what the server says of it.
UNFIT = {
    "nan": "NaN or infinity",
    "one_nan": "NaN or infinity",
    "inf": "NaN or infinity",
    "shape": "has shape",
    "broadcast": r"has shape \(1,\)",
    "huge": "has shape",
    "integers": "has type",
    "missing": "has no tensor",
    "extra": "nobody asked for",
    "permuted": "has shape",
    "heavy": r"weight 1e\+09",
    "negative_weight": "weight -1000",
    "nan_weight": "weight nan",
    "nan_metric": "metrics",
}
LARGE = {"sign_flip": 10.0, "scale": 1e6}
ONE = {"stream.tasks": 1, "training.rounds": 1, "training.cohort": 0, "training.fold": 4}
DP: dict[str, Any] = {
    "name": "central_dp",
    "clip": 0.05,
    "noise_multiplier": 0.5,
    "noise": "seeded",
}
RULES = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan")
LOOKING = {"name": "tests.test_watching:Looker", "replies": False}


def hostile(attack: str, changes: Mapping[str, Any] | None = None, **own: Any) -> fedcl.Experiment:
    table = {"attack": attack, "clients": [0], "clipped": False, **own}
    tables: dict[str, Any] = {"replies": {"bad": "reject"}, "adversary": table}
    channel = (changes or {}).get("channel")
    if channel:
        tables["channel"] = channel
    rest = {key: value for key, value in (changes or {}).items() if key != "channel"}
    return tiny({**ONE, **rest}, **tables)


@pytest.fixture(scope="module")
def without() -> Mapping[str, torch.Tensor]:
    """The model of a run whose first client never gets through."""
    return dict(fedcl.run(hostile("missing")).params)


@pytest.mark.parametrize("attack", UNFIT)
def test_a_reply_that_does_not_fit_is_named_and_left_out(
    attack: str, without: Mapping[str, torch.Tensor], tmp_path: Path
) -> None:
    record = fedcl.run(hostile(attack), tmp_path / "run")
    (row,) = read_csv(tmp_path / "run" / "rejected.csv")
    assert (row["client"], row["program"], row["stage"]) == ("0", "train", "0")
    assert re.search(UNFIT[attack], row["reason"]), row["reason"]
    assert record.summary["rejected_replies"] == 1
    assert same(dict(record.params), dict(without))
    assert all(bool(torch.isfinite(value).all()) for value in record.params.values())


def test_what_is_left_is_to_the_bit_the_mean_of_the_others(
    without: Mapping[str, torch.Tensor],
) -> None:
    """By hand, of the replies that an honest run of the same clients reveals."""
    from fedcl.core.channel import combine, fold
    from fedcl.core.params import add
    from tests.tiny import first_parameters, watched

    experiment = tiny(ONE, replies={"bad": "reject"})
    _, engine = watched(experiment)
    replies = [reply for result in engine.results for reply in result.replies or ()][1:]
    mean = combine([fold(replies[:4], False), fold(replies[4:], False)]).mean
    assert len(replies) == 4 and same(dict(add(first_parameters(experiment), mean)), dict(without))


@pytest.mark.parametrize("attack", LARGE)
def test_a_bound_on_the_norm_leaves_out_what_is_too_large(
    attack: str, without: Mapping[str, torch.Tensor]
) -> None:
    experiment = tiny(
        ONE,
        replies={"bad": "reject", "norm": 3.0},
        adversary={"attack": attack, "clients": [0], "strength": LARGE[attack]},
    )
    record = fedcl.run(experiment)
    assert record.summary["rejected_replies"] == 1 and same(dict(record.params), dict(without))


def test_a_second_answer_does_not_count() -> None:
    record = fedcl.run(hostile("duplicate"))
    honest = fedcl.run(tiny(ONE, replies={"bad": "reject"}))
    assert record.summary["rejected_replies"] == 1
    assert same(dict(record.params), dict(honest.params))


@pytest.mark.parametrize("attack", [*UNFIT, *LARGE])
def test_under_differential_privacy_a_rejected_reply_counts_as_zeros(attack: str) -> None:
    """The divisor is public: the rest of the sum, and the noise, are as if zeros had come."""
    changes = {"channel": [DP], "training.sampling": "poisson"}
    record = fedcl.run(hostile(attack, changes, strength=LARGE.get(attack, 0.0)))
    zeros = fedcl.run(hostile("ipm", changes, strength=1e-300))
    assert record.summary["rejected_replies"] == 1
    assert zeros.summary["rejected_replies"] == 0
    for name, value in zeros.params.items():
        torch.testing.assert_close(record.params[name], value, rtol=0, atol=1e-7)


# --- Under every way to combine replies. ---

SERVERS: Mapping[str, Mapping[str, Any]] = {
    "equal mean": {"aggregation": {"name": "mean", "weights": "equal"}},
    "norm bounded": {"replies": {"bad": "reject", "norm": 50.0}},
    "central_dp": {"channel": [DP]},
    **{rule: {"aggregation": {"name": rule}} for rule in RULES},
}
EIGHT = {"stream.clients": 8, "dataset.train": 200, "evaluation.every": 0, "evaluation.clients": 0}


def eight(attack: str, server: str) -> tuple[fedcl.Record, Look]:
    """Runs eight clients, the first of which attacks, before a server that is looked at."""
    changes = {**ONE, **EIGHT, "training.fold": 16}
    tables = {"replies": {"bad": "reject"}, **SERVERS[server], "audit": [LOOKING]}
    adversary = {"attack": attack, "clients": [0], "clipped": False}
    record = fedcl.run(tiny(changes, adversary=adversary, **tables))
    return record, LOOKS[-1]


@pytest.fixture(scope="module")
def others() -> Mapping[str, tuple[fedcl.Record, Look]]:
    """What each server makes of the seven others."""
    return {server: eight("missing", server) for server in SERVERS}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("attack", [*UNFIT, "duplicate"])
def test_every_server_names_who_does_not_fit_and_goes_on_with_the_rest(
    attack: str, server: str, others: Mapping[str, tuple[fedcl.Record, Look]]
) -> None:
    record, look = eight(attack, server)
    (exchange,) = look.exchanges
    assert list(exchange.rejected) == [0] and record.summary["rejected_replies"] == 1
    assert re.search({**UNFIT, "duplicate": "twice"}[attack], exchange.rejected[0])
    assert all(bool(torch.isfinite(value).all()) for value in record.params.values())
    assert record.summary["skipped_or_repeated_rounds"] == []
    if attack == "duplicate":
        assert exchange.answered == tuple(range(8))
        return
    assert exchange.answered == tuple(range(1, 8))
    rest, known = others[server]
    assert same(dict(record.params), dict(rest.params)), "to the bit as without it"
    for release, other in zip(look.releases, known.releases, strict=True):
        assert release.mechanism == other.mechanism and release.scale == other.scale
        assert same(dict(release.clean), dict(other.clean))


@pytest.mark.parametrize("attack", ["sign_flip", "scale", "gaussian", "alie", "ipm", "min_max"])
def test_whatever_fits_changes_a_protected_sum_by_no_more_than_the_clip(
    attack: str, others: Mapping[str, tuple[fedcl.Record, Look]]
) -> None:
    """T15: attackers that keep to the bound, and the sum of all others beside it."""
    changes = {**ONE, **EIGHT, "training.fold": 16}
    tables = {"replies": {"bad": "reject"}, "channel": [DP], "audit": [LOOKING]}
    adversary = {"attack": attack, "clients": [0], "strength": 1e3, "omniscient": True}
    fedcl.run(tiny(changes, adversary=adversary, **tables))
    (release,), (other,) = LOOKS[-1].releases, others["central_dp"][1].releases
    parts = [(release.clean[k] - v).double().flatten() for k, v in other.clean.items()]
    size = float(torch.cat(parts).norm())
    assert 0.9 * DP["clip"] < size <= DP["clip"] * (1 + 1e-6)
    assert release.mechanism.sensitivity == other.mechanism.sensitivity == DP["clip"]


@pytest.mark.parametrize("attack", ["nan", "heavy"])
def test_these_tests_would_notice_a_guard_that_finds_nothing(
    attack: str,
    others: Mapping[str, tuple[fedcl.Record, Look]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for judge in ("fault", "beyond"):
        monkeypatch.setattr(f"fedcl.core.guard.{judge}", lambda *judged: None)
    _, look = eight(attack, "central_dp")
    assert look.exchanges[0].rejected == {}
    (release,), (other,) = look.releases, others["central_dp"][1].releases
    parts = [(release.clean[k] - v).double().flatten() for k, v in other.clean.items()]
    assert not float(torch.cat(parts).norm()) <= DP["clip"] * (1 + 1e-6)


def test_by_default_a_reply_that_does_not_fit_ends_the_run() -> None:
    experiment = tiny(ONE, adversary={"attack": "nan", "clients": [0]})
    with pytest.raises(ClientError, match=r"client 0 .* training diverged: lower"):
        fedcl.run(experiment)


def test_a_run_without_a_fitting_reply_ends_with_a_message() -> None:
    changes = {"training.rounds": 30}
    with pytest.raises(FedclError, match=r"no reply of the last 20 exchanges .* NaN or infinity"):
        fedcl.run(hostile("nan", changes, clients=[], share=1.0))


def test_judging_honest_replies_changes_nothing() -> None:
    judged, plain = (fedcl.run(tiny(replies={"bad": how})).params for how in ("reject", "stop"))
    assert same(dict(judged), dict(plain))


@pytest.mark.parametrize("engine", [{"name": "vectorized"}, {"name": "vectorized", "block": 2}])
def test_batched_engines_reject_the_same_replies(engine: dict[str, Any]) -> None:
    batched = fedcl.run(hostile("one_nan", {"engine": engine}))
    loop = fedcl.run(hostile("one_nan"))
    assert batched.summary["rejected_replies"] == loop.summary["rejected_replies"] == 1
    for name, value in loop.params.items():
        torch.testing.assert_close(batched.params[name], value, rtol=0, atol=1e-5)


def test_a_resumed_run_knows_what_it_rejected(tmp_path: Path) -> None:
    more = {"training.rounds": 2, "stream.tasks": 2}
    fedcl.run(hostile("nan", more), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fedcl.run(hostile("nan", more), tmp_path / "halves", watch=interrupt_after(2))
    fedcl.run(hostile("nan", more), tmp_path / "halves", resume=True)
    assert_same_folders(tmp_path / "whole", tmp_path / "halves")
    files = [tmp_path / name / "rejected.csv" for name in ("whole", "halves")]
    assert files[0].read_text() == files[1].read_text() and len(read_csv(files[0])) == 4


# --- By hand. ---


def test_the_form_is_that_of_more_than_half() -> None:
    a, b = Reply({"a": torch.zeros(2)}), Reply({"a": torch.zeros(3)})
    form = majority([b, a, a])
    assert form is not None and fault(a, form, 0.0, 9.0) is None
    assert "shape (3,), not (2,)" in str(fault(b, form, 0.0, 9.0))
    assert majority([a, b]) is None and "majority" in str(fault(a, None, 0.0, 9.0))


def lie(attack: str, values: list[float], **own: Any) -> list[float]:
    """Returns what four clients send, the first two of which attack."""
    answers = [Answer(id, Reply({"u": torch.tensor([v])})) for id, v in enumerate(values)]
    adversary = Adversary(attack, clients=(0, 1), **own)  # type: ignore[arg-type]
    request = Request(Position(0, 0, 0), Local(cross_entropy), Model({}))
    found = Attackers(adversary, 4, 0).act(request, answers, 0.0)
    return [float(answer.reply.tensors["u"]) for answer in found]


def test_attacks_follow_their_formulas() -> None:
    values = [1.0, 3.0, 5.0, 9.0]
    assert lie("sign_flip", values) == [-1.0, -3.0, 5.0, 9.0]
    assert lie("scale", values, strength=10.0) == [10.0, 30.0, 5.0, 9.0]
    assert lie("ipm", values)[:2] == [-1.0, -1.0]  # -0.5 of the mean 2
    assert lie("ipm", values, omniscient=True)[:2] == [-2.25, -2.25]
    assert lie("alie", values, strength=1.5)[:2] == [0.5, 0.5]  # 2 - 1.5 * 1
    # As far below 3 as 3 is above 1: the deviation 1 taken once.
    assert lie("min_max", values)[:2] == pytest.approx([1.0, 1.0])
    assert lie("sign_flip", values, first=1) == values


def test_the_factor_of_a_little_is_enough() -> None:
    """The paper's own example: 50 workers of which 24 are corrupted need s = 2."""
    from statistics import NormalDist

    assert alie_factor(50, 24) == pytest.approx(NormalDist().inv_cdf(24 / 26))


def test_impossible_attackers_are_refused() -> None:
    with pytest.raises(ConfigError, match="nobody attacks"):
        tiny(adversary={"attack": "nan"})
    with pytest.raises(ConfigError, match=r"names \[7\]"):
        fedcl.run(tiny(adversary={"attack": "nan", "clients": [7]}))
