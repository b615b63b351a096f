"""Kronecker-factored Fisher information: its moments the slow way, and the step it defines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedcl.core.consolidation.kronecker import (
    Factor,
    Fisher,
    KroneckerMoments,
    anchor_layers,
    excess,
    grown,
    identity,
    sampled_labels,
)
from fedcl.core.features.subspace import pack, project_out, unpack
from fedcl.core.model import Net
from fedcl.core.task import ClientTask, Examples
from fedcl.models.mlp import Mlp
from tests.core import toys

NONE = identity(torch.zeros(1))


@dataclass(frozen=True)
class Question:
    """Which layers are asked about."""

    layers: tuple[str, ...]
    every_class: bool = False


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def factor(size: int, seed: int) -> Factor:
    """A positive definite matrix."""
    half = random(size, size, seed=seed)
    return grown(None, pack(half @ half.T))


def matrix(factor: Factor) -> Tensor:
    return (factor.vectors * factor.values) @ factor.vectors.T


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0, 1e6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_step_is_the_minimiser_of_its_objective(out: int, d: int, mu: float, seed: int) -> None:
    fisher = Fisher(factor(d, seed), factor(out, seed + 100))
    change = random(out, d, seed=seed + 200)
    found = change - excess(change, fisher, mu)
    a, s = matrix(fisher.inputs), matrix(fisher.outputs)
    # The slow way: (I + mu S x A) vec(E') = vec(E), row by row.
    whole = torch.eye(out * d, dtype=torch.float64) + mu * torch.kron(s, a)
    expected = torch.linalg.solve(whole, change.flatten()).reshape(out, d)
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9)
    slope = (found - change) + mu * s @ found @ a
    assert float(slope.norm()) <= 1e-9 * (1 + mu) * float(s.norm() * a.norm())


def test_two_numbers_by_hand() -> None:
    one = torch.ones((1, 1), dtype=torch.float64)
    fisher = Fisher(
        Factor(torch.eye(2, dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)),
        Factor(one, one[0] * 2.0),
    )
    change = torch.tensor([[5.0, 14.0]], dtype=torch.float64)
    assert (change - excess(change, fisher, 1.0)).tolist() == [[5.0, 2.0]]  # 14 / (1 + 2 * 3)
    assert (change - excess(change, fisher, 0.5)).tolist() == [[5.0, 3.5]]


def test_without_strength_nothing_is_lost() -> None:
    fisher = Fisher(factor(4, 1), factor(3, 2))
    assert torch.equal(excess(random(3, 4), fisher, 0.0), torch.zeros(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("side", ["inputs", "outputs", "neither"])
def test_an_identity_has_no_size(side: str) -> None:
    change = random(3, 4)
    fisher = Fisher(
        NONE if side in ("inputs", "neither") else factor(4, 1),
        NONE if side in ("outputs", "neither") else factor(3, 2),
    )
    eyes = Fisher(
        fisher.inputs if len(fisher.inputs.values) else grown(None, pack(torch.eye(4))),
        fisher.outputs if len(fisher.outputs.values) else grown(None, pack(torch.eye(3))),
    )
    assert torch.allclose(excess(change, fisher, 0.7), excess(change, eyes, 0.7), atol=1e-14)
    if side == "neither":
        assert torch.allclose(change - excess(change, fisher, 0.7), change / 1.7, atol=1e-15)


def test_fot_is_its_hard_limit() -> None:
    vectors = torch.linalg.qr(random(5, 5)).Q
    values = torch.tensor([0.0, torch.inf, 0.0, torch.inf, torch.inf], dtype=torch.float64)
    change = random(3, 5, seed=1)
    found = change - excess(change, Fisher(Factor(vectors, values), NONE), 1.0)
    assert torch.allclose(found, project_out(change, vectors[:, [1, 3, 4]]), atol=1e-14)


def test_factors_add_up_and_noise_leaves_no_negative_eigenvalue() -> None:
    first, second = (random(4, 4, seed=k) for k in (1, 2))
    found = grown(grown(None, pack(first @ first.T)), pack(second @ second.T))
    assert torch.allclose(matrix(found), first @ first.T + second @ second.T, atol=1e-12)
    noisy = grown(None, pack(torch.diag(torch.tensor([3.0, -2.0], dtype=torch.float64))))
    assert noisy.values.tolist() == [0.0, 3.0]


def test_labels_are_drawn_from_the_prediction() -> None:
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    draws = torch.tensor([0.0, 0.1, 0.21, 0.49, 0.51, 0.999], dtype=torch.float64)
    assert sampled_labels(shares.log().expand(6, 3), draws).tolist() == [0, 0, 1, 1, 2, 2]
    even = torch.arange(10_000, dtype=torch.float64) / 10_000
    counts = sampled_labels(shares.log().expand(10_000, 3), even).bincount(minlength=3)
    assert counts.tolist() == pytest.approx([2000, 3000, 5000], abs=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_that_is_not_allowed_is_never_drawn(dtype: torch.dtype) -> None:
    logits = torch.tensor([[-1e9, 0.3, -1e9, 0.1, -1e9]], dtype=dtype).expand(4, 5)
    draws = torch.tensor([0.0, 1e-300, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert sampled_labels(logits, draws).tolist() == [1, 1, 1, 3]


def conv(**options: Any) -> nn.Module:
    """A convolution, then a head."""
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(2, 4, 3, padding=1, **options))
    model.add_module("relu", nn.ReLU())
    model.add_module("flatten", nn.Flatten())
    model.add_module("head", nn.Linear(4 * 16, 3))
    return model.double()


def task_of(allowed: list[bool]) -> ClientTask:
    mask, zero = torch.tensor(allowed), torch.tensor(0)
    return ClientTask(zero, zero, mask, mask, mask)


def measured(
    model: nn.Module, rows: Examples, outputs: Literal["fisher", "empirical"], task: ClientTask
) -> dict[str, Tensor]:
    names = tuple(n for n, p in model.named_parameters() if n.endswith("weight"))
    net = Net(model, toys.parameters(model))
    found = KroneckerMoments(outputs=outputs)(net, rows, task, Question(names))
    return {name: value if name == "count/n" else unpack(value) for name, value in found.items()}


def gradients(model: nn.Module, x: Tensor, y: Tensor, allowed: Tensor) -> dict[str, Tensor]:
    """The gradient of one example's loss: weights as matrices, the bias as a last column."""
    params = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    logits = functional_call(model, params, (x[None],)).masked_fill(~allowed, -1e9)
    found = torch.autograd.grad(F.cross_entropy(logits, y[None]), list(params.values()))
    named = dict(zip(params, found, strict=True))
    return {
        name: torch.cat([g.flatten(1), named[name.removesuffix("weight") + "bias"][:, None]], 1)
        for name, g in named.items()
        if name.endswith("weight")
    }


def test_of_one_example_the_product_is_that_of_its_gradient() -> None:
    model = Mlp((5,)).build((1, 2, 3), 3).double()
    rows = Examples(random(1, 1, 2, 3), torch.tensor([2]))
    task = task_of([True, False, True])
    found = measured(model, rows, "empirical", task)
    own = gradients(model, rows.x[0], rows.y[0], task.head)
    assert found["count/n"] == 1
    assert set(own) == {"fc1.weight", "head.weight"}
    for name, gradient in own.items():
        vector = gradient.flatten()
        product = torch.kron(found[f"output_moments/{name}"], found[f"input_moments/{name}"])
        assert torch.allclose(product, vector[:, None] * vector[None], atol=1e-13)
    assert float(found["output_moments/head.weight"][1].abs().max()) == 0.0  # the masked class


def test_moments_are_sums_over_examples() -> None:
    model = Mlp((5,)).build((1, 2, 3), 3).double()
    rows = Examples(random(4, 1, 2, 3), torch.tensor([2, 0, 1, 1]))
    task = task_of([True] * 3)
    whole = measured(model, rows, "empirical", task)
    for name, value in whole.items():
        parts = [measured(model, rows.part(k, k + 1), "empirical", task)[name] for k in range(4)]
        assert torch.allclose(value, torch.stack(parts).sum(0), atol=1e-13)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_adds_up_inputs_and_averages_signals_over_its_places(groups: int) -> None:
    model = conv(groups=groups)
    rows = Examples(random(2, 2, 4, 4), torch.tensor([2, 0]))
    task = task_of([True] * 3)
    found = measured(model, rows, "empirical", task)
    wide = F.pad(rows.x, (1, 1, 1, 1))
    a = torch.zeros((2 // groups * 9 + 1,) * 2, dtype=torch.float64)
    s = torch.zeros((4 // groups,) * 2, dtype=torch.float64)
    own = toys.parameters(model)
    layer = F.conv2d(rows.x, own["conv.weight"], own["conv.bias"], padding=1, groups=groups)
    layer.requires_grad_()
    logits = F.linear(layer.relu().flatten(1), own["head.weight"], own["head.bias"])
    loss = F.cross_entropy(logits, rows.y, reduction="sum")
    (signal,) = torch.autograd.grad(loss, layer)
    one = torch.ones(1, dtype=torch.float64)
    for n in range(2):
        for i in range(4):
            for j in range(4):
                for group in range(groups):
                    channels = slice(group * 2 // groups, (group + 1) * 2 // groups)
                    patch = wide[n, channels, i : i + 3, j : j + 3].flatten()
                    patch = torch.cat([patch, one])
                    a += patch[:, None] * patch[None]
                    outs = slice(group * 4 // groups, (group + 1) * 4 // groups)
                    g = signal[n, outs, i, j]
                    s += g[:, None] * g[None] / (16 * groups)
    assert torch.allclose(found["input_moments/conv.weight"], a, atol=1e-12)
    assert torch.allclose(found["output_moments/conv.weight"], s, atol=1e-12)


def test_sampled_labels_give_the_fisher_information() -> None:
    model = Mlp(()).build((1, 1, 2), 3).double()
    n = 40_000
    draws = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n
    x = random(1, 1, 1, 2)
    rows = Examples(x.expand(n, 1, 1, 2), torch.zeros(n, dtype=torch.int64), {"draws": draws})
    found = measured(model, rows, "fisher", task_of([True] * 3))
    p = torch.softmax(model(x)[0], 0).detach()
    exact = torch.diag(p) - p[:, None] * p[None]  # the covariance of the drawn label
    assert torch.allclose(found["output_moments/head.weight"] / n, exact, atol=1e-4)
    empirical = (
        measured(model, rows, "empirical", task_of([True] * 3))["output_moments/head.weight"] / n
    )
    assert float((empirical - exact).abs().max()) > 0.05


def test_layers_are_pulled_with_their_biases_and_others_are_left() -> None:
    model = conv(groups=2)
    anchor = toys.parameters(model)
    params = {
        name: value + random(*value.shape, seed=k) for k, (name, value) in enumerate(anchor.items())
    }
    fisher = Fisher(factor(10, 1), factor(2, 2))
    pulled = anchor_layers(params, anchor, {"conv.weight": fisher}, 0.3)
    assert torch.equal(pulled["head.weight"], params["head.weight"])
    assert torch.equal(pulled["head.bias"], params["head.bias"])
    for group in range(2):
        own = slice(2 * group, 2 * group + 2)
        change, left = (
            torch.cat(
                [
                    (given["conv.weight"] - anchor["conv.weight"])[own].flatten(1),
                    (given["conv.bias"] - anchor["conv.bias"])[own, None],
                ],
                dim=1,
            )
            for given in (params, pulled)
        )
        assert torch.allclose(left, change - excess(change, fisher, 0.3), atol=1e-13)


def test_pulled_parameters_keep_their_type() -> None:
    anchor = {"w.weight": torch.zeros(3, 4), "w.bias": torch.zeros(3)}
    params = {"w.weight": torch.ones(3, 4), "w.bias": torch.ones(3)}
    pulled = anchor_layers(params, anchor, {"w.weight": Fisher(factor(5, 1), factor(3, 2))}, 1.0)
    assert {name: value.dtype for name, value in pulled.items()} == {
        "w.weight": torch.float32,
        "w.bias": torch.float32,
    }
    assert float((pulled["w.weight"] - params["w.weight"]).abs().max()) > 0.1
