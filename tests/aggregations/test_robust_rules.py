"""Krum, Multi-Krum and Bulyan: against their formulas written out, and against attackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import fedcl
from fedcl.aggregations.bulyan import Bulyan
from fedcl.aggregations.krum import Krum
from fedcl.aggregations.mean import Mean
from fedcl.aggregations.median import Median
from fedcl.aggregations.multi_krum import MultiKrum
from fedcl.aggregations.trimmed_mean import TrimmedMean
from fedcl.core.aggregation import Aggregation
from fedcl.core.attacks.adversary import Adversary, Attack
from fedcl.core.attacks.lies import Attackers
from fedcl.core.client import Model, Reply
from fedcl.core.errors import ConfigError, ExposureError, FedclError
from fedcl.core.local import Local, cross_entropy
from fedcl.core.params import Params
from fedcl.core.request import Answer, Position, Request
from tests.tiny import same, tiny

RULES = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan")
SHAPES = {"weight": (3, 4), "bias": (3,), "scale": ()}


def replies(count: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Params]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {k: torch.randn(s, generator=generator, dtype=dtype) for k, s in SHAPES.items()}
        for _ in range(count)
    ]


def flat(reply: Mapping[str, torch.Tensor]) -> list[float]:
    return [float(number) for value in reply.values() for number in value.flatten()]


# The formulas, number by number.


def krum_scores(vectors: Sequence[Sequence[float]], f: int) -> list[float]:
    """Sum over the n - f - 2 nearest others of |u_i - u_j|^2 (PRIVACY: Blanchard et al.)."""
    n, scores = len(vectors), []
    for i in range(n):
        away = [
            sum((a - b) ** 2 for a, b in zip(vectors[i], vectors[j], strict=True))
            for j in range(n)
            if j != i
        ]
        scores.append(sum(sorted(away)[: n - f - 2]))
    return scores


def best(vectors: Sequence[Sequence[float]], f: int, count: int) -> list[Sequence[float]]:
    scores = krum_scores(vectors, f)
    return [vectors[i] for i in sorted(range(len(vectors)), key=scores.__getitem__)[:count]]


def slow_krum(vectors: list[list[float]], f: int) -> list[float]:
    return list(best(vectors, f, 1)[0])


def slow_multi_krum(vectors: list[list[float]], f: int) -> list[float]:
    kept = best(vectors, f, len(vectors) - f - 2)
    return [sum(column) / len(kept) for column in zip(*kept, strict=True)]


def slow_bulyan(vectors: list[list[float]], f: int) -> list[float]:
    found = []
    for column in zip(*best(vectors, f, len(vectors) - 2 * f), strict=True):
        middle = float(np.median(column))
        closest = sorted(column, key=lambda value: abs(value - middle))[: len(vectors) - 4 * f]
        found.append(sum(closest) / len(closest))
    return found


def slow_median(vectors: list[list[float]], f: int) -> list[float]:
    found = []
    for column in zip(*vectors, strict=True):
        ordered, n = sorted(column), len(column)
        found.append((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)
    return found


def slow_trimmed(vectors: list[list[float]], f: int) -> list[float]:
    cut = int(0.2 * len(vectors))
    kept = [sorted(column)[cut : len(vectors) - cut] for column in zip(*vectors, strict=True)]
    return [sum(column) / len(column) for column in kept]


FORMULAS: list[tuple[Callable[[int], Aggregation], Callable[..., list[float]]]] = [
    (lambda f: Median(), slow_median),
    (lambda f: TrimmedMean(0.2), slow_trimmed),
    (Krum, slow_krum),
    (MultiKrum, slow_multi_krum),
    (Bulyan, slow_bulyan),
]


@pytest.mark.parametrize(("rule", "slow"), FORMULAS, ids=RULES)
@pytest.mark.parametrize("count", [11, 12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rules_follow_their_formulas_in_float64(
    rule: Callable[[int], Aggregation],
    slow: Callable[..., list[float]],
    count: int,
    dtype: torch.dtype,
) -> None:
    for seed in range(5):
        given = replies(count, seed, dtype)
        found = rule(2).combine(given)
        assert {k: tuple(v.shape) for k, v in found.items()} == SHAPES
        assert all(value.dtype == torch.float64 for value in found.values())
        expected = slow([flat(reply) for reply in given], 2)
        assert flat(found) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_krum_looks_at_whole_replies() -> None:
    """Tensor by tensor it would mix replies: 1 is in the middle of a, 2 of b, and 0 of both."""
    a = [0.0, 0.1, 5.0, 9.0, -9.0]
    b = [0.0, 5.0, 0.1, -9.0, 9.0]
    given = [{"a": torch.tensor([x]), "b": torch.tensor([y])} for x, y in zip(a, b, strict=True)]
    found = Krum(1).combine(given)
    assert (float(found["a"]), float(found["b"])) == (0.0, 0.0)


def test_multi_krum_that_keeps_one_is_krum_and_all_is_the_mean() -> None:
    given = replies(9, 0)
    assert same(dict(MultiKrum(2, keep=1).combine(given)), dict(Krum(2).combine(given)))
    everyone, mean = MultiKrum(0, keep=9).combine(given), Mean().combine(given)
    for name, value in mean.items():
        torch.testing.assert_close(everyone[name], value, rtol=1e-12, atol=1e-12)


# The attacks of 2 among 12.


def error(rule: Aggregation, attack: Attack, strength: float) -> float:
    """Returns the aggregate's distance from the honest truth over the truth's length."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(1000, generator=generator, dtype=torch.float64)
    answers = []
    for id in range(12):
        noise = torch.randn(1000, generator=generator, dtype=torch.float64)
        answers.append(Answer(id, Reply({"u": truth + noise})))
    adversary = Adversary(attack, clients=(3, 8) if attack != "none" else (), strength=strength)
    request = Request(Position(0, 0, 0), Local(cross_entropy), Model({}))
    sent = Attackers(adversary, 12, 0).act(request, answers, 0.0)
    found = rule.combine([answer.reply.tensors for answer in sent])["u"]
    return float((found - truth).norm() / truth.norm())


MEASURED: list[tuple[Aggregation, tuple[float, float, float]]] = [
    # Without an attack, a changed sign ten times as large, a million times as large: what was
    # measured of Flower's strategies before (10 honest clients and 2 attackers; of the last mean
    # its size alone).
    (Mean("equal"), (0.31, 1.86, 2e5)),
    (Median(), (0.36, 0.46, 0.42)),
    (TrimmedMean(0.2), (0.31, 0.45, 0.41)),
    (Krum(2), (1.00, 1.00, 1.00)),
    (MultiKrum(2), (0.42, 0.43, 0.43)),
    (Bulyan(2), (0.49, 0.49, 0.50)),
]


@pytest.mark.parametrize(("rule", "expected"), MEASURED, ids=["mean", *RULES])
def test_errors_under_attack_are_about_those_measured_before(
    rule: Aggregation, expected: tuple[float, float, float]
) -> None:
    attacks: list[tuple[Attack, float]] = [("none", 0.0), ("sign_flip", 10.0), ("scale", 1e6)]
    found = [error(rule, *attack) for attack in attacks]
    assert found == pytest.approx(list(expected), rel=0.2)


# In runs.

CLIENTS = {
    "stream.tasks": 1,
    "stream.clients": 8,
    "training.cohort": 0,
    "training.rounds": 3,
    "dataset.train": 320,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_a_run_does_not_follow_an_attacker(rule: str, engine: str) -> None:
    aggregation = {"name": rule, **({"share": 0.2} if rule == "trimmed_mean" else {})}
    attacks = {"adversary": {"attack": "scale", "clients": [2]}}
    changes = {**CLIENTS, "engine.name": engine}
    honest = fedcl.run(tiny(changes, aggregation=aggregation))
    attacked = fedcl.run(tiny(changes, aggregation=aggregation, **attacks))
    mean = fedcl.run(tiny({**changes, "training.rounds": 1}, **attacks))
    size, far = (
        max(float(value.abs().max()) for value in run.params.values()) for run in (attacked, mean)
    )
    assert size < 5 < 1e4 < far
    assert attacked.summary["average_accuracy"] > honest.summary["average_accuracy"] - 0.15


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "channel", [{"name": "central_dp", "noise": "seeded"}, {"name": "secure_aggregation"}]
)
def test_rules_are_refused_where_replies_are_hidden(rule: str, channel: dict[str, Any]) -> None:
    pattern = rf"'{rule}' compares single replies, but \[\[channel\]\] '{channel['name']}' hides"
    with pytest.raises(ExposureError, match=pattern):
        tiny({"aggregation.name": rule}, channel=[channel])


@pytest.mark.parametrize(
    ("rule", "attackers", "needed"),
    [("krum", 1, 5), ("krum", 2, 7), ("multi_krum", 2, 7), ("bulyan", 1, 7)],
)
def test_too_small_a_cohort_is_refused_at_start(rule: str, attackers: int, needed: int) -> None:
    aggregation = {"name": rule, "attackers": attackers}
    few = tiny({**CLIENTS, "training.cohort": needed - 1}, aggregation=aggregation)
    with pytest.raises(ConfigError, match=rf"'{rule}' needs {needed} replies .* {needed - 1} cli"):
        fedcl.run(few)
    fedcl.run(tiny({**CLIENTS, "training.cohort": needed}, aggregation=aggregation))


def test_a_round_with_too_few_replies_is_left_out() -> None:
    """Of five replies one does not fit; Krum with f = 1 promises nothing of four."""
    table = {"attack": "nan", "clients": [0], "first": 0}
    experiment = tiny(
        {"training.cohort": 0, "training.rounds": 2, "stream.tasks": 1},
        replies={"bad": "reject"},
        adversary=table,
        aggregation={"name": "krum"},
    )
    record = fedcl.run(experiment)
    events = record.summary["skipped_or_repeated_rounds"]
    assert [event["what"] for event in events] == ["skipped", "skipped"]
    why = "4 of 5 clients answered; what the rule of [aggregation] needs is 5"
    assert events[0]["why"] == why
    repeated = tiny({**experiment.resolved, "training.shortfall": "repeat"})
    with pytest.raises(FedclError, match="too few clients answered in 20 attempts"):
        fedcl.run(repeated)


def test_the_median_looks_at_one_reply_too() -> None:
    record = fedcl.run(tiny({"training.cohort": 1, "aggregation.name": "median"}))
    assert record.summary["skipped_or_repeated_rounds"] == []


@pytest.mark.parametrize("rule", ["krum", "multi_krum", "bulyan"])
def test_impossible_options_are_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match="attackers must be at least 0"):
        tiny(aggregation={"name": rule, "attackers": -1})


def test_a_hundred_large_replies_are_combined() -> None:
    """100 clients with 200,000 numbers each: distances are one product of matrices."""
    given = [{"u": torch.randn(200_000)} for _ in range(100)]
    found = MultiKrum(10).combine(given)["u"]
    assert found.shape == (200_000,) and bool(torch.isfinite(found).all())


@pytest.mark.parametrize("rule", RULES)
def test_rules_may_see_replies_that_are_private_by_themselves(rule: str) -> None:
    """Under example-level privacy what is made of replies costs nothing more."""
    local = {"name": "dp_sgd", "noise_multiplier": 2.0, "delta": 1e-3, "lr": 0.1}
    changes = {**CLIENTS, "training.rounds": 1, "training.local": local}
    mean = fedcl.run(tiny(changes)).summary
    found = fedcl.run(tiny(changes, aggregation={"name": rule})).summary
    assert found["epsilon"] == pytest.approx(mean["epsilon"]) and 0 < found["epsilon"] < 20
    assert found["privacy_unit"] == mean["privacy_unit"]
