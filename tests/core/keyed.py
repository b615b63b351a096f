"""Clients with secret keys, and private training of them the slow way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedcl.core.client import Client, Model
from fedcl.core.local import Local
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.privacy import noise
from fedcl.core.privacy.draws import PrivateSettings
from tests.core import toys

ROOT = noise.seeded_root(5)
PLAIN = PrivateSettings(clip=0.5, noise_multiplier=0.8, batch_size=4, epochs=2, lr=0.3)
FULL = replace(PLAIN, momentum=0.6, weight_decay=0.03)


def keyed(client: Client, root: bytes = ROOT) -> Client:
    """Returns a client with a key of its own."""
    return replace(client, key=noise.key_of(root, client.id))


def clients(model: nn.Module, sizes: Sequence[int], **options: Any) -> list[Client]:
    """Returns clients 0, 1, ... of a model, each with so many examples and a key of its own."""
    return [keyed(toys.client(model, n, id=k, **options)) for k, n in enumerate(sizes)]


def slow(
    local: Local, settings: PrivateSettings, client: Client, message: Any
) -> dict[str, Tensor]:
    """Returns a client's parameters: every example passes by itself, the formula stands as it is.

    Masks are not drawn: for models without dropout.
    """
    data = local.data(client, message)
    n = len(data)
    rate = min(1.0, settings.batch_size / n)
    assert client.key is not None
    draws = noise.generator(client.key, "coins")
    params = {name: value.clone() for name, value in message.params.items()}
    velocity = {name: torch.zeros_like(value) for name, value in params.items()}
    for step in range(settings.epochs * math.ceil(n / settings.batch_size)):
        total = {name: torch.zeros_like(value) for name, value in params.items()}
        for row in np.flatnonzero(draws.random(n) < rate):
            leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
            one = data.take(torch.tensor([int(row)]))
            loss = local.loss(Net(client.model, leaves), one, client.task, message)[0]
            grads = torch.autograd.grad(
                loss, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
            size = math.sqrt(sum(float(g.square().sum()) for g in grads))
            if not math.isfinite(size):
                continue
            for name, g in zip(params, grads, strict=True):
                total[name] += g * min(1.0, settings.clip / max(size, 1e-300))
        gradients = {}
        for name, value in params.items():
            scale = settings.noise_multiplier * settings.clip
            drawn = noise.gaussian(client.key, value.shape, scale, "noise", step, name)
            gradients[name] = (total[name] + drawn) / (rate * n) + settings.weight_decay * value
        if local.penalty is not None:
            leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
            local.penalty(leaves, message).backward()
            for name, leaf in leaves.items():
                gradients[name] += 0.0 if leaf.grad is None else leaf.grad
        if local.project is not None:
            gradients = dict(local.project(gradients, message))
        for name in params:
            velocity[name] = settings.momentum * velocity[name] + gradients[name]
            params[name] = params[name] - settings.lr * velocity[name]
    return params


SEEN: list[dict[str, Tensor]] = []


def look(params: Params, message: Any) -> Tensor:
    """Is a penalty of nothing that notes the parameters before each step."""
    SEEN.append({name: value.detach().clone() for name, value in params.items()})
    return sum((value.sum() * 0.0 for value in params.values()), torch.zeros(()))


def sums(
    train: Callable[[Local, PrivateSettings, Client, Any], Params],
    local: Local,
    settings: PrivateSettings,
    client: Client,
) -> list[dict[str, Tensor]]:
    """Returns what each step released, in units of the sum: read off the parameters on their way.

    Args:
        train: Trains a client and returns its parameters.
        local: The parts of training; the penalty is ours.
        settings: Hyper-parameters without momentum and decay.
        client: The client.
    """
    SEEN.clear()
    message = Model(toys.parameters(client.model))
    last = train(replace(local, penalty=look), settings, client, message)
    way = [*SEEN, dict(last)]
    divisor = settings.rate(len(client.data)) * len(client.data)
    return [
        {name: (a[name] - b[name]) / settings.lr * divisor for name in a}
        for a, b in itertools.pairwise(way)
    ]
