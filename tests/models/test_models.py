"""Architectures: shapes, sizes as published, what they refuse, and what fedcl asks of any model."""

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from fedcl.core.features.layers import input_width, protected_layers
from fedcl.core.model import Architecture, Net, check_model, dropouts
from fedcl.models.alexnet import Alexnet
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from fedcl.models.resnet18_gn import Resnet18Gn

CASES: list[tuple[Architecture, tuple[int, ...]]] = [
    (Mlp(), (20,)),
    (Mlp(hidden=()), (3,)),
    (Mlp(hidden=(7,), input_dropout=0.2, dropout=(0.5,), bias=False), (1, 4, 4)),
    (Cnn(), (1, 8, 8)),
    (Cnn(channels=(4, 6, 8), hidden=0, groups=2, dropout=0.3), (3, 9, 11)),
    (Cnn(channels=(5,), groups=0), (2, 2, 2)),
    (Alexnet(width=0.05), (3, 32, 32)),
    (Alexnet(width=0.05, dropout=(0.0, 0.0)), (1, 19, 24)),
    (Resnet18Gn(width=4), (3, 8, 13)),
    (Resnet18Gn(width=3, groups=0), (1, 15, 9)),
    (Resnet18Gn(width=4, groups=4, stem="imagenet", zero_init=True), (3, 33, 50)),
]


def size(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize(("architecture", "shape"), CASES, ids=str)
def test_what_fedcl_asks_of_any_model(architecture: Architecture, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = architecture.build(shape, 5)
    check_model(model)
    x = torch.randn(3, *shape)
    logits = model(x)
    assert logits.shape == (3, 5)
    assert list(dict(model.named_children()))[-1] == "head"
    assert "head.weight" in dict(model.named_parameters())
    # Examples do not see each other: each one's logits alone are the same.
    alone = torch.cat([model(row[None]) for row in x])
    assert torch.allclose(alone, logits, atol=1e-5)
    # Dropout masks of the shapes that the layers ask for fit.
    generator = torch.Generator().manual_seed(0)
    masks = [layer.draw(3, generator, x.dtype) for layer in dropouts(model)]
    assert Net(model, None, masks)(x).shape == (3, 5)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), logits)
    torch.manual_seed(0)
    again = architecture.build(shape, 5)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert hash(architecture) == hash(pickle.loads(pickle.dumps(architecture)))


# Multi-layer perceptron.


def test_the_mlp_of_fot_has_the_published_size() -> None:
    """METHODS 1.3: 784-400-400-400-10 has 0.639 M parameters, layer inputs 784, 400, 400, 400."""
    model = Mlp(hidden=(400, 400, 400)).build((1, 28, 28), 10)
    assert size(model) == 784 * 400 + 2 * 400 * 400 + 400 * 10 + 3 * 400 + 10 == 638_810
    layers = protected_layers(model)
    assert list(layers) == ["fc1.weight", "fc2.weight", "fc3.weight", "head.weight"]
    assert [input_width(layer) for layer in layers.values()] == [784, 400, 400, 400]


def test_the_default_mlp() -> None:
    model = Mlp().build((64,), 10)
    assert [tuple(p.shape) for n, p in model.named_parameters() if n.endswith("weight")] == [
        (200, 64),
        (200, 200),
        (10, 200),
    ]
    assert dropouts(model) == []


def test_an_mlp_computes_relu_layers() -> None:
    model = Mlp(hidden=(5,)).build((2, 3), 4)
    params = dict(model.named_parameters())
    x = torch.randn(6, 2, 3)
    hidden = torch.relu(x.flatten(1) @ params["fc1.weight"].T + params["fc1.bias"])
    expected = hidden @ params["head.weight"].T + params["head.bias"]
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_dropout_of_an_mlp_one_for_all_or_one_each() -> None:
    def rates(**options: Any) -> list[tuple[float, tuple[int, ...]]]:
        model = Mlp(hidden=(6, 4), **options).build((3,), 2)
        return [(layer.rate, layer.shape) for layer in dropouts(model)]

    assert rates(dropout=(0.5,)) == [(0.5, (6,)), (0.5, (4,))]
    assert rates(dropout=(0.2, 0.5), input_dropout=0.1) == [
        (0.1, (3,)),
        (0.2, (6,)),
        (0.5, (4,)),
    ]
    assert rates(dropout=(0.0, 0.5)) == [(0.5, (4,))]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden": (3, 0)}, r"hidden widths must be at least 1, not \[3, 0\]"),
        ({"input_dropout": 1.0}, r"must lie in \[0, 1\), not 1.0"),
        ({"dropout": (-0.5,)}, r"must lie in \[0, 1\), not -0.5"),
        ({"dropout": (0.1, 0.1, 0.1)}, "dropout names 3 rates for 2 hidden layers"),
    ],
)
def test_options_of_an_mlp_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Mlp(**options)


# Small convolutional network.


def test_the_default_cnn() -> None:
    model = Cnn().build((1, 28, 28), 10)
    expected = (9 * 32 + 32) + 2 * 32 + (32 * 9 * 64 + 64) + 2 * 64
    expected += (64 * 7 * 7 * 128 + 128) + (128 * 10 + 10)
    assert size(model) == expected
    assert [input_width(layer) for layer in protected_layers(model).values()] == [
        9,
        288,
        3136,
        128,
    ]


def test_blocks_halve_the_image_rounding_down() -> None:
    model = Cnn(channels=(4, 4), hidden=0, groups=2).build((1, 7, 10), 3)
    assert dict(model.named_parameters())["head.weight"].shape == (3, 4 * 1 * 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": ()}, "channels must be at least one number above 0"),
        ({"channels": (4, 0)}, r"above 0, not \[4, 0\]"),
        ({"channels": (8, 12)}, "groups = 8 must divide every number of channels"),
        ({"groups": -1}, "groups must be at least 0, not -1"),
        ({"hidden": -1}, "hidden must be at least 0, not -1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1"),
    ],
)
def test_options_of_a_cnn_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Cnn(**options)


# AlexNet.


def test_the_alexnet_of_fot_has_the_published_size() -> None:
    """METHODS 1.3: 6.70 M parameters with 100 classes; inputs 48, 576, 512, 1024, 2048."""
    model = Alexnet().build((3, 32, 32), 100)
    assert size(model) == (
        64 * 3 * 16 + 128 * 64 * 9 + 256 * 128 * 4 + 1024 * 2048 + 2048 * 2048 + 2048 * 100
    )
    assert size(model) == 6_704_128
    layers = protected_layers(model)
    assert [input_width(layer) for layer in layers.values()] == [48, 576, 512, 1024, 2048, 2048]
    assert all(layer.bias is None for layer in layers.values())
    assert [(layer.rate, layer.shape) for layer in dropouts(model)] == [
        (0.2, (64, 29, 29)),
        (0.2, (128, 12, 12)),
        (0.5, (256, 5, 5)),
        (0.5, (2048,)),
        (0.5, (2048,)),
    ]


def test_the_width_scales_every_layer() -> None:
    model = Alexnet(width=0.25).build((3, 32, 32), 10)
    assert [layer.weight.shape[0] for layer in protected_layers(model).values()] == [
        16,
        32,
        64,
        512,
        512,
        10,
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0.0}, "width must be above 0, not 0"),
        ({"dropout": (0.2, 1.0)}, r"dropout rates must lie in \[0, 1\), not \[0.2, 1.0\]"),
    ],
)
def test_options_of_an_alexnet_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Alexnet(**options)


# Inputs that do not fit.


@pytest.mark.parametrize(
    ("architecture", "shape", "words"),
    [
        (Cnn(), (784,), r"cnn needs images .*, not inputs of shape \(784,\); try mlp"),
        (Alexnet(), (9, 128), r"alexnet needs images .*, not inputs of shape \(9, 128\); try mlp"),
        (Cnn(channels=(8, 8, 8)), (1, 8, 7), "8x7 are too small to be halved 3 times"),
        (Alexnet(width=0.01), (3, 18, 32), r"18x32 are too small for alexnet \(19x19 at least\)"),
        (Alexnet(width=0.01), (3, 32, 3), "32x3 are too small for alexnet"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit_are_refused(
    architecture: Architecture, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        architecture.build(shape, 10)
