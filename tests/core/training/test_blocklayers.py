"""Layers that train several clients at once do what PyTorch's layers do for each of them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedcl.core.block import Path
from fedcl.core.client import Model
from fedcl.core.local import Local, Proximal, cross_entropy
from tests.core import toys
from tests.core.blocks import FULL, PLAIN, block_by, by_pytorch, check, clients

Build = Callable[[], nn.Module]


class Net(nn.Module):
    """A network whose forward pass is handed in."""

    def __init__(self, call: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Calls what was handed in."""
        return self.call(self, x)


def convolution(places: int, layer: nn.Conv2d) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(4 * places, 3))


def words(x: Tensor) -> Tensor:
    """Returns rows of an embedding of 5; about a third of them are 0."""
    return (x.abs() * 3).long() % 5


def embedding(layer: nn.Embedding) -> nn.Module:
    return Net(
        lambda net, x: net.head(net.words(words(x)).flatten(1)), words=layer, head=nn.Linear(24, 3)
    )


class Inner(nn.Module):
    """A block with a residual connection, of which a network may hold several."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"a": nn.Linear(6, 9), "b": nn.Linear(9, 6, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        """Returns x plus what two layers make of it."""
        inner: Tensor = self.body["b"](torch.tanh(self.body["a"](x)))
        return x + inner


IMAGE, SERIES = (2, 5, 7), (4, 6)
LAYERS: dict[str, tuple[tuple[int, ...], Build]] = {
    # The model is the layer itself.
    "linear": ((6,), lambda: nn.Linear(6, 3)),
    "no bias": ((6,), lambda: nn.Linear(6, 3, bias=False)),
    # Layers that are held as outer products while their clients have visited 24 examples.
    "wide": ((60,), lambda: nn.Sequential(nn.Linear(60, 70), nn.Tanh(), nn.Linear(70, 3))),
    "wide, no bias": (
        (60,),
        lambda: nn.Sequential(nn.Linear(60, 70, bias=False), nn.Tanh(), nn.Linear(70, 3)),
    ),
    "deep and wide": (
        (60,),
        lambda: nn.Sequential(
            nn.Linear(60, 70), nn.Tanh(), nn.Linear(70, 60), nn.Tanh(), nn.Linear(60, 3)
        ),
    ),
    # What follows changes the layer's output in place.
    "in place": ((6,), lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(True), nn.Linear(9, 3))),
    "in place, wide": (
        (60,),
        lambda: nn.Sequential(nn.Linear(60, 70), nn.ReLU(True), nn.Linear(70, 3)),
    ),
    "nested": ((6,), lambda: nn.Sequential(Inner(), Inner(), nn.Linear(6, 3))),
    # A layer that takes several rows of each example.
    "series": (
        SERIES,
        lambda: Net(
            lambda n, x: n.b(n.a(x).tanh().mean(1)), a=nn.Linear(6, 70), b=nn.Linear(70, 3)
        ),
    ),
    "four dimensions": (
        (2, 3, 6),
        lambda: Net(
            lambda n, x: n.b(n.a(x).tanh().sum((1, 2))), a=nn.Linear(6, 5), b=nn.Linear(5, 3)
        ),
    ),
    "inputs that do not lie in order": (
        SERIES,
        lambda: Net(
            lambda n, x: n.b(n.a(x.transpose(1, 2)).tanh().mean(1)),
            a=nn.Linear(4, 5),
            b=nn.Linear(5, 3),
        ),
    ),
    "outputs that do not lie in order": (
        (6,),
        lambda: Net(lambda n, x: n.a(x).view(len(x), 3, 2)[:, :, 1], a=nn.Linear(6, 6)),
    ),
    "asks for the number of rows": (
        (6,),
        lambda: Net(
            lambda n, x: n.b(n.a(x).view(x.shape[0], 2, 3).sum(1)),
            a=nn.Linear(6, 6),
            b=nn.Linear(3, 3),
        ),
    ),
    "folds more into the rows": (
        SERIES,
        lambda: Net(
            lambda n, x: n.b(n.a(x.reshape(-1, 6)).tanh().view(-1, 4, 5).mean(1)),
            a=nn.Linear(6, 5),
            b=nn.Linear(5, 3),
        ),
    ),
    "called twice": (
        (6,),
        lambda: Net(
            lambda n, x: n.b(n.a(n.a(x).tanh()).tanh()), a=nn.Linear(6, 6), b=nn.Linear(6, 3)
        ),
    ),
    "never called": (
        (6,),
        lambda: Net(lambda n, x: n.b(x), a=nn.Linear(6, 6), b=nn.Linear(6, 3)),
    ),
    "group norm": (
        IMAGE,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(True), nn.Flatten(), nn.Linear(60, 3)
        ),
    ),
    "group norm of rows": (
        (6,),
        lambda: nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Linear(8, 3)),
    ),
    "group norm without weights": (
        (6,),
        lambda: nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8, affine=False), nn.Linear(8, 3)),
    ),
    "layer norm": (
        SERIES,
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.LayerNorm(8), nn.LayerNorm((4, 8)), nn.Flatten(), nn.Linear(32, 3)
        ),
    ),
    "layer norm without bias": (
        (6,),
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, bias=False), nn.Linear(8, 3)),
    ),
    "layer norm without weights": (
        (6,),
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3)
        ),
    ),
    "embedding": ((6,), lambda: embedding(nn.Embedding(5, 4))),
    "embedding with padding": ((6,), lambda: embedding(nn.Embedding(5, 4, padding_idx=0))),
    "embedding with padding at its end": (
        (6,),
        lambda: embedding(nn.Embedding(5, 4, padding_idx=-1)),
    ),
    "convolution": (IMAGE, lambda: convolution(15, nn.Conv2d(2, 4, 3))),
    "strides and padding": (
        IMAGE,
        lambda: convolution(9, nn.Conv2d(2, 4, 3, stride=(2, 3), padding=(1, 2), bias=False)),
    ),
    "points with steps between": (IMAGE, lambda: convolution(9, nn.Conv2d(2, 4, 1, (2, 3)))),
    "groups": (IMAGE, lambda: convolution(35, nn.Conv2d(2, 4, 3, padding=1, groups=2))),
    "dilation": (IMAGE, lambda: convolution(15, nn.Conv2d(2, 4, 3, padding=1, dilation=2))),
    "padding same": (
        IMAGE,
        lambda: convolution(35, nn.Conv2d(2, 4, (2, 3), padding="same", dilation=(1, 2))),
    ),
    "padding valid": (IMAGE, lambda: convolution(35, nn.Conv2d(2, 4, 1, padding="valid"))),
    "padding reflect": (
        IMAGE,
        lambda: convolution(45, nn.Conv2d(2, 4, 3, padding=(1, 2), padding_mode="reflect")),
    ),
    "padding replicate": (
        IMAGE,
        lambda: convolution(35, nn.Conv2d(2, 4, 3, padding=1, padding_mode="replicate")),
    ),
    "padding circular, same": (
        IMAGE,
        lambda: convolution(35, nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular")),
    ),
    "images whose channels come last": (
        (5, 7, 2),
        lambda: Net(
            lambda n, x: n.b(n.a(x.permute(0, 3, 1, 2)).tanh().flatten(1)),
            a=nn.Conv2d(2, 4, 3),
            b=nn.Linear(60, 3),
        ),
    ),
    "pooling between convolutions": (
        (1, 9, 9),
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("path", ["fused", "grouped"])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_pytorch(name: str, path: Path) -> None:
    shape, build = LAYERS[name]
    torch.manual_seed(2)
    model = build().double()
    some = clients(model, (7, 1, 12, 4), shape=shape)
    message = Model(toys.parameters(model))
    for options in (PLAIN, FULL):
        trained = block_by(path, Local(cross_entropy), options, some, message)
        for client, own in zip(some, trained, strict=True):
            assert toys.distance(own.params, by_pytorch(options, client)) < 1e-12
            assert toys.distance(own.params, message.params) > 1e-3


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_loop_with_a_penalty(name: str) -> None:
    """All gradients come from autograd then."""
    shape, build = LAYERS[name]
    torch.manual_seed(2)
    model = build().double()
    check("fused", Local(cross_entropy, Proximal(0.3)), FULL, clients(model, (5, 8), shape=shape))


@pytest.mark.parametrize("bias", [True, False])
def test_a_wide_layer_that_is_the_model(bias: bool) -> None:
    torch.manual_seed(2)
    model = nn.Linear(90, 60, bias).double()
    check("fused", Local(cross_entropy), FULL, clients(model, shape=(90,), classes=60))


@pytest.mark.parametrize("value", [-1, 5])
@pytest.mark.parametrize("path", ["fused", "loop"])
def test_an_embedding_does_not_read_the_next_clients_rows(path: Path, value: int) -> None:
    model = Net(
        lambda n, x: n.b(n.a(torch.where(x > 9, value, 2)).flatten(1)),
        a=nn.Embedding(5, 4),
        b=nn.Linear(24, 3),
    ).double()
    some = clients(model, (4, 4))
    message = Model(toys.parameters(model))
    block_by(path, Local(cross_entropy), PLAIN, some, message)
    some[0].data.x[2] = 10.0
    with pytest.raises(IndexError):
        block_by(path, Local(cross_entropy), PLAIN, some, message)
