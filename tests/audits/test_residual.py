"""The noise of a real run's releases is tested, and noise that is wrong is found."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedcl
import fedcl.core.release
from fedcl.config import parse
from fedcl.core.errors import ConfigError
from fedcl.core.privacy.noise import gaussian


def private(**others: Any) -> dict[str, Any]:
    return {
        "seed": 1,
        "dataset": {"name": "synthetic", "features": [30], "classes": 4, "train": 60, "test": 20},
        "stream": {"name": "class_incremental", "tasks": 2, "clients": 4},
        "model": {"name": "mlp", "hidden": [200]},
        "method": {"name": "fedavg"},
        "training": {"rounds": 3},
        "engine": {"name": "serial"},
        "evaluation": {"every": 0},
        "channel": [{"name": "central_dp", "noise": "seeded", "noise_multiplier": 1.3}],
        "audit": [{"name": "residual"}],
        **others,
    }


def found(table: dict[str, Any], out: Path | None = None) -> dict[str, Any]:
    audits: dict[str, Any] = fedcl.run(parse(table), out).summary["audits"]["residual"]
    return audits


def test_the_noise_of_a_correct_run_is_as_promised(tmp_path: Path) -> None:
    numbers = found(private(), tmp_path / "run")
    assert not numbers["failed"] and numbers["releases"] == 6
    assert numbers["noise_over_promised"] == pytest.approx(1.0, abs=0.01)
    text = (tmp_path / "run" / "audit" / "residual.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    # All together and four tensors, of six releases; two p-values each, 15 pairs, and one for all.
    assert len(rows) == 6 * 5 and numbers["tests"] == 2 * 30 + 15 + 1
    assert {row["program"] for row in rows} == {"train"}
    assert [int(row["numbers"]) for row in rows[:5]] == [7004, 6000, 200, 800, 4]


def test_false_alarms_are_as_seldom_as_stated() -> None:
    level = 0.2
    alarms = sum(
        found(private(seed=seed, audit=[{"name": "residual", "level": level}]))["failed"]
        for seed in range(40)
    )
    assert alarms <= 15, "more than 15 of 40 come once in 500 times at 0.2"


Noise = Callable[..., Tensor]


def half(*place: Any) -> Tensor:
    return 0.5 * gaussian(*place)


def little_less(*place: Any) -> Tensor:
    return 0.97 * gaussian(*place)


def none(*place: Any) -> Tensor:
    return 0.0 * gaussian(*place)


def same(root: bytes, shape: Any, scale: float, *place: Any) -> Tensor:
    return gaussian(root, shape, scale, place[-1])


def flat(root: bytes, shape: Any, scale: float, *place: Any) -> Tensor:
    """Uniform noise of equal variance, whose size alone tells nothing."""
    ranks = torch.special.ndtr(gaussian(root, shape, 1.0, *place))
    found: Tensor = scale * 12**0.5 * (ranks - 0.5)
    return found


def skipped(root: bytes, shape: Any, scale: float, *place: Any) -> Tensor:
    return gaussian(root, shape, scale, *place) * (place[1:3] != (1, 1))


def one_tensor(root: bytes, shape: Any, scale: float, *place: Any) -> Tensor:
    return gaussian(root, shape, scale, *place) * (len(shape) > 1 or shape[0] != 4)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (half, "tensors differ"),
        (little_less, "all noise together"),
        (none, "tensors differ"),
        (same, "pairs of releases share noise"),
        (flat, "tensors differ"),
        (skipped, "stage 1, round 1"),
        (one_tensor, "tensors differ"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_noise_that_is_wrong_is_found(
    broken: Noise, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedcl.core.release, "gaussian", broken)
    numbers = found(private())
    assert numbers["failed"] and words in numbers["note"]


def test_of_many_releases_some_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [{"name": "residual", "releases": 4, "coordinates": 500}]
    assert found(private(audit=few))["tests"] == 2 * 30 + 6 + 1
    monkeypatch.setattr(fedcl.core.release, "gaussian", same)
    assert "share noise" in found(private(audit=few))["note"]


def test_where_nothing_is_noised_there_is_nothing_to_test() -> None:
    with pytest.raises(ConfigError, match=r"\[audit\[0\]\] no step of \[\[channel\]\] adds noise"):
        fedcl.run(parse(private(channel=[])))
    bare = [{"name": "central_dp", "noise_multiplier": 0.0}]
    with pytest.raises(ConfigError, match="no noise to test"):
        fedcl.run(parse(private(channel=bare)))
    for wrong in ({"level": 0.7}, {"releases": 1}):
        with pytest.raises(ConfigError, match="must"):
            parse(private(audit=[{"name": "residual", **wrong}]))
