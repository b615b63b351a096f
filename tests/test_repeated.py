"""Repeated runs are the run itself but for the seed and the rows left out of everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fedcl
from fedcl.core.audit import Records
from fedcl.core.data.dataset import Dataset
from fedcl.core.data.stream import Stream
from fedcl.core.data.table import ArrayTable
from fedcl.core.errors import ClientError
from fedcl.datasets.synthetic import Synthetic
from fedcl.loop import asked_again
from fedcl.repeated import Repeats, repeated
from tests.conformance import light
from tests.tiny import rows, scenario, stream_of, tiny


def repeat(table: Mapping[str, Any], *asked: Any) -> Sequence[Mapping[int, torch.Tensor]]:
    """Runs a resolved config once more, by itself."""
    return Repeats(table, asked_again)(*asked)


METHODS = ("replay", "fot", "analytic", "kron", "fedcbdr", "target", "ewc")


def records_of(stream: Stream) -> list[Records]:
    return [Records(task.index, task.train, task.test) for task in stream.tasks]


def everything(stream: Stream) -> Any:
    return np.ones(len(stream.dataset.train.labels), dtype=bool)


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("method", ["fedavg", "analytic", "kron"])
def test_nothing_left_out_and_the_same_seed_is_the_same_run(method: str, engine: str) -> None:
    """The accuracies of its answers are those that the run itself wrote down, stage by stage."""
    changes = {**scenario("class"), "method.name": method, "engine.name": engine}
    experiment = tiny({**changes, "training.rounds": 3})
    stream = stream_of(experiment)
    done = fedcl.run(experiment)
    records = records_of(stream)
    found = repeat(experiment.resolved, experiment.seed, everything(stream), records)
    assert [sorted(stage) for stage in found] == [[0], [0, 1]]
    for stage, answers in enumerate(found):
        at = max(row["round"] for row in rows(done, stage=stage))
        for task, logits in answers.items():
            own = records[task]
            assert logits.shape == (len(own.train) + len(own.test), stream.classes)
            labels = torch.from_numpy(stream.dataset.test.labels[own.test])
            right = (logits[len(own.train) :].argmax(1) == labels).double().mean()
            (row,) = rows(done, stage=stage, task=task, round=at)
            assert float(right) == pytest.approx(row["value"], abs=1e-12)
    other = repeat(experiment.resolved, experiment.seed + 1, everything(stream), records)
    assert not torch.equal(other[0][0], found[0][0])


@pytest.mark.parametrize("method", METHODS)
def test_a_row_left_out_is_left_out_of_everything(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stood in it: NaN there changes no bit of any answer."""
    experiment = tiny({**scenario("class"), "method": light(method), "training.cohort": 0})
    stream = stream_of(experiment)
    kept = np.random.default_rng(1).random(len(stream.dataset.train.labels)) < 0.6
    asked = [Records(r.task, r.train[kept[r.train]], r.test) for r in records_of(stream)]
    before = repeat(experiment.resolved, 3, kept, asked)
    load = Synthetic.load

    def spoiled(self: Synthetic) -> Dataset:
        data = load(self)
        values = data.train.rows(np.arange(len(kept)))
        values[~kept] = np.nan
        table = ArrayTable(values, data.train.labels, data.train.columns)
        return replace(data, train=table)

    monkeypatch.setattr(Synthetic, "load", spoiled)
    after = repeat(experiment.resolved, 3, kept, asked)
    for one, other in zip(before, after, strict=True):
        for task, logits in one.items():
            assert not logits.isnan().any()
            assert torch.equal(logits, other[task])
    if method == "ewc":  # with these rows the same run comes to nothing
        with pytest.raises(ClientError, match="NaN"):
            repeat(experiment.resolved, 3, np.ones_like(kept), asked)


def test_the_rows_that_remain_stay_where_they_were() -> None:
    experiment = tiny(scenario("class"))
    whole = stream_of(experiment)
    kept = np.random.default_rng(0).random(len(whole.dataset.train.labels)) < 0.5
    owners = whole.rows(0, 0)
    kept[owners] = False  # a client without any row of a task
    changed, site = repeated(experiment.resolved, 9, kept)
    part = site.population.stream  # type: ignore[attr-defined]
    assert changed.seed == site.seed == 9 and part.classes == whole.classes
    for task in range(2):
        for client in range(whole.clients):
            rows = whole.rows(client, task)
            np.testing.assert_array_equal(part.rows(client, task), rows[kept[rows]])
            assert part.sizes(task)[client] == kept[rows].sum()
            assert part.label_counts(client, task).sum() == kept[rows].sum()
        assert part.tasks[task].classes == whole.tasks[task].classes
    assert 0 not in part.members(0) and 0 in whole.members(0)
    assert part.seen_classes(1) == whole.seen_classes(1)
    gathered, counts = part.gather(part.members(0), 0)
    assert kept[gathered.rows].all()
    assert sum(counts) == kept[whole.tasks[0].train].sum()


def test_noise_of_a_repeat_is_its_own() -> None:
    """Two repeats of one seed differ where the noise is secret, and agree where it is seeded."""
    for noise, equal in (("secret", False), ("seeded", True)):
        channel = {"name": "central_dp", "clip": 1.0, "noise_multiplier": 1.0, "noise": noise}
        changes = {"training.sampling": "poisson"}
        experiment = tiny(changes, channel=[{**channel, "delta": 1e-3}])
        stream = stream_of(experiment)
        found = [
            repeat(experiment.resolved, 1, everything(stream), records_of(stream)) for _ in range(2)
        ]
        assert torch.equal(found[0][-1][0], found[1][-1][0]) == equal
