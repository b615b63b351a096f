"""Layer inputs times the weight are the output; times the signals they are its gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcl.core.features.layers import (
    append_one,
    guarded_layers,
    input_width,
    layer_inputs,
    layer_signals,
    protected_layers,
)
from fedcl.core.model import Dropout
from fedcl.core.task import ScenarioKind
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from tests.core import toys


def output_by_inputs(layer: nn.Conv2d, inputs: Tensor, n: int) -> Tensor:
    """Returns (n, out, places) that `inputs @ W.T` gives, group by group."""
    groups = layer.groups
    weight = layer.weight.detach().reshape(groups, -1, input_width(layer))  # (g, out / g, d)
    rows = inputs.reshape(n, -1, groups, input_width(layer))  # (n, places, g, d)
    found = torch.stack([rows[:, :, g] @ weight[g].T for g in range(groups)], 2)
    return found.flatten(2).transpose(1, 2)


def check(channels: int, out: int, size: tuple[int, int], **options: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = nn.Conv2d(channels, out, **options).double()
    x = torch.randn((3, channels, *size), generator=generator, dtype=torch.float64)
    model = nn.Sequential()
    model.add_module("conv", layer)
    inputs = layer_inputs(model, toys.parameters(model), x)["conv.weight"]
    expected = layer(x).detach()
    if layer.bias is not None:
        expected = expected - layer.bias.detach()[:, None, None]
    assert inputs.shape == (
        3 * expected[0, 0].numel() * layer.groups,
        input_width(layer),
    )
    assert (
        input_width(layer)
        == channels // layer.groups * layer.kernel_size[0] * (layer.kernel_size[1])
    )
    found = output_by_inputs(layer, inputs, 3).reshape(expected.shape)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 1},
        {"kernel_size": (3, 2)},
        {"kernel_size": 3, "bias": False},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": (2, 0)},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 4, "padding": "same"},
        {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)},
        {"kernel_size": 3, "padding": "valid"},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 3, "stride": (2, 3), "padding": 2},
        {"kernel_size": 2, "dilation": 2},
        {"kernel_size": 3, "dilation": (1, 2), "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": (1, 2), "padding_mode": "replicate"},
        {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
        {"kernel_size": 4, "padding": "same", "padding_mode": "reflect"},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 2, "groups": 4, "padding": 1, "stride": 2},
        {"kernel_size": 3, "groups": 2, "padding": "same", "padding_mode": "circular"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_patches_times_the_weight_are_the_convolution(options: dict[str, Any]) -> None:
    check(4, 8, (8, 7), **options)


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    groups=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    size=st.tuples(st.integers(5, 8), st.integers(5, 8)),
)
def test_any_geometry(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    mode: str,
    size: tuple[int, int],
) -> None:
    check(
        4,
        4,
        size,
        kernel_size=kernel,
        stride=stride,
        dilation=dilation,
        padding=padding,
        groups=groups,
        padding_mode=mode,
    )


class Odd(nn.Module):
    """A network with a layer used twice, one on sequences, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.drop = Dropout(0.5, (4,))
        self.steps = nn.Linear(2, 3, bias=False)
        self.unused = nn.Linear(9, 9)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(self.drop(torch.relu(self.twice(x)))))
        found: Tensor = self.head(self.steps(x.unflatten(1, (2, 2))).flatten(1))
        return found


def test_linear_layers_anywhere() -> None:
    model = Odd().double()
    x = torch.randn(5, 4, dtype=torch.float64)
    params = {name: value + 0.1 for name, value in toys.parameters(model).items()}
    inputs = layer_inputs(model, params, x)
    assert list(inputs) == ["twice.weight", "steps.weight", "head.weight"]
    weight, bias = params["twice.weight"], params["twice.bias"]
    first = torch.relu(x @ weight.T + bias)
    second = torch.relu(first @ weight.T + bias)
    # The given parameters are used, without dropout; a layer used twice has twice the rows.
    assert torch.allclose(inputs["twice.weight"], torch.cat([x, first]))
    assert torch.allclose(inputs["steps.weight"], second.reshape(10, 2))
    steps = (inputs["steps.weight"] @ params["steps.weight"].T).reshape(5, 6)
    assert torch.allclose(inputs["head.weight"], steps)


def test_looking_leaves_no_trace() -> None:
    model = Odd()
    params = {name: value.requires_grad_() for name, value in toys.parameters(model).items()}
    inputs = layer_inputs(model, params, torch.randn(3, 4))
    assert not any(value.requires_grad for value in inputs.values())
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(RuntimeError):
        layer_inputs(model, params, torch.randn(3, 5))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_layers_go_by_the_names_of_their_weights() -> None:
    model = Odd()
    layers = protected_layers(model)
    assert list(layers) == ["twice.weight", "steps.weight", "unused.weight", "head.weight"]
    assert all(dict(model.named_parameters())[name] is layers[name].weight for name in layers)
    single = nn.Linear(2, 2)
    assert list(protected_layers(single)) == ["weight"]
    assert "weight" in dict(single.named_parameters())


def test_a_bias_is_the_weight_of_a_constant_input() -> None:
    model = Odd()
    inputs = torch.randn(3, 4)
    extended = append_one(model, "twice.weight", inputs)
    joined = torch.cat([model.twice.weight, model.twice.bias[:, None]], 1)
    assert torch.allclose(extended @ joined.T, model.twice(inputs), atol=1e-6)
    assert append_one(model, "steps.weight", inputs) is inputs


# --- Signals: inputs and the gradients at outputs. ---


def losses_of(logits: Tensor) -> Tensor:
    """A loss of each example whose gradient differs from one to the next."""
    labels = torch.arange(len(logits)) % logits.shape[1]
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def autograds(
    model: nn.Module, params: dict[str, Tensor], x: Tensor, losses: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Returns the gradients of all parameters by the usual way, zeros where there is none."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    value = losses(torch.func.functional_call(model, leaves, (x,))).sum()
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(params[name]) if own is None else own
        for name, own in zip(leaves, found, strict=True)
    }


def check_signals(
    model: nn.Module, x: Tensor, losses: Callable[[Tensor], Tensor] = losses_of
) -> dict[str, Tensor]:
    """Asserts that inputs and signals give each weight's gradient, and each bias's."""
    generator = torch.Generator().manual_seed(5)
    params = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in toys.parameters(model).items()
    }
    inputs, signals = layer_signals(model, params, x, losses)
    expected = autograds(model, params, x, losses)
    plain = layer_inputs(model, params, x)
    assert list(inputs) == list(plain)
    assert set(signals) == set(inputs)
    layers = protected_layers(model)
    for name, rows in inputs.items():
        layer, signal = layers[name], signals[name]
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        out = layer.weight.shape[0] // groups
        # The rows are those of `layer_inputs`, to the bit.
        assert torch.equal(rows, plain[name])
        assert signal.shape == (len(rows), out)
        assert not signal.requires_grad and not rows.requires_grad
        gradient = expected[name].reshape(groups, out, -1)
        assert torch.allclose(signal.T @ rows, gradient.sum(0), rtol=0, atol=1e-12), name
        # Group by group: every place has a row for each group, one after the other.
        own = [signal[g::groups].T @ rows[g::groups] for g in range(groups)]
        assert torch.allclose(torch.stack(own), gradient, rtol=0, atol=1e-12), name
        if layer.bias is not None:
            bias = expected[name.removesuffix("weight") + "bias"].reshape(groups, out)
            sums = torch.stack([signal[g::groups].sum(0) for g in range(groups)])
            assert torch.allclose(sums, bias, rtol=0, atol=1e-12), name
            extended = append_one(model, name, rows)
            joined = torch.cat([gradient.sum(0), bias.sum(0)[:, None]], 1)
            assert torch.allclose(signal.T @ extended, joined, rtol=0, atol=1e-12)
    assert max(float(signal.abs().max()) for signal in signals.values()) > 1e-3
    return signals


@pytest.mark.parametrize("bias", [True, False])
def test_signals_of_linear_layers(bias: bool) -> None:
    model = nn.Sequential(
        nn.Linear(4, 6, bias=bias), nn.Tanh(), nn.Linear(6, 5, bias=bias), nn.Linear(5, 3)
    ).double()
    check_signals(model, torch.randn(7, 4, dtype=torch.float64))


class Sequence(nn.Module):
    """Linear layers on (n, steps, features) inputs, the last on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Linear(4, 5)
        self.wide = nn.Linear(5, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.wide(torch.tanh(self.steps(x)))).mean(1))
        return found


def test_signals_of_three_dimensional_inputs() -> None:
    model = Sequence().double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    signals = check_signals(model, x)
    assert signals["steps.weight"].shape == (15, 5)
    # Example after example, and step after step: those of one example alone are its rows.
    params = toys.parameters(model)
    _, everyone = layer_signals(model, params, x, lambda logits: logits.square().sum(1))
    for row in range(5):
        alone = layer_signals(model, params, x[row : row + 1], lambda logits: logits.square())[1]
        for name, own in alone.items():
            k = len(own)
            assert torch.allclose(everyone[name][row * k : (row + 1) * k], own, atol=1e-12), name


class Convolved(nn.Module):
    """One convolution, an activation in place, and a head."""

    def __init__(self, size: tuple[int, int], **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, **options)
        self.relu = nn.ReLU(inplace=True)
        width = self.conv(torch.zeros(1, 4, *size)).numel()
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.relu(self.conv(x)).flatten(1))
        return found


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": (3, 2), "padding": (2, 1)},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "stride": (2, 3), "padding": 1},
        {"kernel_size": (2, 3), "dilation": (3, 2), "padding": 2, "stride": 2},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 2, "groups": 4, "padding": 1, "stride": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    ],
    ids=str,
)
def test_signals_of_convolutions(options: dict[str, Any]) -> None:
    torch.manual_seed(2)
    model = Convolved((6, 7), **options).double()
    check_signals(model, torch.randn(3, 4, 6, 7, dtype=torch.float64))


def test_signals_of_a_layer_used_twice_and_of_one_never_used() -> None:
    model = Odd().double()
    signals = check_signals(model, torch.randn(5, 4, dtype=torch.float64))
    assert signals["twice.weight"].shape == (10, 4)
    assert "unused.weight" not in signals


class Side(nn.Module):
    """A network of which only a part reaches the first logits, and that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.left = nn.Linear(4, 2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).relu_()
        return torch.cat([self.head(hidden), self.left(hidden).mul_(2.0)], 1)


def test_signals_are_zero_where_the_loss_does_not_reach() -> None:
    def first(logits: Tensor) -> Tensor:
        return logits[:, :2].square().sum(1)

    model, x = Side().double(), torch.randn(6, 4, dtype=torch.float64)
    signals = check_signals(model, x, first)
    assert signals["left.weight"].tolist() == [[0.0, 0.0]] * 6
    both = check_signals(model, x)
    assert float(both["left.weight"].abs().min()) > 0
    # Nor does a detached layer get a signal.
    cut = nn.Sequential(nn.Linear(4, 4), Cut(), nn.Linear(4, 3)).double()
    signals = check_signals(cut, x)
    assert not bool(signals["0.weight"].any())


class Cut(nn.Module):
    """Lets no gradient through."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_signals_of_a_loss_of_any_form() -> None:
    """What is summed may be a value, a row or a matrix; sums of it are what is differentiated."""
    model, x = Side().double(), torch.randn(6, 4, dtype=torch.float64)
    params = toys.parameters(model)
    forms = (lambda z: z.exp(), lambda z: z.exp().sum(1), lambda z: z.exp().sum())
    found = [layer_signals(model, params, x, form)[1] for form in forms]
    for other in found[1:]:
        assert toys.distance(found[0], other) < 1e-12


def test_looking_at_signals_leaves_no_trace() -> None:
    model, x = Odd(), torch.randn(3, 4)
    params = {name: value.requires_grad_() for name, value in toys.parameters(model).items()}
    with torch.no_grad():  # an engine's statistics run without gradients
        inputs, signals = layer_signals(model, params, x, losses_of)
    assert not any(value.requires_grad for value in (*inputs.values(), *signals.values()))
    assert all(value.requires_grad and value.grad is None for value in params.values())
    assert all(value.grad is None for value in model.parameters())
    with pytest.raises(RuntimeError):
        layer_signals(model, params, torch.randn(3, 5), losses_of)
    assert not any(module._forward_hooks for module in model.modules())


def test_signals_of_no_examples_are_no_rows() -> None:
    """A sum over a client's examples begins with none where it holds none."""
    for model in (Mlp((5,)).build((1, 6, 6), 3), Cnn((4,), 6, 2).build((1, 6, 6), 3)):
        params = {name: value.detach() for name, value in model.named_parameters()}
        inputs, signals = layer_signals(
            model, params, torch.zeros(0, 1, 6, 6), lambda logits: logits.square().sum(1)
        )
        for name, rows in inputs.items():
            assert len(rows) == len(signals[name]) == 0
            assert (signals[name].T @ rows).shape == params[name].flatten(1).shape


# --- What a method guards. ---


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_which_layers_are_guarded(scenario: ScenarioKind) -> None:
    model = Odd()
    body = ("twice.weight", "steps.weight", "unused.weight")
    everything = (*body, "head.weight")
    assert guarded_layers(model, "protect", scenario) == everything
    assert guarded_layers(model, "free", scenario) == body
    assert guarded_layers(model, "auto", scenario) == (everything if scenario == "domain" else body)


def test_the_head_is_the_layer_of_that_name_wherever_it_lies() -> None:
    inner = nn.Module()
    inner.body, inner.head = nn.Linear(2, 2), nn.Linear(2, 2)
    outer = nn.Module()
    outer.net, outer.ahead = inner, nn.Linear(2, 2)
    assert guarded_layers(outer, "free", "domain") == ("net.body.weight", "ahead.weight")
    # A layer by itself has no name: it is no head.
    assert guarded_layers(nn.Linear(2, 2), "free", "domain") == ("weight",)


@pytest.mark.parametrize("model", [Mlp((5, 4)), Cnn((4,), 6, 2)], ids=["mlp", "cnn"])
def test_the_shipped_models_have_a_head(model: Mlp | Cnn) -> None:
    built = model.build((1, 6, 6), 3)
    everything = guarded_layers(built, "protect", "class")
    assert guarded_layers(built, "auto", "class") == everything[:-1]
    assert everything[-1] == "head.weight"
    assert set(everything) <= set(dict(built.named_parameters()))
    assert not any("norm" in name for name in everything)
