"""Blocks of small clients, each compared with the same client trained alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.block import Batching, Path, block_of
from fedcl.core.client import Client, Model
from fedcl.core.local import Local
from fedcl.core.sgd import Settings, Trained, batches, train_one
from fedcl.core.training.together import train_block
from fedcl.models.mlp import Mlp
from tests.core import toys

EVERY: tuple[Path, ...] = ("fused", "vmap", "loop")
SIZES = (7, 1, 12, 4)  # uneven, and 3, 1, 4 and 2 steps of 3
PLAIN = Settings(epochs=2, batch_size=3, lr=0.3)
FULL = Settings(epochs=2, batch_size=3, lr=0.1, momentum=0.9, weight_decay=0.02)


def block_by(
    path: Path, local: Local, options: Settings, clients: Sequence[Client], message: Any
) -> list[Trained]:
    """Trains clients as one block by a path, and checks the sum of their changes."""
    reply = train_block(local, options, block_of(clients), message, Batching(path))
    trained = reply.trained
    weights = [1.5 * k + 1.0 for k in range(len(clients))]
    sums = trained.change_sums(weights)
    assert not any(value.requires_grad for value in sums.values())
    assert not any(v.requires_grad for k in range(len(clients)) for v in trained.params(k).values())
    for name, start in message.params.items():
        own = [trained.params(k)[name].double() - start.double() for k in range(len(clients))]
        expected = sum(w * change for w, change in zip(weights, own, strict=True))
        assert sums[name].dtype == torch.float64
        rounding = 1e-12 if start.dtype == torch.float64 else 2e-6
        assert torch.allclose(sums[name], expected, rtol=0, atol=rounding * sum(weights))
    return [
        Trained(dict(trained.params(k)), trained.losses[k], trained.steps[k], trained.visits[k])
        for k in range(len(clients))
    ]


def check(
    path: Path, local: Local, options: Settings, clients: Sequence[Client], least: float = 1e-4
) -> None:
    """Asserts that the block and the loop agree, and that training did something."""
    message = Model(toys.parameters(clients[0].model))
    before = {name: value.clone() for name, value in message.params.items()}
    block = block_by(path, local, options, clients, message)
    assert toys.distance(before, message.params) == 0.0
    for client, together in zip(clients, block, strict=True):
        alone = train_one(local, options, client, message)
        assert toys.distance(together.params, alone.params) < 1e-12
        assert together.loss == pytest.approx(alone.loss, abs=1e-12, nan_ok=True)
        assert (together.steps, together.examples) == (alone.steps, alone.examples)
        assert toys.distance(together.params, before) > least or not alone.steps


def by_pytorch(options: Settings, client: Client) -> dict[str, Tensor]:
    """Returns a client's parameters after `torch.optim.SGD` on a copy of its model.

    What a loss does not depend on has a gradient of zero, and not none: it decays all the same.
    """
    model = copy.deepcopy(client.model)
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    optimizer = torch.optim.SGD(
        model.parameters(), options.lr, options.momentum, weight_decay=options.weight_decay
    )
    for rows in batches(len(client.data), options, client.seed):
        batch = client.data.take(rows)
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(model(batch.x), batch.y).backward()
        optimizer.step()
    return toys.parameters(model)


def mlp(*hidden: int, **options: Any) -> nn.Module:
    """Returns a small network in float64."""
    torch.manual_seed(1)
    return Mlp(hidden or (8, 5), **options).build((6,), 3).double()


def clients(model: nn.Module, sizes: Sequence[int] = SIZES, **options: Any) -> list[Client]:
    """Returns clients 0, 1, ... of a model, each with so many examples."""
    return [toys.client(model, n, id=k, **options) for k, n in enumerate(sizes)]
