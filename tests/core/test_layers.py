"""Layer inputs as matrices: times the weight they are the layer's output, for any geometry."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcl.core.layers import append_one, input_width, layer_inputs, protected_layers
from fedcl.core.model import Dropout
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
