"""The informative model of Re-Fed: importance by hand, exact norms, and where the spring holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedcl.core.client import Client
from fedcl.core.model import Net
from fedcl.core.params import Params, subtract
from fedcl.core.replay import informative
from fedcl.core.replay.informative import CacheImportant, Informative, example_gradients
from fedcl.core.replay.memory import Rehearsal, RowwiseCrossEntropy
from fedcl.core.task import ClientTask, Examples
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from tests.tiny import distance


def squares(net: Net, batch: Examples, task: Any, message: object) -> Tensor:
    """Half the squared error of one output."""
    return 0.5 * (net(batch.x)[:, 0] - batch.y).square()


def rows(count: int, shape: tuple[int, ...], classes: int = 4) -> Examples:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (count,), generator=generator)
    extra = {"head": torch.ones(count, classes, dtype=torch.bool)}
    return Examples(x, y, {**extra, "stage": torch.zeros(count, dtype=torch.int64)})


def task(classes: int = 4) -> ClientTask:
    number, every = torch.tensor(0), torch.ones(classes, dtype=torch.bool)
    return ClientTask(number, number, every, every, every)


def net_of(module: nn.Module) -> Net:
    module = module.double()
    return Net(module, {k: v.detach().clone() for k, v in module.named_parameters()})


def pulled(locality: float, lr: float, passes: int = 2, batch_size: int = 3) -> Informative:
    return Informative(locality, passes, batch_size, lr)


def test_importance_by_hand_on_a_linear_model() -> None:
    """One weight, f(x) = v x: the gradient of an example is (v x - y) x, and q = 0.5 at 0.5.

    w = 1, examples (1, 0) and (2, 1) in one batch, eta = 0.1:
    pass 1 at v = 1: gradients 1 and 2, mean 1.5, the spring is at rest: v = 0.85;
    pass 2 at v = 0.85: gradients 0.85 and 1.4, mean 1.125, spring 0.5 * -0.15.
    """
    model = nn.Linear(1, 1, bias=False).double()
    net = Net(model, {"weight": torch.ones(1, 1, dtype=torch.float64)})
    data = Examples(torch.tensor([[1.0], [2.0]]).double(), torch.tensor([0, 1]))
    measure = pulled(0.5, 0.1, passes=2, batch_size=2)
    assert measure.spring == 0.5
    scores, params = measure(net, data, task(), squares, seed=0)
    assert scores.tolist() == pytest.approx([1 + 0.85 / 2, 2 + 1.4 / 2], abs=1e-15)
    assert float(params["weight"]) == pytest.approx(0.85 - 0.1 * (1.125 - 0.075), abs=1e-15)


@pytest.mark.parametrize("architecture", [Mlp(hidden=(5,)), Cnn(channels=(4,), hidden=6, groups=2)])
@pytest.mark.parametrize("together", [None, 3])
def test_norms_and_mean_are_those_of_a_loop(
    architecture: Any, together: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = net_of(architecture.build((1, 4, 4), 4))
    assert net.params is not None
    if together:
        size = sum(value.nbytes for value in net.params.values())
        monkeypatch.setattr(informative, "BYTES", together * size + 1)
    data = rows(7, (1, 4, 4))
    norms, mean = example_gradients(net, data, task(), RowwiseCrossEntropy())
    total = {name: torch.zeros_like(value) for name, value in net.params.items()}
    for row in range(7):
        leaves = {k: v.clone().requires_grad_() for k, v in net.params.items()}
        loss = RowwiseCrossEntropy()(net.at(leaves), data.part(row, row + 1), task(), None)
        own = dict(zip(leaves, torch.autograd.grad(loss.sum(), list(leaves.values())), strict=True))
        slow = sum(float(g.square().sum()) for g in own.values()) ** 0.5
        assert float(norms[row]) == pytest.approx(slow, rel=1e-12)
        total = {name: value + own[name] / 7 for name, value in total.items()}
    assert distance(total, mean) < 1e-14


def test_at_locality_one_it_is_plain_local_training() -> None:
    net, data = net_of(Mlp(hidden=(5,)).build((1, 4, 4), 4)), rows(8, (1, 4, 4))
    measure = pulled(1.0, 0.3, passes=3, batch_size=8)
    assert measure.spring == 0.0
    _, found = measure(net, data, task(), RowwiseCrossEntropy(), seed=0)
    params: Params = dict(net.params or {})
    for _ in range(3):
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        loss = RowwiseCrossEntropy()(net.at(leaves), data, task(), None).mean()
        steps = torch.autograd.grad(loss, list(leaves.values()))
        params = {k: v - 0.3 * g for (k, v), g in zip(params.items(), steps, strict=True)}
    assert distance(params, found) < 1e-13


def test_a_small_locality_keeps_it_at_the_global_model() -> None:
    """With eta q <= 1 it never leaves the ball of radius (longest gradient) / q around w."""
    net, data = net_of(Mlp(hidden=(5,)).build((1, 4, 4), 4)), rows(9, (1, 4, 4))
    norms, _ = example_gradients(net, data, task(), RowwiseCrossEntropy())
    gone = []
    for locality in (0.2, 0.02, 0.002):
        spring = (1 - locality) / (2 * locality)
        _, found = pulled(locality, 1 / spring, passes=4)(
            net, data, task(), RowwiseCrossEntropy(), seed=0
        )
        moved = subtract(found, net.params or {})
        gone.append(sum(float(v.square().sum()) for v in moved.values()) ** 0.5)
        assert 0 < gone[-1] < 2 * float(norms.max()) / spring
    assert gone[0] > 8 * gone[1] > 64 * gone[2]


def test_the_most_important_rows_stay_and_ties_go_to_the_first() -> None:
    """Rows of a zero model have gradient norms that grow with |x|; copies of a row are alike."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False)).double()
    params = {"1.weight": torch.zeros(4, 4, dtype=torch.float64)}
    sizes = torch.tensor([1.0, 5.0, 3.0, 5.0, 2.0, 4.0]).double()
    data = Examples(
        sizes[:, None, None, None].expand(6, 1, 2, 2).contiguous(), torch.zeros(6).long()
    )
    client = Client(0, model, data, task(), None, seed=3)
    row = 4 * 8 + 8 + 8 + 4
    for room, kept in ((1, [1]), (3, [1, 3, 5]), (4, [1, 2, 3, 5]), (9, [0, 1, 2, 3, 4, 5])):
        program = CacheImportant(pulled(1.0, 1e-9, passes=1, batch_size=6), room * row + row - 1)
        reply = program(client, Rehearsal(params, separate=False))
        assert dict(reply.tensors) == {}
        assert reply.state.x[:, 0, 0, 0].tolist() == sizes[kept].tolist()
        assert (reply.steps, reply.examples) == (1, 6)
    none = CacheImportant(pulled(1.0, 1e-9), row - 1)(client, Rehearsal(params, separate=False))
    assert none.state is None


def test_by_stage_the_most_important_rows_of_each_stay() -> None:
    """Four of the old rows matter more than all new ones; by stage two of each stay."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False)).double()
    params = {"1.weight": torch.zeros(4, 4, dtype=torch.float64)}

    def sized(values: list[float]) -> Examples:
        x = torch.tensor(values).double()[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
        return Examples(x, torch.zeros(len(values)).long())

    old, every = sized([9.0, 6.0, 8.0, 7.0]), torch.ones(4, 4, dtype=torch.bool)
    remembered = Examples(old.x, old.y, {"stage": torch.zeros(4).long(), "head": every})
    one = torch.tensor(1)
    now = ClientTask(one, one, every[0], every[0], every[0])
    client = Client(0, model, sized([1.0, 3.0, 2.0]), now, remembered, seed=3)
    budget, measure = 4 * (4 * 8 + 8 + 8 + 4), pulled(1.0, 1e-9, passes=1)
    message = Rehearsal(params, separate=False)
    for by_stage, kept in ((False, {9.0, 6.0, 8.0, 7.0}), (True, {9.0, 8.0, 3.0, 2.0})):
        reply = CacheImportant(measure, budget, by_stage)(client, message)
        assert set(reply.state.x[:, 0, 0, 0].tolist()) == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0.0, 1, 1, 0.1), "locality"),
        ((1.1, 1, 1, 0.1), "locality"),
        ((0.5, 0, 1, 0.1), "passes"),
        ((0.5, 1, 0, 0.1), "batch_size"),
        ((0.5, 1, 1, 0.0), "lr"),
        ((0.01, 1, 1, 0.1), "beyond the global one"),
    ],
)
def test_refuses_options(options: tuple[float, int, int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Informative(*options)
