"""Rules that make one reply of many: by hand, and against an attacker in a real run."""

import pytest
import torch
from torch import Tensor

import fedcl
from fedcl.aggregations.mean import Mean
from fedcl.aggregations.median import Median
from fedcl.aggregations.trimmed_mean import TrimmedMean
from fedcl.config import parse
from fedcl.core.aggregation import aggregate
from fedcl.core.channel import fold
from fedcl.core.client import Reply
from fedcl.core.request import BlockResult

TINY = {
    "dataset": {"name": "synthetic", "classes": 3, "features": 6, "train": 120, "test": 60},
    "stream": {"name": "domain_incremental", "tasks": 2, "clients": 5},
    "model": {"name": "mlp", "hidden": [8]},
    "method": {"name": "fedavg"},
    "training": {"rounds": 2, "local": {"name": "sgd", "batch_size": 8}},
    "engine": {"name": "serial"},
}


def blocks(values: list[float], weights: list[float], reveal: bool) -> list[BlockResult]:
    replies = [Reply({"a": torch.tensor([v, -v])}, w) for v, w in zip(values, weights, strict=True)]
    halves = (replies[:2], replies[2:])
    return [
        BlockResult(
            ids=tuple(range(len(half))),
            total=None if reveal else fold(half, equal=False),
            replies=tuple(half) if reveal else None,
            memories={},
            uploaded={},
        )
        for half in halves
    ]


def test_mean_adds_the_blocks_by_weight() -> None:
    total = aggregate(Mean(), blocks([1, 2, 6], [1, 1, 2], reveal=False))
    assert total.mean["a"].tolist() == [3.75, -3.75]
    assert (total.weight, total.count) == (4.0, 3)


@pytest.mark.parametrize(
    ("values", "middle"), [([1, 1000, 6], 6.0), ([1, 2, 4, 1000], 3.0), ([7.0], 7.0)]
)
def test_median_does_not_follow_one_client(values: list[float], middle: float) -> None:
    found = blocks(values, [9.0] * len(values), reveal=True)
    total = aggregate(Median(), found)
    assert total.mean["a"].tolist() == [middle, -middle]
    assert (total.weight, total.count) == (len(values), len(values))


def test_trimmed_mean_leaves_out_both_ends() -> None:
    found = blocks([-1000, 1, 2, 6, 1000], [1.0] * 5, reveal=True)
    assert aggregate(TrimmedMean(0.2), found).mean["a"].tolist() == [3.0, -3.0]
    assert aggregate(TrimmedMean(0.19), found).mean["a"][0].item() == pytest.approx(1.8)


def test_the_sum_of_a_rule_is_its_value_for_everyone() -> None:
    assert aggregate(Median(), blocks([1, 2, 9], [5, 5, 5], reveal=True)).sum["a"][0].item() == 6.0


def run(rule: dict[str, object]) -> dict[str, Tensor]:
    return dict(fedcl.run(parse({**TINY, "aggregation": rule})).params)


def test_a_trimmed_mean_of_everyone_is_the_equal_mean() -> None:
    equal, trimmed = run({"weights": "equal"}), run({"name": "trimmed_mean", "share": 0.0})
    for name, value in equal.items():
        torch.testing.assert_close(trimmed[name], value, rtol=0, atol=1e-6)


def test_the_rule_changes_the_run() -> None:
    mean, median = run({"name": "mean"}), run({"name": "median"})
    assert any(not torch.equal(mean[name], median[name]) for name in mean)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_rules_that_compare_replies_are_refused_where_replies_are_hidden(rule: str) -> None:
    table = {**TINY, "aggregation": {"name": rule}, "channel": [{"name": "secure_aggregation"}]}
    with pytest.raises(fedcl.ExposureError, match=f"'{rule}' compares single replies"):
        parse(table)


def test_rules_that_compare_replies_are_refused_where_the_channel_changes_sums() -> None:
    table = {**TINY, "aggregation": {"name": "median"}, "channel": [{"name": "head_owners"}]}
    with pytest.raises(fedcl.ConfigError, match="changes their sum"):
        parse(table)


def test_half_of_the_clients_cannot_be_left_out() -> None:
    with pytest.raises(fedcl.ConfigError, match="share must lie in"):
        parse({**TINY, "aggregation": {"name": "trimmed_mean", "share": 0.5}})
