"""Losses that do more than to call the network once: what one network for a block can give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.block import Path
from fedcl.core.client import Client, Model
from fedcl.core.local import Local, cross_entropy
from fedcl.core.model import Net, dropouts
from fedcl.core.task import ClientTask, Examples
from fedcl.core.training.blockmodel import block_model_of
from tests.core import toys
from tests.core.blocks import FULL, PLAIN, block_by, check, clients, mlp


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(1)


def twice(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Wants the same answer for an input and its mirror image."""
    there = net(batch.x)
    back = net(batch.x.flip(1))
    return F.cross_entropy(there, batch.y, reduction="none") + distance(there, back)


def labels_of_its_own(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Learns from its own answers."""
    with torch.no_grad():
        answers = net(batch.x).argmax(1)
    return F.cross_entropy(net(batch.x), answers, reduction="none")


def smooth(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Wants small gradients at the inputs."""
    x = batch.x.detach().requires_grad_()
    logits = net(x)
    (slope,) = torch.autograd.grad(logits[:, 0].sum(), x, create_graph=True)
    own = F.cross_entropy(logits, batch.y, reduction="none")
    return own + slope.square().flatten(1).sum(1)


def salient(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Weighs rows by a gradient that it does not learn from."""
    x = batch.x.detach().requires_grad_()
    logits = net(x)
    (slope,) = torch.autograd.grad(logits[:, 0].sum(), x, retain_graph=True)
    return F.cross_entropy(logits, batch.y, reduction="none") * slope.square().flatten(1).sum(1)


def teacher(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Stays near the network that came, on rows of its own and on the public ones."""
    kept = net.at(message.params)
    public = kept(message.public).square().mean()
    return cross_entropy(net, batch, task, message) + public + distance(net(batch.x), kept(batch.x))


def first_layer(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Looks at the parameters."""
    assert net.params is not None
    size = next(iter(net.params.values())).square().sum()
    return cross_entropy(net, batch, task, message) + 0.1 * size


def half_without_dropout(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Makes a network of its own of the model and the parameters."""
    return distance(Net(net.model, net.params)(batch.x), net(batch.x))


def public_rows(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Learns on rows that all clients share."""
    own = replace(net, masks=())
    return (
        F.cross_entropy(own(batch.x), batch.y, reduction="none")
        + own(message.public).square().mean()
    )


def doubled(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Calls once for each row and its mirror image."""
    own = replace(net, masks=())
    there, back = own(torch.cat([batch.x, batch.x.flip(1)])).chunk(2)
    return F.cross_entropy(there, batch.y, reduction="none") + distance(there, back)


@dataclass(frozen=True)
class Public:
    """A message with rows for all."""

    params: Any
    public: Tensor
    often: bool = False


def agree(path: Path, local: Local, some: Sequence[Client], message: Any, options: Any) -> None:
    found = block_by(path, local, options, some, message)
    loop = block_by("loop", local, options, some, message)
    for own, alone in zip(found, loop, strict=True):
        assert toys.distance(own.params, alone.params) < 1e-12
        assert own.loss == pytest.approx(alone.loss, abs=1e-12)


def public_of(model: nn.Module, rows: int = 5) -> Public:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return Public(toys.parameters(model), x)


@pytest.mark.parametrize("hidden", [(8, 5), (150, 120)], ids=str)
@pytest.mark.parametrize("loss", [twice, labels_of_its_own, smooth, salient, teacher])
def test_losses_that_call_more_than_once(loss: Any, hidden: tuple[int, ...]) -> None:
    model = mlp(*hidden, dropout=(0.4,) if loss is not smooth else ())
    for options in (replace(PLAIN, lr=0.02), replace(FULL, lr=0.02)):
        agree("fused", Local(loss), clients(model), public_of(model), options)
    net = block_model_of(model, toys.parameters(model), torch.zeros(1, 6, dtype=torch.float64))
    assert net is not None
    for layer in net.layers.values():
        assert (layer.own, layer.weights, layer.step) == ({}, None, None)
    assert all(layer.mask is None for layer in (*dropouts(model), *dropouts(net.net)))


@pytest.mark.parametrize("loss", [first_layer, half_without_dropout, public_rows, doubled])
def test_losses_that_look_inside_take_another_path(loss: Any) -> None:
    model = mlp(dropout=(0.4,) if loss is half_without_dropout else ())
    some = clients(model)
    # Also so many shared rows as a step of all clients has, and as one client's has.
    for rows in (5, 12, 3):
        agree("auto", Local(loss), some, public_of(model, rows), FULL)
    with pytest.raises(ValueError, match=r'engine.path = "fused": not with this loss: it .*"vmap"'):
        block_by("fused", Local(loss), FULL, some, public_of(model))


def sometimes(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Calls once or twice, as the message says."""
    own = twice if message.often else cross_entropy
    losses: Tensor = own(net, batch, task, message)
    return losses


def test_what_came_before_changes_no_bits() -> None:
    """Else a resumed run would not be the same run."""
    model = mlp(150, 120)
    some = clients(model)
    message = public_of(model)
    first, _, third = (
        block_by("fused", Local(sometimes), FULL, some, replace(message, often=often))
        for often in (False, True, False)
    )
    for a, b in zip(first, third, strict=True):
        assert toys.distance(a.params, b.params) == 0.0


@dataclass(frozen=True)
class Listed:
    """A loss with options that have no hash."""

    classes: list[float] = field(default_factory=lambda: [1.0, 2.0, 0.5])
    more: dict[str, Tensor] = field(default_factory=lambda: {"bias": torch.ones(3)})

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
        """Returns weighted cross-entropy."""
        weight = torch.tensor(self.classes, dtype=batch.x.dtype)
        logits = net(batch.x) + self.more["bias"].to(batch.x)
        return F.cross_entropy(logits, batch.y, weight, reduction="none")


@pytest.mark.parametrize("path", ["fused", "grouped", "vmap", "auto"])
def test_a_loss_without_a_hash(path: Path) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Listed())
    check(path, Local(Listed()), FULL, clients(mlp()))


def test_tasks_are_the_same_when_their_masks_are() -> None:
    """A cache that forgot an object must not choose the path, and with it the bits."""

    def seen_only(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
        return F.cross_entropy(net(batch.x) + task.seen.to(batch.x), batch.y, reduction="none")

    model = mlp()
    same = clients(model)
    assert same[0].task is not same[1].task
    check("fused", Local(seen_only), FULL, same)
    other = [replace(same[0], task=toys.client_task(3, index=1)), *same[1:]]
    check("auto", Local(seen_only), FULL, other)
    with pytest.raises(ValueError, match=r'engine.path = "fused"'):
        block_by("fused", Local(seen_only), FULL, other, Model(toys.parameters(model)))
