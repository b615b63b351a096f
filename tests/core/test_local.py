"""The parts of local training: losses over the right logits, penalties, what is kept and sent."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedcl.core.client import Model
from fedcl.core.local import (
    CrossEntropy,
    Local,
    Proximal,
    change,
    cross_entropy,
    masked_logits,
    own_data,
    own_state,
)
from fedcl.core.model import Net
from fedcl.core.task import ClientTask, Examples
from tests.core import toys

LOGITS = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)


def task() -> ClientTask:
    """Class 1 and 2 are present, 0 was seen, 3 is yet to come."""
    present = torch.tensor([False, True, True, False])
    seen = torch.tensor([True, True, True, False])
    return ClientTask(torch.tensor(1), torch.tensor(1), present, seen, seen)


def losses(masked: bool, labels: list[int]) -> list[float]:
    net = Net(nn.Identity())
    batch = Examples(LOGITS, torch.tensor(labels))
    values: list[float] = CrossEntropy(masked)(net, batch, task(), None).tolist()
    return values


def test_cross_entropy_compares_the_head_of_the_scenario() -> None:
    head = [math.log(math.exp(1 - k) + math.exp(2 - k) + math.exp(3 - k)) for k in (2, 3)]
    assert losses(False, [1, 0]) == pytest.approx([head[0], math.log(3)], abs=1e-12)
    assert losses(False, [2, 1]) == pytest.approx([head[1], math.log(3)], abs=1e-12)


def test_masked_cross_entropy_compares_the_present_classes_only() -> None:
    expected = [math.log(1 + math.exp(1)), math.log(2)]
    assert losses(True, [1, 2]) == pytest.approx(expected, abs=1e-12)


def test_over_all_classes_it_is_plain_cross_entropy() -> None:
    everything = toys.client_task(4)
    batch = Examples(LOGITS, torch.tensor([3, 0]))
    for loss in (cross_entropy, CrossEntropy(masked=True)):
        found = loss(Net(nn.Identity()), batch, everything, None)
        assert torch.equal(found, F.cross_entropy(LOGITS, batch.y, reduction="none"))


def test_masked_out_logits_get_no_probability_and_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    allowed = task().present
    probabilities = masked_logits(logits, allowed).softmax(1)
    assert probabilities[:, ~allowed].abs().max() == 0.0
    masked_logits(logits, allowed).logsumexp(1).sum().backward()
    assert logits.grad is not None
    assert logits.grad[:, ~allowed].abs().max() == 0.0


def test_masks_may_differ_by_row() -> None:
    allowed = torch.tensor([[True, False, False, True], [False, True, True, False]])
    best = masked_logits(-LOGITS, allowed).argmax(1)
    assert best.tolist() == [0, 1]


def test_a_label_that_is_not_allowed_has_a_finite_loss_and_gradient() -> None:
    weight = torch.ones(4, 4, dtype=torch.float64, requires_grad=True)
    net = Net(nn.Linear(4, 4, bias=False), {"weight": weight})
    value = CrossEntropy()(net, Examples(LOGITS, torch.tensor([3, 3])), task(), None).sum()
    value.backward()
    assert bool(torch.isfinite(value))
    assert weight.grad is not None
    assert bool(torch.isfinite(weight.grad).all())


def test_the_proximal_penalty_by_hand() -> None:
    """mu / 2 * ((3 - 1)^2 + (0 - 2)^2 + (1 - 0)^2) = 0.25 * 9; its gradient is mu * (w - w0)."""
    start = Model({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.0]])})
    params = {
        "a": torch.tensor([3.0, 0.0], requires_grad=True),
        "b": torch.tensor([[1.0]], requires_grad=True),
    }
    value = Proximal(0.5)(params, start)
    assert value.item() == 2.25
    value.backward()
    assert params["a"].grad is not None
    assert params["a"].grad.tolist() == [1.0, -1.0]
    assert Proximal(0.0)(params, start).item() == 0.0


def test_the_default_parts() -> None:
    model = nn.Linear(6, 3).double()
    client = toys.client(model, 4, state={"kept": 1})
    message = Model(toys.parameters(model))
    local = Local(cross_entropy)
    assert own_data(client, message) is client.data is local.data(client, message)
    assert own_state(client, message, message.params) is client.state
    assert (local.penalty, local.project) == (None, None)
    assert (local.name, local.report) == ("train", change)
    moved = {k: v + 0.5 for k, v in message.params.items()}
    assert all(
        torch.allclose(v, torch.full_like(v, 0.5)) for v in change(client, message, moved).values()
    )
