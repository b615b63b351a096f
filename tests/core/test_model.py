"""What a model may hold, and dropout whose masks come from outside."""

import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from fedcl.core.model import Dropout, Net, check_model, dropouts
from tests.core import toys


def network(first: float = 0.5, second: float = 0.25) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        Dropout(first, (4,)), nn.Linear(4, 3), nn.ReLU(), Dropout(second, (3,)), nn.Linear(3, 2)
    )


# Dropout.


def test_without_masks_dropout_is_the_identity() -> None:
    model = network()
    x = torch.randn(5, 4)
    plain = model[4](torch.relu(model[1](x)))
    assert model.training
    assert torch.equal(Net(model)(x), plain)
    assert torch.equal(model(x), plain)


def test_a_mask_holds_zeros_and_scaled_ones_of_the_right_share() -> None:
    layer = Dropout(0.2, (50, 4))
    mask = layer.draw(100, torch.Generator().manual_seed(0), torch.float64)
    assert mask.shape == (100, 50, 4)
    assert set(mask.unique().tolist()) == {0.0, 1.25}
    # 20 000 draws of variance 0.16: four standard deviations are 0.0113.
    assert abs(float((mask == 0).double().mean()) - 0.2) < 0.0114


def test_a_mask_is_a_function_of_its_generator_whatever_the_type() -> None:
    layer = Dropout(0.5, (6,))
    masks = [
        layer.draw(3, torch.Generator().manual_seed(seed), dtype)
        for seed, dtype in ((1, torch.float32), (1, torch.float64), (2, torch.float32))
    ]
    assert torch.equal(masks[0].double(), masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_masks_multiply_and_are_gone_afterwards() -> None:
    model = network()
    x = torch.randn(5, 4)
    masks = [
        layer.draw(5, torch.Generator().manual_seed(k), torch.float32)
        for k, layer in enumerate(dropouts(model))
    ]
    expected = model[4](torch.relu(model[1](x * masks[0])) * masks[1])
    assert torch.equal(Net(model, None, masks)(x), expected)
    assert torch.equal(Net(model, toys.parameters(model), masks)(x), expected)
    assert [layer.mask for layer in dropouts(model)] == [None, None]


def test_masks_are_gone_after_an_error() -> None:
    model = network()
    with pytest.raises(RuntimeError):
        Net(model, None, [torch.ones(5, 4), torch.ones(5, 3)])(torch.randn(5, 9))
    assert [layer.mask for layer in dropouts(model)] == [None, None]


def test_a_mask_for_other_rows_is_refused() -> None:
    masks = [torch.ones(5, 4), torch.ones(5, 3)]
    with pytest.raises(ValueError, match=r"mask for 5 rows met 1 rows: .* net\.at\(params\)"):
        # One row would broadcast in silence.
        Net(network(), None, masks)(torch.randn(1, 4))


def test_a_teacher_has_no_dropout() -> None:
    model = network()
    x = torch.randn(3, 4)
    masks = [torch.zeros(5, 4), torch.zeros(5, 3)]
    other = {name: value + 1 for name, value in toys.parameters(model).items()}
    assert torch.equal(Net(model, None, masks).at(other)(x), Net(model, other)(x))


def test_the_number_of_masks_must_fit() -> None:
    with pytest.raises(ValueError, match="zip"):
        Net(network(), None, [torch.ones(5, 4)])(torch.randn(5, 4))


def test_layers_that_drop_nothing_need_no_mask() -> None:
    model = network(first=0.0)
    assert dropouts(model) == [model[3]]
    assert dropouts(nn.Linear(2, 2)) == []


def test_masks_batch_over_clients() -> None:
    model = network()
    x, masks = torch.randn(3, 5, 4), [torch.randn(3, 5, 4), torch.randn(3, 5, 3)]

    def run(x: Tensor, masks: list[Tensor]) -> Tensor:
        return Net(model, toys.parameters(model), masks)(x)

    batched = vmap(run)(x, masks)
    for k in range(3):
        own = run(x[k], [mask[k] for mask in masks])
        assert torch.allclose(batched[k], own, atol=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_are_checked(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate lies in \[0, 1\)"):
        Dropout(rate, (3,))


def test_models_travel() -> None:
    model = network()
    again = pickle.loads(pickle.dumps(model))
    x = torch.randn(2, 4)
    assert torch.equal(again(x), model(x))


def test_given_parameters_are_used_and_the_models_own_left_alone() -> None:
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    net = Net(model, {"weight": torch.tensor([[2.0, 3.0]], requires_grad=True)})
    net(torch.tensor([[1.0, 1.0]])).sum().backward()
    assert net(torch.tensor([[1.0, 1.0]])).item() == 5.0
    assert net.params is not None
    assert net.params["weight"].grad is not None
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


# What a model may hold.


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 2),
        nn.GroupNorm(1, 2),
        nn.LayerNorm(2),
        nn.InstanceNorm2d(2, affine=True),
        nn.Conv2d(1, 1, 1),
        nn.LSTM(2, 2),
        nn.MultiheadAttention(2, 1),
        Dropout(0.5, (2,)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_keep_examples_apart_are_fine(layer: nn.Module) -> None:
    check_model(nn.Sequential(nn.Identity(), layer))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.BatchNorm1d(2), "'inner.0' is a BatchNorm1d: .* use GroupNorm"),
        (nn.BatchNorm2d(2, track_running_stats=False), "'inner.0' is a BatchNorm2d"),
        (nn.LazyBatchNorm1d(), "'inner.0' is a LazyBatchNorm1d"),
        (nn.SyncBatchNorm(2), "'inner.0' is a SyncBatchNorm"),
        (nn.Dropout(0.1), r"'inner.0' is a Dropout: .* fedcl.core.model.Dropout"),
        (nn.Dropout2d(0.1), "'inner.0' is a Dropout2d"),
        (nn.AlphaDropout(0.1), "'inner.0' is a AlphaDropout"),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.3), "'inner.0' is a LSTM that draws at random"),
        (nn.MultiheadAttention(2, 1, dropout=0.3), "'inner.0' is a MultiheadAttention that draws"),
        (nn.Embedding(3, 2, scale_grad_by_freq=True), "'inner.0' is an Embedding .* mixes"),
        (nn.Embedding(3, 2, max_norm=1.0), "'inner.0' is an Embedding .* max_norm"),
        (nn.Embedding(3, 2, sparse=True), "'inner.0' is an Embedding .* sparse"),
        (nn.RReLU(), "'inner.0' is a RReLU that draws at random"),
        (nn.InstanceNorm1d(2, track_running_stats=True), "buffer 'inner.0.running_mean'"),
        (Buffered(), "buffer 'inner.0.scale': only parameters are averaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_layers_that_mix_draw_or_carry_buffers_are_refused(layer: nn.Module, words: str) -> None:
    model = nn.Sequential()
    model.add_module("inner", nn.Sequential(layer))
    with pytest.raises(ValueError, match=words):
        check_model(model)
