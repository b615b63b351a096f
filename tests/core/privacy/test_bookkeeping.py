"""Book-keeping's sum of clipped gradients is that of gradients written out one by one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.privacy import bookkeeping
from fedcl.core.privacy.bookkeeping import ClippedSum, Losses, clipped_sum, keeps_books
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from tests.core import toys


class Words(nn.Module):
    """Words, then linear layers that see sequences."""

    def __init__(self, padding: int | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 5, padding_idx=padding)
        self.mix = nn.Linear(5, 6)
        self.normal = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.tanh(self.normal(self.mix(self.words(x.long()))))
        out: Tensor = self.head(inner.mean(1))
        return out


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, stride=2, groups=2),
        nn.GroupNorm(3, 6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, dilation=2, padding="same", bias=False, padding_mode="circular"),
        nn.Flatten(),
        nn.Linear(8 * 9, 3),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Mlp((9, 8)).build((6,), 3), (6,)),
    "no bias": (lambda: Mlp((5,), bias=False).build((6,), 3), (6,)),
    "cnn": (lambda: Cnn((4, 6), 5, groups=2).build((2, 8, 8), 3), (2, 8, 8)),
    "convolutions": (convolutions, (2, 6, 6)),
    "words": (Words, (4,)),
    "padded words": (lambda: Words(2), (4,)),
}


def case(name: str, rows: int) -> tuple[nn.Module, dict[str, Tensor], Tensor, Tensor]:
    """Returns a model, its parameters, inputs and labels, in float64."""
    torch.manual_seed(3)
    build, shape = MODELS[name]
    model = build().double()
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn((rows, *shape), generator=generator, dtype=torch.float64)
    if "words" in name:
        x = torch.randint(4, (rows, *shape), generator=generator).double()
    y = torch.randint(3, (rows,), generator=generator)
    return model, toys.parameters(model), x, y


def losses_of(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
    def losses(params: Params, places: Tensor) -> Tensor:
        return F.cross_entropy(Net(model, params)(x[places]), y[places], reduction="none")

    return losses


def slow(params: Params, losses: Losses, rows: int, clip: float) -> dict[str, Tensor]:
    """Returns the sum of clipped gradients, each by a pass of its own."""
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for row in range(rows):
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        losses(leaves, torch.tensor([row]))[0].backward()
        grads = [v.grad for v in leaves.values() if v.grad is not None]
        size = math.sqrt(sum(float(grad.square().sum()) for grad in grads))
        if not math.isfinite(size):
            continue
        for name, value in leaves.items():
            if value.grad is not None:
                total[name] += value.grad * min(1.0, clip / size)
    return total


def hooks(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> dict[str, Tensor]:
    """Returns the sum of clipped gradients by the hooks of Opacus."""
    wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    F.cross_entropy(wrapped(x), y, reduction="sum").backward()
    found = {
        name.removeprefix("_module."): value.grad_sample
        for name, value in wrapped.named_parameters()
    }
    norms = torch.stack([g.flatten(1).square().sum(1) for g in found.values()]).sum(0).sqrt()
    scale = (clip / norms).clamp(max=1.0)
    return {name: torch.einsum("n...,n->...", g, scale) for name, g in found.items()}


def relative(a: Params, b: Params) -> float:
    size = math.sqrt(sum(float(v.square().sum()) for v in b.values()))
    return toys.distance(a, b) / max(size, 1e-30)


@pytest.mark.parametrize("rows", [0, 1, 13])
@pytest.mark.parametrize("clip", [0.3, 1e9])
@pytest.mark.parametrize("name", list(MODELS))
def test_all_ways_give_the_same_sum(name: str, clip: float, rows: int) -> None:
    model, params, x, y = case(name, rows)
    losses = losses_of(model, x, y)
    found = clipped_sum(model, params, losses, rows, clip)
    assert found.path == ("books" if rows else "check")
    assert found.norms.shape == (rows,)
    expected = slow(params, losses, rows, clip)
    assert list(found.total) == list(params)
    assert relative(found.total, expected) < 1e-9
    assert relative(clipped_sum(model, params, losses, rows, clip, "vmap").total, expected) < 1e-9
    # Opacus has no circular padding, and counts the word that pads.
    if rows and name not in ("convolutions", "padded words"):
        assert relative(found.total, hooks(model, x, y, clip)) < 1e-9
    if rows and clip < 1:
        assert float(found.norms.min()) > clip, "the clip is at work"


def test_float32_is_as_exact_as_it_can_be() -> None:
    model, params, x, y = case("cnn", 9)
    wide = clipped_sum(model, params, losses_of(model, x, y), 9, 0.5)
    narrow = {name: value.float() for name, value in params.items()}
    found = clipped_sum(model, narrow, losses_of(model, x.float(), y), 9, 0.5)
    assert found.path == "books"
    own = {name: value.double() for name, value in found.total.items()}
    assert relative(own, wide.total) < 1e-5
    assert float(torch.stack([v.square().sum() for v in own.values()]).sum().sqrt()) <= 9 * 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
@pytest.mark.parametrize("path", ["check", "books", "vmap"])
def test_an_example_without_a_finite_gradient_adds_nothing(
    path: bookkeeping.Path, bad: float
) -> None:
    model, params, x, y = case("cnn", 4)
    rest = torch.tensor([0, 2, 3])
    expected = clipped_sum(model, params, losses_of(model, x[rest], y[rest]), 3, 0.4)
    x[1] = bad
    found = clipped_sum(model, params, losses_of(model, x, y), 4, 0.4, path)
    change = {k: found.total[k] - v for k, v in expected.total.items()}
    size = math.sqrt(sum(float(v.square().sum()) for v in change.values()))
    assert size <= 0.4 and all(bool(v.isfinite().all()) for v in change.values())
    if not math.isfinite(bad):
        assert size < 1e-12


def test_no_example_changes_the_sum_by_more_than_the_clip() -> None:
    model, params, x, y = case("linear", 40)
    x *= torch.logspace(-8, 8, 40, dtype=torch.float64)[:, None]
    for kind in (torch.float32, torch.float64):
        own = {name: value.to(kind) for name, value in params.items()}
        for row in range(40):
            at = torch.tensor([row])
            one = clipped_sum(model, own, losses_of(model, x[at].to(kind), y[at]), 1, 0.7)
            size = math.sqrt(sum(float(v.double().square().sum()) for v in one.total.values()))
            assert size <= 0.7


class Tied(nn.Module):
    """A layer that is used twice, and one that no book-keeping knows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one = nn.Linear(6, 6)
        self.free = nn.Parameter(torch.full((6,), 0.5)) if kind == "unknown" else None
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "around":
            return self.head(F.linear(torch.tanh(self.one(x)), self.one.weight))  # type: ignore[no-any-return]
        if self.kind == "turned":  # the layer sees the examples last
            return self.head(self.one(x.mT.mT) + self.one.bias)  # type: ignore[no-any-return]
        inner = torch.tanh(self.one(x))
        inner = self.one(inner) if self.free is None else inner * self.free
        return self.head(inner)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["twice", "unknown", "around", "turned"])
def test_what_book_keeping_does_not_know_is_written_out(kind: str) -> None:
    torch.manual_seed(0)
    model = Tied(kind).double()
    params = toys.parameters(model)
    _, _, x, y = case("linear", 5)
    losses = losses_of(model, x, y)
    found = clipped_sum(model, params, losses, 5, 0.2)
    assert found.path == "vmap" and keeps_books(model) == (kind != "unknown")
    assert relative(found.total, slow(params, losses, 5, 0.2)) < 1e-9


def test_a_teacher_with_other_parameters_is_none_of_its_business() -> None:
    model, params, x, _ = case("linear", 6)
    old = {name: value + 0.1 for name, value in params.items()}

    def losses(own: Params, places: Tensor) -> Tensor:
        taught = functional_call(model, dict(old), (x[places],)).softmax(1)
        return F.cross_entropy(Net(model, own)(x[places]), taught, reduction="none")

    found = clipped_sum(model, params, losses, 6, 0.2)
    assert found.path == "books"
    assert relative(found.total, slow(params, losses, 6, 0.2)) < 1e-9


def test_some_of_the_parameters_are_clipped_by_themselves() -> None:
    model, params, x, y = case("cnn", 6)
    own = {k: v for k, v in params.items() if k in ("norm1.bias", "fc.weight", "conv2.bias")}
    losses = losses_of(model, x, y)
    found = clipped_sum(model, own, losses, 6, 0.1)
    assert found.path == "books" and list(found.total) == list(own)
    assert relative(found.total, slow(own, losses, 6, 0.1)) < 1e-9


def test_batch_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="'1' is a BatchNorm1d, which mixes examples"):
        clipped_sum(model, {}, lambda params, places: places, 0, 1.0)


def test_a_factor_forgotten_would_show() -> None:
    """The comparison above is sharp: a sum of unclipped gradients is far away."""
    model, params, x, y = case("cnn", 5)
    losses = losses_of(model, x, y)
    loose: ClippedSum = clipped_sum(model, params, losses, 5, 1e9)
    assert relative(loose.total, slow(params, losses, 5, 0.3)) > 0.1
