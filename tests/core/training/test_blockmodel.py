"""A model becomes a network of block layers where that computes the same, and nowhere else."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from fedcl.core.client import Model
from fedcl.core.local import Local, Proximal, cross_entropy
from fedcl.core.training.blockmodel import block_model_of
from tests.core import toys
from tests.core.blocks import FULL, PLAIN, block_by, check, clients, mlp


class Net(nn.Module):
    """Two layers and a parameter-free forward pass that is handed in."""

    def __init__(self, call: Callable[..., Tensor], width: int = 6) -> None:
        super().__init__()
        self.call = call
        self.a, self.b = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Calls what was handed in."""
        return self.call(self, x)


class Scaled(Net):
    """Has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__(lambda net, x: net.b((net.a(x) * net.scale).tanh()))
        self.scale = nn.Parameter(torch.ones(6))


class Doubling(nn.Linear):
    """A kind of linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns twice what a linear layer returns."""
        return 2 * super().forward(x)


class Counting(Net):
    """Does something else while it is trained."""

    def __init__(self) -> None:
        super().__init__(lambda net, x: net.b(net.a(x).tanh()) * (3 if net.training else 1))


def tied() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(6, 3))


def shared() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, 3))


def subclassed() -> nn.Module:
    return nn.Sequential(Doubling(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns twice x."""
        return 2 * x


def parametrized() -> nn.Module:
    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", Twice())
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(6, 3))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[0].register_forward_hook(lambda layer, inputs, output: output * 2)
    return model


def hooked_before() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[0].register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))
    return model


def patched() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.forward = lambda x: F.linear(x, layer.weight * 2)  # type: ignore[assignment, method-assign]
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(6, 3))


# What has no block form, or would compute something else in it.
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "a parameter of its own": Scaled,
    "a weight of two layers": tied,
    "a layer in two places": shared,
    "a layer of a kind of its own": subclassed,
    "a parametrization": parametrized,
    "a hook": hooked,
    "a hook before": hooked_before,
    "a forward pass of its own": patched,
    "a weight past its layer": lambda: Net(lambda n, x: n.b(F.linear(x, n.a.weight, n.a.bias))),
    "a weight's sum": lambda: Net(lambda n, x: n.b(n.a(x).tanh()) * n.a.weight.sum()),
    "a layer's kind": lambda: Net(
        lambda n, x: n.b(n.a(x).tanh() * (1 + isinstance(n.a, nn.Linear)))
    ),
    "a layer's width": lambda: Net(lambda n, x: n.b(n.a(x).view(-1, n.a.out_features).tanh())),
    "layers by name": lambda: Net(lambda n, x: n.b(n.a(input=x).tanh())),
    # Rows of other clients come in between.
    "rows across": lambda: Net(lambda n, x: n.b(n.a(x.flip(0)).flip(0).tanh())),
    "series first": lambda: Net(
        lambda n, x: n.b(n.a(x[:, None].expand(-1, 4, -1).transpose(0, 1)).tanh().mean(0))
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_no_block_form_takes_another_path(name: str) -> None:
    torch.manual_seed(3)
    model = OTHERS[name]().double()
    if name != "a layer in two places":  # the same module twice: one name, two places
        assert block_model_of(model, toys.parameters(model), torch.zeros(1, 6).double()) is None
    some = clients(model, (4, 4))
    check("auto", Local(cross_entropy), FULL, some)
    check("auto", Local(cross_entropy, Proximal(0.3)), PLAIN, some)
    with pytest.raises(ValueError, match=r'engine.path = "fused".*use "auto" or "vmap"'):
        block_by("fused", Local(cross_entropy), PLAIN, some, Model(toys.parameters(model)))


def test_uneven_clients_of_such_models() -> None:
    torch.manual_seed(3)
    for build in (Scaled, tied, subclassed, parametrized, hooked):
        check("auto", Local(cross_entropy), FULL, clients(build().double()))


def test_what_depends_on_the_mode_follows_it() -> None:
    torch.manual_seed(3)
    model = Counting().double()
    check("fused", Local(cross_entropy), FULL, clients(model))
    model.eval()
    check("fused", Local(cross_entropy), FULL, clients(model))


def test_a_model_whose_layers_change_is_built_anew() -> None:
    torch.manual_seed(3)
    model = Net(lambda n, x: n.b(n.a(x).tanh())).double()
    check("fused", Local(cross_entropy), FULL, clients(model))
    model.a, model.b = nn.Linear(6, 9).double(), nn.Linear(9, 3).double()
    check("fused", Local(cross_entropy), FULL, clients(model))
    model.c = nn.Linear(2, 2).double()
    check("fused", Local(cross_entropy), FULL, clients(model))


def test_a_message_with_some_of_the_parameters_trains_these() -> None:
    """The others are the model's own, on every path."""
    model = mlp()
    some = clients(model)
    whole = toys.parameters(model)
    part = Model({name: value for name, value in whole.items() if name.startswith("head")})
    for message in (Model(whole), part, Model(whole)):
        fused = block_by("auto", Local(cross_entropy), FULL, some, message)
        loop = block_by("loop", Local(cross_entropy), FULL, some, message)
        for a, b in zip(fused, loop, strict=True):
            assert toys.distance(a.params, b.params) < 1e-12


def test_a_model_that_is_gone_leaves_nothing() -> None:
    model = mlp()
    check("fused", Local(cross_entropy), FULL, clients(model))
    net = block_model_of(model, toys.parameters(model), torch.zeros(1, 6).double())
    assert net is not None
    gone = weakref.ref(model), weakref.ref(net.net)
    del model, net
    gc.collect()
    assert [found() for found in gone] == [None, None]


def test_building_moves_nothing_and_draws_nothing() -> None:
    model = mlp()
    before = toys.parameters(model)
    state = torch.random.get_rng_state()
    block_model_of(model, before, torch.zeros(1, 6).double())
    assert toys.distance(before, toys.parameters(model)) == 0.0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(value.grad is None and value.device.type == "cpu" for value in model.parameters())
    assert not any(layer._forward_pre_hooks for layer in model.modules())
