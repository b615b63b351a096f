"""Losses that mix examples are refused where that would go wrong, unless they say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.block import Path
from fedcl.core.client import Model
from fedcl.core.local import Local, cross_entropy
from fedcl.core.model import Net
from fedcl.core.sgd import Settings
from fedcl.core.task import ClientTask, Examples
from tests.core import toys
from tests.core.blocks import FULL, PLAIN, block_by, check, clients, mlp

Plain = Callable[[Net, Examples, ClientTask, Any], Tensor]


def by_length(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Looks at the number of rows."""
    return cross_entropy(net, batch, task, message) / len(batch)


def centred(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Compares each example with the mean of all."""
    logits = net(batch.x)
    return F.cross_entropy(logits - logits.mean(0), batch.y, reduction="none")


def neighbours(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Wants each example to be unlike the next."""
    logits = net(batch.x)
    return (logits * logits.roll(1, 0)).sum(1)


def turned(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Keeps examples apart, and their places not: rows would meet other clients' weights."""
    return F.cross_entropy(net(batch.x.flip(0)).flip(0), batch.y, reduction="none")


@dataclass(frozen=True)
class Contrast:
    """Compares the examples of a batch, and says so."""

    mixes: ClassVar[bool] = True

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
        """Returns (n,) losses."""
        return centred(net, batch, task, message)


def message_of(model: nn.Module) -> Model:
    return Model(toys.parameters(model))


@pytest.mark.parametrize("sizes", [(6, 6), (7, 1, 12), (9,)], ids=str)
@pytest.mark.parametrize("loss", [by_length, centred, neighbours, turned])
def test_fused_refuses_losses_that_mix(loss: Plain, sizes: tuple[int, ...]) -> None:
    model = mlp()
    with torch.no_grad():
        model.head.weight.zero_()  # type: ignore[operator, union-attr]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"depends on the other examples.*mixes = True"):
            block_by("fused", Local(loss), PLAIN, clients(model, sizes), message_of(model))


@pytest.mark.parametrize("loss", [by_length, centred, neighbours])
def test_vmap_refuses_them_where_there_is_padding(loss: Plain) -> None:
    model = mlp()
    check("vmap", Local(loss), FULL, clients(model, (6, 6)))
    with pytest.raises(ValueError, match=r"depends on the other examples.*mixes = True"):
        block_by("vmap", Local(loss), PLAIN, clients(model, (6, 4)), message_of(model))


def test_who_says_that_it_mixes_is_never_padded() -> None:
    for sizes in ((6, 6), (7, 1, 12), (4, 0)):
        check("auto", Local(Contrast()), FULL, clients(mlp(), sizes))
        check("vmap", Local(Contrast()), FULL, clients(mlp(), sizes))
    with pytest.raises(ValueError, match=r'engine.path = "fused".*keeps examples apart'):
        block_by("fused", Local(Contrast()), PLAIN, clients(mlp()), message_of(mlp()))


def test_fine_losses_pass_whatever_the_weights() -> None:
    paths: tuple[Path, ...] = ("fused", "vmap")
    for scale in (0.0, 1.0, 30.0):
        model = mlp(dropout=(0.5,))
        with torch.no_grad():
            for value in model.parameters():
                value.mul_(scale)
        for path in paths:
            block_by(path, Local(cross_entropy), PLAIN, clients(model), message_of(model))


def mean(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Returns one value for all."""
    return cross_entropy(net, batch, task, message).mean()


def column(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Returns a column."""
    return cross_entropy(net, batch, task, message)[:, None]


def by_class(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Returns one value for each logit."""
    return net(batch.x).square()


@pytest.mark.parametrize("path", ["fused", "grouped", "vmap", "loop"])
@pytest.mark.parametrize("loss", [mean, column, by_class])
def test_a_loss_of_another_shape_is_refused(path: Path, loss: Plain) -> None:
    model = mlp()
    some = clients(model, (3, 3, 3))  # as many rows as logits
    with pytest.raises(ValueError, match=r"returned shape .* for \d+ examples: return one value"):
        block_by(path, Local(loss), Settings(1, 3, 0.1), some, message_of(model))


def test_looks_once_and_at_the_program() -> None:
    calls: list[int] = []

    def counting(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
        calls.append(len(batch))
        return cross_entropy(net, batch, task, message)

    model = mlp()
    some = clients(model, (4, 4))
    one = Settings(1, 4, 0.1)
    block_by("fused", Local(counting), one, clients(model, (0, 0)), message_of(model))
    assert calls == []
    for _ in range(2):
        block_by("fused", Local(counting), one, some, message_of(model))
    assert calls == [8, 4, 4, 8, 8]
    calls.clear()
    block_by("fused", Local(counting, name="again"), one, some, message_of(model))
    assert calls == [8, 4, 4, 8]
