"""Powers of single examples' gradients: against one backward pass for each example, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.consolidation.gradients import gradient_powers
from fedcl.core.model import Net
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from tests.core import toys


class Words(nn.Module):
    """An embedding with rows that are met twice, a linear layer at every place, a norm, an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.mix = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.memory = nn.LSTM(6, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = (x.abs() * 10).long() % 5
        hidden = self.norm(self.mix(self.embedding(places)))
        return self.head(self.memory(hidden)[0][:, -1])  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Two layers share a weight, one is passed twice, one works in place, one is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.twice = nn.Linear(6, 6, bias=False)
        self.inner = nn.Linear(6, 4)
        self.unused = nn.Linear(6, 6)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        x = self.twice(torch.tanh(self.twice(x)))
        return self.head(F.relu(self.inner(x), inplace=True))  # type: ignore[no-any-return]


class Grouped(nn.Module):
    """Convolutions with stride, groups and without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.groups = nn.Conv2d(4, 4, 3, groups=2, padding="same")
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.groups(self.wide(x))).mean((2, 3)))  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Mlp(()).build((6,), 3), (6,)),
    "mlp": (lambda: Mlp((8, 5)).build((6,), 3), (6,)),
    "cnn": (lambda: Cnn((4,), hidden=6, groups=2).build((1, 6, 6), 3), (1, 6, 6)),
    "convolutions": (Grouped, (2, 6, 6)),
    "words": (Words, (7,)),
    "tied": (Tied, (6,)),
}


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def norms(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.square().sum(1)


@pytest.mark.parametrize(("power", "values"), [(2, losses), (1, norms)])
@pytest.mark.parametrize("held", [1, 2**28])
@pytest.mark.parametrize("name", MODELS)
def test_sums_are_those_of_one_example_after_the_other(
    name: str, held: int, power: Literal[1, 2], values: object
) -> None:
    build, shape = MODELS[name]
    torch.manual_seed(2)
    model = build().double()
    data = toys.client(model, 9, shape).data
    params = toys.parameters(model)
    slow = {name: torch.zeros_like(value) for name, value in params.items()}
    for row in range(len(data)):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        one = data.part(row, row + 1)
        value = values(Net(model, leaves)(one.x), one.y)[0]  # type: ignore[operator]
        gradients = torch.autograd.grad(
            value, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        for own, gradient in zip(slow.values(), gradients, strict=True):
            own += gradient.abs() ** power
    found = gradient_powers(
        Net(model, params),
        data.x,
        data.y,
        values,  # type: ignore[arg-type]
        tuple(params),
        power,
        held,
    )
    assert toys.distance(found, slow) < 1e-12 * max(1.0, *(float(v.max()) for v in slow.values()))
    assert all(float(value.max()) > 0 for k, value in slow.items() if "unused" not in k)
    some = tuple(params)[::2]
    fewer = gradient_powers(Net(model, params), data.x, data.y, norms, some, power)
    assert tuple(fewer) == some
    assert all(not value.requires_grad for value in found.values())


def test_opposite_examples_do_not_cancel() -> None:
    """Without weights both classes have 1/2: g = (p - onehot) x = (-1/2, 1/2) and (1/2, -1/2) for
    x = 1, whose sum is 0 while their squares add up to 1/2."""
    model = nn.Linear(1, 2, bias=False).double()
    params = {"weight": torch.zeros(2, 1, dtype=torch.float64)}
    x, labels = torch.ones(2, 1, dtype=torch.float64), torch.tensor([0, 1])
    found = gradient_powers(Net(model, params), x, labels, losses, ("weight",), 2)
    assert found["weight"].tolist() == [[0.5], [0.5]]


def test_sums_are_in_float64() -> None:
    """Squares of 1e-15 are added up beside squares of 1."""
    model = nn.Linear(1, 1, bias=False)
    params = {"weight": torch.zeros(1, 1)}
    x = torch.tensor([[1.0], [1e-7]])

    def values(logits: Tensor, labels: Tensor) -> Tensor:
        return logits[:, 0]

    found = gradient_powers(Net(model, params), x, torch.zeros(2), values, ("weight",), 2)
    assert found["weight"].dtype == torch.float64
    assert float(found["weight"]) == pytest.approx(1 + 1e-14, rel=1e-16)
