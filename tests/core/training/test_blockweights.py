"""Both ways to hold a linear layer's weights do the steps of `torch.optim.SGD`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedcl.core.sgd import Settings
from fedcl.core.trained import LowRank
from fedcl.core.training.blockweights import Outer, Step, Stepped, UsedTwice, Weights, recurrence

CLIENTS, WIDTH, STEPS = 3, 4, 5
OPTIONS = [
    Settings(1, WIDTH, 0.1),
    Settings(1, WIDTH, 0.1, weight_decay=0.3),
    Settings(1, WIDTH, 0.1, momentum=0.9),
    Settings(1, WIDTH, 0.1, momentum=0.5, weight_decay=0.3),
]
options_of = pytest.mark.parametrize("options", OPTIONS, ids=str)
biased = pytest.mark.parametrize("bias", [True, False])


def layer_of(bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 5, bias).double()


def held(kind: str, layer: nn.Linear, options: Settings) -> Weights:
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    if kind == "outer":
        return Outer(weight, bias, CLIENTS, STEPS * WIDTH, *recurrence(options, STEPS))
    return Stepped(
        weight.repeat(CLIENTS, 1, 1),
        None if bias is None else bias.repeat(CLIENTS, 1),
        options.lr,
        options.weight_decay,
        options.momentum,
    )


def params_of(weights: Weights, k: int, layer: nn.Linear, options: Settings) -> list[Tensor]:
    if isinstance(weights, Stepped):
        return [value[k] for value in weights.own]
    assert isinstance(weights, Outer)
    scale, factor = recurrence(options, STEPS)
    left = weights.left * factor[-1].repeat_interleave(WIDTH)[:, None]
    found = LowRank(scale[-1].repeat(CLIENTS), left, tuple(weights.right))
    own = [found.weight(k, weights.weight)]
    return own if weights.bias is None else [*own, found.bias(k, weights.bias)]


def target(y: Tensor) -> Tensor:
    return (y - 1.0).square().sum()


@biased
@options_of
@pytest.mark.parametrize("kind", ["stepped", "outer"])
@pytest.mark.parametrize("unused", ["no step", "step 0", "step 2", "last step"])
def test_steps_are_those_of_pytorch(kind: str, options: Settings, bias: bool, unused: str) -> None:
    """In a step that does not use the layer its gradient is zero: it still decays and coasts."""
    layer = layer_of(bias)
    weights = held(kind, layer, options)
    anchor = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x = torch.randn(STEPS, CLIENTS, WIDTH, 6, dtype=torch.float64)
    skipped = {"no step": -1, "step 0": 0, "step 2": 2, "last step": STEPS - 1}[unused]
    for number, rows in enumerate(x):
        step = Step(CLIENTS, number, WIDTH, anchor, learning=True)
        if number != skipped:
            target(weights.apply(rows.flatten(0, 1), step)).backward()
        elif number:
            # Called, and not a part of the loss: not even infinity may count.
            weights.apply(rows.flatten(0, 1) / 0.0, step)
        weights.finish(step)
    for k in range(CLIENTS):
        own = layer_of(bias)
        optimizer = torch.optim.SGD(
            own.parameters(), options.lr, options.momentum, weight_decay=options.weight_decay
        )
        for number, rows in enumerate(x):
            for value in own.parameters():
                value.grad = torch.zeros_like(value)
            if number != skipped:
                target(own(rows[k])).backward()
            optimizer.step()
        found = params_of(weights, k, layer, options)
        for a, b in zip(found, own.parameters(), strict=True):
            assert float((a - b).detach().abs().max()) < 1e-12


@pytest.mark.parametrize("kind", ["stepped", "outer"])
def test_gradients_of_the_inputs_are_those_before_the_step(kind: str) -> None:
    layer, options = layer_of(True), OPTIONS[-1]
    weights = held(kind, layer, options)
    anchor = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for number in range(STEPS):
        step = Step(CLIENTS, number, WIDTH, anchor, learning=True)
        x = torch.randn(CLIENTS * WIDTH, 6, dtype=torch.float64, requires_grad=True)
        before = held_weights(weights, layer, options, number)
        y = weights.apply(x, step)
        target(y).backward()
        change = 2 * (y.detach() - 1.0).view(CLIENTS, WIDTH, 5)
        assert x.grad is not None
        assert torch.allclose(x.grad.view(CLIENTS, WIDTH, 6), change @ before, rtol=0, atol=1e-12)
        weights.finish(step)


def held_weights(weights: Weights, layer: nn.Linear, options: Settings, number: int) -> Tensor:
    """Returns the (clients, out, in) weights before a step."""
    if isinstance(weights, Stepped):
        return weights.weight.clone()
    assert isinstance(weights, Outer)
    scale, factor = recurrence(options, STEPS)
    left = weights.left * factor[number].repeat_interleave(WIDTH)[:, None]
    found = LowRank(scale[number].repeat(CLIENTS), left, tuple(weights.right))
    return torch.stack([found.weight(k, layer.weight.detach()) for k in range(CLIENTS)])


@pytest.mark.parametrize("kind", ["stepped", "outer"])
def test_one_use_in_each_step_and_one_gradient(kind: str) -> None:
    layer, options = layer_of(True), OPTIONS[0]
    weights = held(kind, layer, options)
    anchor = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x = torch.randn(CLIENTS * WIDTH, 6, dtype=torch.float64, requires_grad=True)
    step = Step(CLIENTS, 0, WIDTH, anchor)
    y = weights.apply(x, step)
    with pytest.raises(UsedTwice):
        weights.apply(x, step)
    # A gradient that the loss asks for by itself.
    with pytest.raises(UsedTwice):
        torch.autograd.grad(y.sum(), x)


@options_of
def test_the_recurrence_is_that_of_pytorch(options: Settings) -> None:
    """Weights as a sum of the start and of the gradients, told apart by units of their own."""
    scale, factor = recurrence(options, STEPS)
    value = torch.zeros(STEPS + 1, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        value[0] = 1.0
    optimizer = torch.optim.SGD(
        [value], options.lr, options.momentum, weight_decay=options.weight_decay
    )
    for step in range(STEPS + 1):
        found = torch.cat([scale[step, None], factor[step]])
        assert torch.allclose(value.detach(), found, rtol=0, atol=1e-15)
        if step < STEPS:
            value.grad = torch.eye(STEPS + 1, dtype=torch.float64)[step + 1]
            optimizer.step()
