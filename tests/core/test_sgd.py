"""Local SGD of one client: plain PyTorch's bits, and numbers worked out by hand."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.client import Client, Model
from fedcl.core.local import Local, Proximal, cross_entropy
from fedcl.core.model import Net, dropouts
from fedcl.core.params import Params
from fedcl.core.seeds import seed_of
from fedcl.core.sgd import Settings, batches, train_one
from fedcl.core.task import ClientTask, Examples
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from tests.core import toys


def plain_loop(
    model: nn.Module, client: Client, settings: Settings
) -> tuple[dict[str, Tensor], list[float]]:
    """Trains as anybody would in PyTorch; only the permutations are those of the client's seed."""
    generator = torch.Generator().manual_seed(seed_of(client.seed, "batches"))
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    losses = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(client.data), generator=generator)
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(client.data.x[rows]), client.data.y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return toys.parameters(model), losses


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_bits_of_plain_pytorch(kind: str, momentum: float, decay: float) -> None:
    torch.manual_seed(3)
    shape = (1, 8, 8) if kind == "cnn" else (6,)
    model = (Cnn((4,), 6, 2) if kind == "cnn" else Mlp((8, 5))).build(shape, 3)
    client = toys.client(model, 22, shape, dtype=torch.float32)
    # 22 = 2 * 8 + 6: the last batch is ragged.
    settings = Settings(epochs=3, batch_size=8, lr=0.15, momentum=momentum, weight_decay=decay)
    message = Model(toys.parameters(model))
    before = toys.parameters(model)
    trained = train_one(Local(cross_entropy), settings, client, message)
    assert all(torch.equal(value, before[name]) for name, value in message.params.items())
    expected, losses = plain_loop(model, client, settings)
    assert list(trained.params) == list(expected)
    assert all(torch.equal(trained.params[name], expected[name]) for name in expected)
    assert trained.loss == pytest.approx(sum(losses) / 9, abs=1e-6)
    assert (trained.steps, trained.examples) == (9, 66)
    assert toys.distance(trained.params, before) > 0.01


@dataclass(frozen=True)
class Squared:
    """Half the squared error of a network with one output, by example."""

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: object) -> Tensor:
        return 0.5 * (net(batch.x)[:, 0] - batch.extra["target"]) ** 2


def line(targets: list[float], weight: float, **options: Any) -> Any:
    """Fits y = w x to (1, target) rows in one batch a step and returns what `train_one` does."""
    model = nn.Linear(1, 1, bias=False).double()
    n = len(targets)
    data = Examples(
        torch.ones(n, 1, dtype=torch.float64),
        torch.zeros(n, dtype=torch.int64),
        {"target": torch.tensor(targets, dtype=torch.float64)},
    )
    client = Client(0, model, data, toys.client_task(1), None, seed=5)
    penalty = options.pop("penalty", None)
    settings = Settings(**{"epochs": 3, "batch_size": n, "lr": 0.5, **options})
    message = Model({"weight": torch.tensor([[weight]], dtype=torch.float64)})
    return train_one(Local(Squared(), penalty), settings, client, message)


def test_gradient_steps_by_hand() -> None:
    """Targets 1 and 3 have mean 2: w <- w - (w - 2) / 2 gives 0, 1, 1.5, 1.75.

    The losses are half the mean of (w - 1)^2 and (w - 3)^2 at 0, 1, 1.5: 2.5, 1, 0.625.
    """
    trained = line([1.0, 3.0], 0.0)
    assert trained.params["weight"].tolist() == [[1.75]]
    assert trained.loss == (2.5 + 1.0 + 0.625) / 3
    assert (trained.steps, trained.examples) == (3, 6)


def test_momentum_by_hand() -> None:
    """m: -2, then -1 + 0.5 * -2 = -2, then 0 + 0.5 * -2 = -1; w: 0, 1, 2, 2.5."""
    assert line([2.0], 0.0, momentum=0.5).params["weight"].tolist() == [[2.5]]


def test_weight_decay_by_hand() -> None:
    """With decay 1 the gradient is 2 w - 2, so that one step from 4 ends at 1, where it is 0."""
    assert line([2.0], 4.0, weight_decay=1.0).params["weight"].tolist() == [[1.0]]


def test_a_penalty_by_hand() -> None:
    """Proximal with mu = 1 from w0 = 4: gradients w - 2 + w - 4; 4, 3, 3; losses 2, .5 + .5, ..."""
    trained = line([2.0], 4.0, penalty=Proximal(1.0))
    assert trained.params["weight"].tolist() == [[3.0]]
    assert trained.loss == (2.0 + 1.0 + 1.0) / 3


@pytest.mark.parametrize(("limit", "steps"), [(1, 1), (4, 4), (6, 6), (100, 6), (None, 6)])
def test_a_limit_of_steps(limit: int | None, steps: int) -> None:
    model = Mlp((4,)).build((6,), 3).double()
    client = toys.client(model, 7)
    message = Model(toys.parameters(model))
    local = Local(cross_entropy)
    trained = train_one(local, Settings(2, 3, 0.1, steps=limit), client, message)
    assert trained.steps == steps
    # Batches of 3, 3, 1 twice.
    assert trained.examples == [3, 6, 7, 10, 13, 14][steps - 1]


def test_no_examples_change_nothing() -> None:
    model = Mlp((4,)).build((6,), 3).double()
    client = toys.client(model, 0)
    message = Model(toys.parameters(model))
    trained = train_one(Local(cross_entropy), Settings(2, 3, 0.1, 0.9), client, message)
    assert math.isnan(trained.loss)
    assert (trained.steps, trained.examples) == (0, 0)
    assert toys.distance(trained.params, message.params) == 0.0
    assert trained.params["fc1.weight"] is not message.params["fc1.weight"]


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 3), st.integers(0, 10**6))
def test_each_pass_is_a_permutation_cut_into_batches(
    rows: int, size: int, epochs: int, seed: int
) -> None:
    plan = batches(rows, Settings(epochs, size, 0.1), seed)
    a_pass = -(-rows // size)
    assert len(plan) == epochs * a_pass
    for epoch in range(epochs):
        own = plan[epoch * a_pass : (epoch + 1) * a_pass]
        assert sorted(int(row) for step in own for row in step) == list(range(rows))
        assert all(len(step) == size for step in own[:-1])
    again = batches(rows, Settings(epochs, size, 0.1), seed)
    assert all(torch.equal(a, b) for a, b in zip(plan, again, strict=True))


def test_passes_and_seeds_differ() -> None:
    plan = batches(50, Settings(2, 50, 0.1), seed=1)
    other = batches(50, Settings(1, 50, 0.1), seed=2)
    assert not torch.equal(plan[0], plan[1])
    assert not torch.equal(plan[0], other[0])


class Watched:
    """Cross-entropy that remembers the dropout masks it met."""

    def __init__(self) -> None:
        self.masks: list[list[Tensor]] = []

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: object) -> Tensor:
        self.masks.append(list(net.masks))
        return cross_entropy(net, batch, task, message)


def test_dropout_masks_are_fresh_for_each_step_and_functions_of_the_seed() -> None:
    model = Mlp((20,), input_dropout=0.2, dropout=(0.5,)).build((6,), 3).double()
    first, second = Watched(), Watched()
    client, message = toys.client(model, 7), Model(toys.parameters(model))
    settings = Settings(2, 3, 0.1)
    for watched in (first, second):
        train_one(Local(watched), settings, client, message)
    shapes = [[tuple(mask.shape) for mask in masks] for masks in first.masks]
    assert shapes == [[(3, 6), (3, 20)], [(3, 6), (3, 20)], [(1, 6), (1, 20)]] * 2
    for a, b in zip(first.masks, second.masks, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(first.masks[0][1], first.masks[1][1])
    assert not torch.equal(first.masks[0][1], first.masks[3][1])
    assert first.masks[0][0].dtype == torch.float64
    # The first masks, drawn as documented: of full batches, in the order of the layers.
    generator = torch.Generator().manual_seed(seed_of(client.seed, "dropout"))
    for masks in first.masks:
        for layer, mask in zip(dropouts(model), masks, strict=True):
            drawn = layer.draw(3, generator, torch.float64)
            assert torch.equal(drawn[: len(mask)], mask)


def test_a_loss_that_calls_a_net_with_dropout_on_other_rows_is_refused() -> None:
    model = Mlp((4,), dropout=(0.5,)).build((6,), 3).double()
    client, message = toys.client(model, 7), Model(toys.parameters(model))

    def twice(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
        return net(torch.cat([batch.x, batch.x])).logsumexp(1)[: len(batch)]

    with pytest.raises(ValueError, match="mask for 3 rows met 6 rows"):
        train_one(Local(twice), Settings(1, 3, 0.1), client, message)


def test_a_teacher_on_other_rows_is_fine() -> None:
    model = Mlp((4,), dropout=(0.5,)).build((6,), 3).double()
    client, message = toys.client(model, 7), Model(toys.parameters(model))

    def taught(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
        teacher = net.at(message.params)(torch.cat([batch.x, batch.x])).softmax(1)
        return -(teacher[: len(batch)] * net(batch.x).log_softmax(1)).sum(1)

    trained = train_one(Local(taught), Settings(1, 3, 0.1), client, message)
    assert math.isfinite(trained.loss)


def test_parameters_that_the_loss_does_not_use_stay() -> None:
    model = nn.ModuleDict({"used": nn.Linear(6, 3), "idle": nn.Linear(2, 2)}).double()

    def loss(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
        params: Params = net.params or {}
        logits = batch.x @ params["used.weight"].T
        return F.cross_entropy(logits, batch.y, reduction="none")

    message = Model(toys.parameters(model))
    client = toys.client(model, 7)
    trained = train_one(Local(loss), Settings(1, 3, 0.1, 0.9), client, message)
    assert torch.equal(trained.params["idle.weight"], message.params["idle.weight"])
    assert torch.equal(trained.params["used.bias"], message.params["used.bias"])
    assert not torch.equal(trained.params["used.weight"], message.params["used.weight"])
