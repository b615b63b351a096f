"""Task-aware temperature scaling, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedcl.core.local import cross_entropy
from fedcl.core.losses.tempered import TemperedCrossEntropy, weighed
from fedcl.core.model import Net
from fedcl.core.task import ClientTask, Examples


def task(index: int, present: list[bool], head: list[bool]) -> ClientTask:
    number = torch.tensor(index)
    return ClientTask(number, number, torch.tensor(present), torch.tensor(head), torch.tensor(head))


def rows(stages: list[int], head: list[bool]) -> Examples:
    generator = torch.Generator().manual_seed(0)
    n = len(stages)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    extra = {"stage": torch.tensor(stages), "head": torch.tensor(head).expand(n, -1)}
    return Examples(x, torch.arange(n) % 3, extra)


NEW, HEAD = [False, False, True, False], [True, True, True, False]


def test_logits_and_examples_are_scaled_as_published() -> None:
    """Old logits / 0.8, new logits / 1.2, over the head; weights 1.3 and 0.7."""
    net, own = Net(nn.Linear(4, 4).double()), task(2, NEW, HEAD)
    data = weighed(rows([0, 2, 1, 2], HEAD), own, 1.3, 0.7, separate=False)
    found = TemperedCrossEntropy(0.8, 1.2)(net, data, own, None)
    for row in range(4):
        logits = net(data.x[row : row + 1])[0]
        heated = torch.stack([logits[0] / 0.8, logits[1] / 0.8, logits[2] / 1.2])
        weight = 0.7 if row in (1, 3) else 1.3
        slow = -weight * F.log_softmax(heated, 0)[data.y[row]]
        assert float(found[row].detach()) == pytest.approx(float(slow.detach()), rel=1e-12)


def test_separate_means_add_up_as_the_papers_formula() -> None:
    """(1 / N_old) sum w_old CE + (1 / N_new) sum w_new CE."""
    net, own = Net(nn.Linear(4, 4).double()), task(1, NEW, HEAD)
    data = weighed(rows([0, 1, 1, 0, 1], HEAD), own, 1.3, 0.7, separate=True)
    plain = TemperedCrossEntropy(0.8, 1.2)(
        net, weighed(rows([0, 1, 1, 0, 1], HEAD), own, 1.0, 1.0, separate=False), own, None
    )
    found = TemperedCrossEntropy(0.8, 1.2)(net, data, own, None).mean()
    slow = 1.3 * plain[[0, 3]].mean() + 0.7 * plain[[1, 2, 4]].mean()
    assert float(found.detach()) == pytest.approx(float(slow.detach()), rel=1e-12)


def test_a_single_remembered_row_weighs_no_more_than_the_bound() -> None:
    """One old row among nine: 9 times as much, or 4 times; new rows 9 / 8 times in both."""
    data, own = rows([0] + [1] * 8, HEAD), task(1, NEW, HEAD)
    for most, old in ((1e9, 9.0), (4.0, 4.0)):
        found = weighed(data, own, 1.3, 0.7, separate=True, most=most).extra["weight"]
        assert found.tolist() == pytest.approx([1.3 * old] + [0.7 * 9 / 8] * 8, rel=1e-12)


def test_a_first_stage_is_plain() -> None:
    net, own = Net(nn.Linear(4, 4).double()), task(0, NEW, HEAD)
    data = weighed(rows([0, 0, 0], HEAD), own, 1.3, 0.7, separate=True)
    found = TemperedCrossEntropy(0.8, 1.2)(net, data, own, None)
    assert torch.equal(found, cross_entropy(net, data, own, None))


def test_factors_of_one_change_no_bit() -> None:
    net, own = Net(nn.Linear(4, 4).double()), task(3, NEW, HEAD)
    data = weighed(rows([3, 3, 3], HEAD), own, 1.0, 1.0, separate=True)
    found = TemperedCrossEntropy(1.0, 1.0)(net, data, own, None)
    assert torch.equal(found, cross_entropy(net, data, own, None))


def test_masks_may_come_one_for_each_row() -> None:
    """Clients of different stages in one call get what each gets alone."""
    net, loss = Net(nn.Linear(4, 4).double()), TemperedCrossEntropy(0.8, 1.2)
    tasks = [task(0, [True, True, False, False], HEAD), task(2, NEW, HEAD)]
    data: list[Examples] = [
        weighed(rows(stages, HEAD), own, 1.3, 0.7, separate=False)
        for stages, own in zip(([0, 0], [1, 2]), tasks, strict=True)
    ]
    alone = torch.cat([loss(net, d, own, None) for d, own in zip(data, tasks, strict=True)])
    fields: dict[str, Any] = {
        name: torch.stack([getattr(own, name) for own in tasks]).repeat_interleave(2, 0)
        for name in ("index", "task", "present", "seen", "head")
    }
    both = Examples(
        torch.cat([d.x for d in data]),
        torch.cat([d.y for d in data]),
        {name: torch.cat([d.extra[name] for d in data]) for name in data[0].extra},
    )
    assert torch.allclose(loss(net, both, ClientTask(**fields), None), alone, rtol=1e-12)
