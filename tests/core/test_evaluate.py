"""Answers to held-out examples, whatever the batch."""

import math

import pytest
import torch
from torch import nn

from fedcl.core.evaluate import answer
from fedcl.core.model import Net
from fedcl.core.task import Examples
from fedcl.methods.fedavg import FedAvg, State

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 5.0], [1.0, 1.0, 1.0], [0.0, 2.0, 0.0]])


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_by_hand(batch: int) -> None:
    allowed = torch.tensor([True, True, False])
    labels = torch.tensor([0, 1, 0, 0])
    found = answer(
        FedAvg(), State({}), Net(nn.Identity()), Examples(LOGITS, labels), allowed, batch
    )
    # Among two classes: right, right, a tie that the first class wins, wrong.
    assert found.right.tolist() == [True, True, True, False]
    assert found.accuracy == 0.75
    expected = [math.log1p(math.exp(-d)) for d in (2.0, 1.0, 0.0, -2.0)]
    assert found.losses.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.loss == pytest.approx(sum(expected) / 4, abs=1e-6)
    assert found.labels.tolist() == [0, 1, 0, 0]
