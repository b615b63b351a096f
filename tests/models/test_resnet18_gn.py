"""ResNet-18: its size as published, its numbers by hand, and what batching engines do to it."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import fedcl
from fedcl.core.features.layers import input_width, layer_inputs, protected_layers
from fedcl.core.model import check_model
from fedcl.models.resnet18_gn import Resnet18Gn
from tests.tiny import assert_same_runs, tiny


def build(shape: tuple[int, ...] = (3, 9, 11), classes: int = 5, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = Resnet18Gn(**{"width": 4, **options}).build(shape, classes)
    assert isinstance(model, nn.Sequential)
    return model


def size(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def formula(channels: int, width: int, classes: int, kernel: int, normalised: bool) -> int:
    """Weights of stem, blocks, shortcuts and head; two numbers for each normalised channel."""
    count = channels * kernel**2 * width + normalised * 2 * width
    before = width
    for filters in (width, 2 * width, 4 * width, 8 * width):
        convolutions = 9 * before * filters + 3 * 9 * filters**2
        shortcut = before * filters if filters != before else 0
        norms = 5 if shortcut else 4
        count += convolutions + shortcut + normalised * 2 * norms * filters
        before = filters
    return count + 8 * width * classes + classes


@pytest.mark.parametrize(
    ("options", "shape", "classes", "published"),
    [
        ({}, (3, 32, 32), 10, 11_173_962),
        ({}, (3, 32, 32), 100, 11_220_132),
        ({"stem": "imagenet", "groups": 32}, (3, 224, 224), 1000, 11_689_512),
    ],
    ids=["CIFAR-10", "CIFAR-100", "ImageNet"],
)
def test_it_has_the_published_size(
    options: dict[str, Any], shape: tuple[int, ...], classes: int, published: int
) -> None:
    """He et al.'s with batch normalisation, which has as many weights, and the CIFAR form of it."""
    with torch.device("meta"):
        model = Resnet18Gn(**options).build(shape, classes)
    kernel = 7 if "stem" in options else 3
    assert size(model) == formula(3, 64, classes, kernel, normalised=True) == published


@pytest.mark.parametrize("width", [1, 6, 20])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_size_follows_from_the_width(width: int, channels: int) -> None:
    for groups, stem in itertools.product((0, 1), (3, 7)):
        options: dict[str, Any] = {"groups": groups, "stem": "small" if stem == 3 else "imagenet"}
        model = Resnet18Gn(width=width, **options).build((channels, 32, 32), 7)
        assert size(model) == formula(channels, width, 7, stem, normalised=bool(groups))


def test_it_has_twenty_convolutions_as_fot_counts_them() -> None:
    layers = protected_layers(build(groups=0, width=20))
    assert len(layers) == 21 and list(layers)[-1] == "head.weight"
    assert [input_width(layer) for layer in layers.values()][:3] == [27, 180, 180]


def test_only_plain_layers_hold_parameters() -> None:
    for options in ({}, {"groups": 0}, {"stem": "imagenet"}):
        model = build((3, 40, 33), **options)
        holders = {
            type(m) for m in model.modules() if next(m.parameters(recurse=False), None) is not None
        }
        assert holders <= {nn.Conv2d, nn.Linear, nn.GroupNorm}
        assert ({nn.GroupNorm} <= holders) == bool(options.get("groups", 2))
        assert all(layer.bias is None for layer in model.modules() if isinstance(layer, nn.Conv2d))
        check_model(model)


def by_hand(params: dict[str, Tensor], x: Tensor, groups: int, imagenet: bool) -> Tensor:
    """The network of the papers' equations, with group statistics written out."""

    def norm(name: str, x: Tensor) -> Tensor:
        if not groups:
            return x
        parts = x.reshape(len(x), groups, -1)
        mean = parts.mean(2, keepdim=True)
        deviation = ((parts - mean).square().mean(2, keepdim=True) + 1e-5).sqrt()
        weight, bias = (params[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return ((parts - mean) / deviation).reshape(x.shape) * weight + bias

    if imagenet:
        x = F.conv2d(x, params["conv1.weight"], stride=2, padding=3)
        x = F.max_pool2d(torch.relu(norm("norm1", x)), 3, 2, 1)
    else:
        x = torch.relu(norm("norm1", F.conv2d(x, params["conv1.weight"], padding=1)))
    for stage, block in itertools.product((1, 2, 3, 4), (0, 1)):
        name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        inner = F.conv2d(x, params[f"{name}.conv1.weight"], stride=stride, padding=1)
        inner = torch.relu(norm(f"{name}.norm1", inner))
        inner = norm(f"{name}.norm2", F.conv2d(inner, params[f"{name}.conv2.weight"], padding=1))
        if stride == 2:
            x = norm(
                f"{name}.shortcut.norm",
                F.conv2d(x, params[f"{name}.shortcut.conv.weight"], stride=2),
            )
        x = torch.relu(inner + x)
    return x.mean((2, 3)) @ params["head.weight"].T + params["head.bias"]


@pytest.mark.parametrize("groups", [0, 1, 4])
@pytest.mark.parametrize(("stem", "shape"), [("small", (3, 9, 11)), ("imagenet", (1, 33, 47))])
def test_it_computes_what_the_papers_say(groups: int, stem: str, shape: tuple[int, ...]) -> None:
    model = build(shape, groups=groups, stem=stem).double()
    params = {name: torch.randn_like(value) * 0.3 for name, value in model.named_parameters()}
    x = torch.randn(3, *shape, dtype=torch.float64)
    found = functional_call(model, params, (x,))
    torch.testing.assert_close(found, by_hand(params, x, groups, stem == "imagenet"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 9)])
def test_a_batch_of_networks_is_each_network_alone(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    model = build(shape).to(dtype)
    names = [name for name, _ in model.named_parameters()]
    stacked = {
        name: torch.stack([value, value * 1.1, value + 0.01])
        for name, value in model.named_parameters()
    }
    x = torch.randn(3, 4, *shape, dtype=dtype)
    y = torch.tensor([[0, 1, 2, 3], [4, 4, 0, 1], [2, 2, 2, 2]])

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, params, (x,)), y)

    together = vmap(grad(loss))(stacked, x, y)
    for client in range(3):
        alone = grad(loss)({name: stacked[name][client] for name in names}, x[client], y[client])
        for name in names:
            assert alone[name].isfinite().all() and alone[name].abs().max() > 0, name
            torch.testing.assert_close(together[name][client], alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [2, 4])
def test_a_network_that_starts_with_identities(groups: int) -> None:
    """With blocks that add nothing, a stage without a shortcut of its own passes its input on."""
    model = build(groups=groups, zero_init=True)
    plain = build(groups=groups)
    zeroed = {name for name, value in model.named_parameters() if value.abs().max() == 0}
    assert {name for name in zeroed if name.endswith("weight")} == {
        f"layer{stage}.{block}.norm2.weight" for stage in (1, 2, 3, 4) for block in (0, 1)
    }
    for (name, value), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(value, other) == (not name.endswith("norm2.weight")), name
    x = torch.randn(2, 4, 9, 11).relu()
    assert torch.equal(model.get_submodule("layer1")(x), x)


def test_convolutions_start_with_the_variance_of_he() -> None:
    """The standard deviation is sqrt(2 / (9 * filters)): activations keep their size backwards."""
    weight = build(width=64).get_parameter("layer2.1.conv1.weight").detach()
    assert float(weight.std(correction=0)) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.01)
    assert abs(float(weight.mean())) < 0.001


def test_layer_inputs_times_weights_are_what_the_convolutions_give() -> None:
    model = build()
    x = torch.randn(2, 3, 9, 11)
    params = dict(model.named_parameters())
    inputs = layer_inputs(model, params, x)
    assert list(inputs) == list(protected_layers(model))
    stem = inputs["conv1.weight"] @ params["conv1.weight"].flatten(1).T  # (2 * 9 * 11, 4)
    wanted = F.conv2d(x, params["conv1.weight"], padding=1)
    torch.testing.assert_close(stem.unflatten(0, (2, 9, 11)).permute(0, 3, 1, 2), wanted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"groups": -1}, "groups must be at least 0, not -1"),
        ({"width": 20, "groups": 32}, "groups = 32 must divide the width 20"),
        ({"stem": "big"}, 'stem must be "small" or "imagenet", not \'big\''),
        ({"groups": 0, "zero_init": True}, "zero_init needs normalisation: set groups above 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Resnet18Gn(**options)


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({}, (64,), r"needs images .*, not inputs of shape \(64,\); try mlp"),
        ({}, (3, 8, 7), r"8x7 are too small for resnet18_gn with stem = 'small' \(8x8 at least\)"),
        ({"stem": "imagenet"}, (3, 31, 32), r"31x32 are too small .* \(32x32 at least\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    options: dict[str, Any], shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Resnet18Gn(width=2, **options).build(shape, 10)


def test_a_run_is_the_same_twice_and_nearly_the_same_vectorised() -> None:
    changes = {
        "dataset.features": [1, 8, 8],
        "dataset.train": 40,
        "dataset.test": 16,
        "model": {"name": "resnet18_gn", "width": 2},
        "stream.clients": 3,
        "training.rounds": 1,
        "training.dtype": "float64",
    }
    loop = fedcl.run(tiny(changes))
    assert_same_runs(loop, fedcl.run(tiny(changes)))
    batched = fedcl.run(tiny(changes, engine={"name": "vectorized"}))
    for name, value in loop.params.items():
        torch.testing.assert_close(batched.params[name], value, rtol=1e-9, atol=1e-9)
