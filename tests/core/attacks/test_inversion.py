"""Gradient inversion: labels exactly, images nearly, and what judges models by them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedcl.core.attacks.inversion import (
    TOGETHER,
    Encoder,
    invert,
    labels_of,
    mismatch,
    numbers,
    own_gradients,
)
from fedcl.core.client import Reply
from fedcl.core.errors import ConfigError
from fedcl.core.generative.monitor import (
    allowed_now,
    prototype_gradients,
    prototypes,
    reconstruct,
    right,
)
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.task import Examples, TaskInfo
from tests.core.blocks import mlp
from tests.tiny import same

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (1, 4, 4), (2, 5, 7), (1, 1, 1)]


def images(n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((n, *shape), generator=generator, dtype=torch.float64)


# --- The network whose gradients are sent. ---


@pytest.mark.parametrize("shape", SHAPES)
def test_the_encoder_takes_images_of_any_size(shape: tuple[int, ...]) -> None:
    encoder = Encoder(shape, 7, seed=3)
    x = images(2, shape)
    params = encoder.params(x)
    assert {name: tuple(value.shape) for name, value in params.items()} == encoder.sizes
    assert encoder(params, x).shape == (2, 7)
    assert all(value.dtype == torch.float64 for value in params.values())
    size = sum(value.numel() for value in params.values())
    if min(shape[1:]) > 7:
        assert size <= numbers(x[0].numel(), 7) < 2.1 * size
    assert same(params, Encoder(shape, 7, seed=3).params(x))
    assert not same(params["head.bias"], Encoder(shape, 7, seed=4).params(x)["head.bias"])
    assert same(encoder.params(x.float())["head.bias"], params["head.bias"].float())


@pytest.mark.parametrize("shape", [(16,), (4, 4), (1, 0, 4), (1, 1, 4, 4)])
def test_the_encoder_refuses_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="channels, height and width"):
        Encoder(shape, 3, 0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 5, 7)])
def test_each_example_has_its_own_gradient(shape: tuple[int, ...]) -> None:
    encoder, x, y = Encoder(shape, 4, 1), images(3, shape), torch.tensor([2, 0, 2])
    params = encoder.params(x)
    found = own_gradients(encoder, params, x, y)
    for row in range(3):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        loss = F.cross_entropy(encoder(leaves, x[row : row + 1]), y[row : row + 1])
        for name, slow in zip(
            leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True
        ):
            assert torch.allclose(found[name][row], slow, rtol=0, atol=1e-14), name
    none = own_gradients(encoder, params, x[:0], y[:0])
    assert {name: tuple(value.shape) for name, value in none.items()} == {
        name: (0, *size) for name, size in encoder.sizes.items()
    }


# --- Labels. ---


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 5, 7)])
def test_labels_are_exact(shape: tuple[int, ...]) -> None:
    encoder = Encoder(shape, 10, 5)
    x, y = images(40, shape).float(), torch.arange(40) % 10
    found = own_gradients(encoder, encoder.params(x), x, y)
    assert labels_of(found["head.bias"]).tolist() == y.tolist()


def test_where_there_is_no_gradient_there_is_no_label() -> None:
    bias = torch.tensor([[0.2, -0.5, 0.3], [0.0, 0.0, 0.0], [0.9, 0.1, -1.0]])
    assert labels_of(bias).tolist() == [1, -1, 2]


# --- Images. ---


def test_mismatch_by_hand() -> None:
    wanted = {"a": torch.tensor([[3.0, 0.0], [1.0, 1.0]]), "b": torch.tensor([4.0, 0.0])}
    found = {"a": torch.tensor([[3.0, 2.0], [1.0, 1.0]]), "b": torch.tensor([3.0, 0.0])}
    # (4 + 1) / (9 + 16), and nothing.
    assert mismatch(found, wanted).tolist() == pytest.approx([0.2, 0.0])
    nothing = {name: torch.zeros_like(value) for name, value in wanted.items()}
    assert mismatch(nothing, wanted).tolist() == [1.0, 1.0]


def test_an_image_comes_back_from_its_gradient() -> None:
    """The deeper the search, the nearer gradient and image; the same search ends at the same."""
    encoder, x, y = Encoder((1, 8, 8), 5, 2), images(3, (1, 8, 8)), torch.tensor([4, 0, 3])
    params = encoder.params(x)
    wanted = own_gradients(encoder, params, x, y)
    start = torch.zeros_like(x)
    errors, left = [], []
    for iterations in (0, 15, 300):
        found, far = invert(encoder, params, wanted, y, start, iterations, tolerance=1e-14)
        assert torch.equal(far, mismatch(own_gradients(encoder, params, found, y), wanted))
        errors.append(float((found - x).square().mean()))
        left.append(float(far.max()))
    assert errors[0] == pytest.approx(float(x.square().mean()))
    assert errors[0] > 2 * errors[1] > 1e4 * errors[2]
    assert left[0] > 100 * left[1] > 1e6 * left[2]
    assert errors[2] < 1e-8
    again, _ = invert(encoder, params, wanted, y, start, 300, tolerance=1e-14)
    assert torch.equal(again, found)


def test_many_images_come_back_in_their_order() -> None:
    n = TOGETHER + 5
    encoder, x, y = Encoder((1, 4, 4), 3, 0), images(n, (1, 4, 4)).float(), torch.arange(n) % 3
    params = encoder.params(x)
    wanted = own_gradients(encoder, params, x, y)
    found, far = invert(encoder, params, wanted, y, torch.zeros_like(x), 100)
    assert found.shape == x.shape and far.shape == (n,)
    assert float((found - x).square().flatten(1).mean(1).max()) < 1e-3
    alone, _ = invert(
        encoder, params, {k: v[-5:] for k, v in wanted.items()}, y[-5:], x[-5:] * 0, 9
    )
    part, _ = invert(encoder, params, wanted, y, torch.zeros_like(x), 9)
    assert torch.equal(part[-5:], alone), "what is sought together with others is no one else's"
    none = {k: v[:0] for k, v in wanted.items()}
    assert invert(encoder, params, none, y[:0], x[:0], 9)[0].shape == (0, 1, 4, 4)


def test_a_search_that_breaks_down_leaves_the_start() -> None:
    encoder, x, y = Encoder((1, 4, 4), 3, 0), images(1, (1, 4, 4)), torch.tensor([1])
    params = encoder.params(x)
    wanted = own_gradients(encoder, params, x, y)
    broken = {**wanted, "head.bias": torch.full_like(wanted["head.bias"], torch.nan)}
    found, far = invert(encoder, params, broken, y, torch.ones_like(x), 20)
    assert torch.equal(found, torch.ones_like(x)) and bool(far.isnan().all())


def test_any_smooth_network_gives_its_examples_away() -> None:
    """Vectors from the gradient of a perceptron: nothing here is about images."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()

    def logits(params: Params, x: Tensor) -> Tensor:
        found: Tensor = functional_call(net, dict(params), (x,))
        return found

    x, y = images(4, (6,)), torch.tensor([0, 2, 1, 0])
    params = {name: value.detach() for name, value in net.named_parameters()}
    wanted = own_gradients(logits, params, x, y)
    assert labels_of(wanted["2.bias"]).tolist() == y.tolist()
    found, _ = invert(logits, params, wanted, y, torch.zeros_like(x), 200, tolerance=1e-14)
    assert float((found - x).abs().max()) < 1e-4


# --- What clients send, and what the server makes of it. ---


def identity(width: int) -> Net:
    """A network whose features are its inputs."""
    model = nn.Sequential()
    model.add_module("flatten", nn.Flatten())
    model.add_module("head", nn.Linear(width, 3))
    return Net(model.double())


def test_prototypes_are_nearest_to_the_mean_direction_of_their_class() -> None:
    """Directions 0, 90 and 40 degrees, of any length, have their mean at about 43 degrees."""
    angles = torch.tensor([0.0, 90.0, 40.0, 7.0, 5.0, 9.0]).deg2rad().double()
    lengths = torch.tensor([1.0, 1.0, 50.0, 1.0, 3.0, 2.0]).double()
    x = lengths[:, None] * torch.stack([angles.cos(), angles.sin()], 1)
    data = Examples(x, torch.tensor([2, 2, 2, 0, 0, 0]))
    assert prototypes(identity(2), data).tolist() == [3, 2]
    assert prototypes(identity(2), data.take(torch.zeros(0, dtype=torch.int64))).tolist() == []


def replies(seed: int = 9) -> tuple[list[Reply], Tensor, Tensor]:
    """Two clients: one with classes 0 and 2, one with class 1; replies of three rows."""
    net, sent, chosen, labels = identity(16), [], [], []
    for number, classes in enumerate(([2, 0, 0, 2], [1, 1, 1])):
        data = Examples(images(len(classes), (1, 4, 4), number), torch.tensor(classes))
        sent.append(Reply(prototype_gradients(net, data, 3, seed, rows=3)))
        rows = prototypes(net, data)
        chosen.append(data.x[rows])
        labels.append(data.y[rows])
    return sent, torch.cat(chosen), torch.cat(labels)


def test_a_reply_has_a_row_for_each_class_and_zeros_after_them() -> None:
    sent, x, y = replies()
    encoder = Encoder((1, 4, 4), 3, 9)
    slow = own_gradients(encoder, encoder.params(x), x, y)
    for reply, first, last in ((sent[0], 0, 2), (sent[1], 2, 3)):
        assert reply.tensors["shape/image"].tolist() == [1, 4, 4]
        for name in encoder.sizes:
            rows = reply.tensors[f"gradients/{name}"]
            assert len(rows) == 3
            assert torch.allclose(rows[: last - first], slow[name][first:last], rtol=0, atol=1e-15)
            assert not rows[last - first :].any()


def test_the_server_reconstructs_the_prototypes_of_all() -> None:
    sent, x, y = replies()
    found = reconstruct(sent, 3, 9, most=10, iterations=200)
    assert found is not None
    assert found.y.tolist() == y.tolist() == [0, 2, 1]
    assert float((found.x - x).square().mean()) < 1e-4
    rough = reconstruct(sent, 3, 9, most=10, iterations=0)
    assert rough is not None and not rough.x.any()


def test_of_many_gradients_some_are_drawn() -> None:
    sent, _, y = replies()
    few = [reconstruct(sent, 3, 9, most=2, iterations=0) for _ in range(2)]
    assert few[0] is not None and len(few[0]) == 2 and set(few[0].y.tolist()) < set(y.tolist())
    assert same(few[0], few[1])
    assert reconstruct(sent, 3, 9, most=0, iterations=5) is None
    assert reconstruct([], 3, 9, most=5, iterations=5) is None


def test_examples_that_are_no_images_are_refused_on_the_server() -> None:
    data = Examples(images(4, (6,)), torch.tensor([0, 1, 2, 0]))
    sent = prototype_gradients(identity(6), data, 3, 0, 3)
    assert list(sent) == ["shape/image"]
    with pytest.raises(ConfigError, match=r"not examples of shape \(6,\): set method.select"):
        reconstruct([Reply(sent)], 3, 0, 5, 5)


def test_models_are_judged_by_the_classes_that_the_scenario_allows() -> None:
    def allowed(kind: str) -> list[bool]:
        found: list[bool] = allowed_now(TaskInfo(1, (2,), (0, 2), kind), 4).tolist()  # type: ignore[arg-type]
        return found

    assert allowed("task") == [False, False, True, False]
    assert allowed("class") == [True, False, True, False]
    assert allowed("domain") == [True] * 4
    net = Net(nn.Identity())
    data = Examples(torch.tensor([[3.0, 9.0, 1.0], [0.0, 9.0, 1.0]]), torch.tensor([0, 0]))
    assert right(net, data, torch.tensor([True, False, True])) == 0.5
    assert right(net, data, torch.tensor([True, True, True])) == 0.0
    assert right(
        Net(mlp()), Examples(images(1, (6,)), torch.tensor([1])), torch.tensor([0, 1, 0]) > 0
    )
