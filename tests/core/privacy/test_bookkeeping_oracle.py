"""T8: book-keeping, gradients by vmap and the hooks of Opacus give one clipped sum.

Layer by layer, in both types, for batches of many, one and none.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.privacy import examplelayers
from fedcl.core.privacy.bookkeeping import clipped_sum
from fedcl.core.privacy.examplelayers import KNOWN, part_of
from tests.core import toys
from tests.core.privacy.test_bookkeeping import hooks, losses_of


class Whole(nn.Module):
    """Makes words of numbers, as an embedding wants them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.long()


def head(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 3))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(20, 9), nn.ReLU(), head(9)), (20,)),
    "linear over places": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), head(24)), (6, 5)),
    "convolution, many places": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), head(192)),
        (2, 8, 8),
    ),
    "convolution, few places": (
        lambda: nn.Sequential(nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(), head(48)),
        (8, 5, 5),
    ),
    "convolution in groups": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.ReLU(), head(54)),
        (4, 5, 5),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 1), nn.GroupNorm(3, 6), nn.ReLU(), head(96)),
        (2, 4, 4),
    ),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(7), head(7)), (7,)),
    "embedding": (lambda: nn.Sequential(Whole(), nn.Embedding(5, 4), head(24)), (6,)),
}
CLIP = 0.4


def case(name: str, rows: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    build, shape = LAYERS[name]
    torch.manual_seed(11)
    model = build().to(dtype)
    generator = torch.Generator().manual_seed(12)
    x = torch.rand((rows, *shape), generator=generator) * 4
    return model, x.to(dtype), torch.randint(3, (rows,), generator=generator)


def gap(a: Params, b: Params) -> float:
    """Returns the largest difference, in units of the largest number; absolute where all is 0."""
    most = max(float(v.abs().max()) for v in b.values())
    return max(float((a[k] - v).abs().max()) for k, v in b.items()) / (most or 1.0)


@pytest.mark.parametrize("rows", [32, 1, 0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(LAYERS))
def test_three_ways_give_one_sum(name: str, dtype: torch.dtype, rows: int) -> None:
    model, x, y = case(name, rows, dtype)
    params = toys.parameters(model)
    booked = clipped_sum(model, params, losses_of(model, x, y), rows, CLIP, "books")
    each = clipped_sum(model, params, losses_of(model, x, y), rows, CLIP, "vmap")
    # Below the clip we leave room for 64 roundings; Opacus leaves none.
    opacus = hooks(model, x, y, CLIP * (1 - 64 * torch.finfo(dtype).eps))
    assert booked.path == "books" and (each.path == "vmap")
    if rows:
        assert float(booked.norms.max()) > CLIP, "the clip is at work"
        assert torch.allclose(booked.norms, each.norms, rtol=1e-6)
    assert gap(booked.total, each.total) <= 1e-6
    assert gap(booked.total, opacus) <= 1e-6


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_layer_adds_up_groups_of_neighbours(name: str) -> None:
    model, x, y = case(name, 12, torch.float64)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    layers = [layer for layer in model.modules() if isinstance(layer, KNOWN)]
    for layer in layers:
        layer.register_forward_hook(
            lambda layer, given, out: calls.append((layer, given[0].detach(), out))
        )
    loss = F.cross_entropy(Net(model)(x), y, reduction="sum")
    signals = torch.autograd.grad(loss, [out for _, _, out in calls])
    factors = torch.linspace(0.0, 1.0, 12, dtype=torch.float64)
    for bad in (False, True):
        for (module, inputs, _), signal in zip(calls, signals, strict=True):
            names = frozenset(k for k, _ in module.named_parameters())
            if bad:  # the row of factor 0 holds anything
                signal = signal.clone()
                signal[0] = float("nan")
            part = part_of(module, names, inputs, signal)
            found = part.weighted(factors, 3)
            for group in range(3):
                own = slice(4 * group, 4 * group + 4)
                alone = part_of(module, names, inputs[own], signal[own])
                expected = alone.weighted(factors[own], 1)
                for kind in names:
                    assert found[kind].shape == (3, *expected[kind].shape[1:])
                    assert torch.allclose(found[kind][group], expected[kind][0], atol=1e-12)
                    assert bool(found[kind].isfinite().all())


def test_a_norm_that_forgets_a_layer_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    right = examplelayers._squares
    monkeypatch.setattr(
        examplelayers, "_squares", lambda v: right(v) * (0.0 if v.shape[1:].numel() == 9 else 1.0)
    )
    model, x, y = case("linear", 32, torch.float64)
    losses, params = losses_of(model, x, y), toys.parameters(model)
    booked = clipped_sum(model, params, losses, 32, CLIP, "books")
    assert gap(booked.total, clipped_sum(model, params, losses, 32, CLIP, "vmap").total) > 1e-3
