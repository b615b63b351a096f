"""Example-level private SGD of one client: clipped gradients of random batches, and noise.

In each step every example is in by a coin of its own; the gradients of those that are in are
clipped one by one and summed; Gaussian noise joins the sum, which is divided by the *expected* size
of a batch (Abadi et al., Deep learning with differential privacy, CCS 2016, arXiv 1607.00133). All
that follows, penalty, weight decay, projection, momentum, touches no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedcl.core.client import Client
from fedcl.core.errors import ExposureError
from fedcl.core.local import Local, check_losses
from fedcl.core.model import Net, dropouts
from fedcl.core.params import Params
from fedcl.core.privacy.bookkeeping import Losses, clipped_sum
from fedcl.core.privacy.draws import (
    PrivateSettings,
    coins,
    hide,
    row_masks,
    secret_key,
)
from fedcl.core.privacy.examplepath import path_of
from fedcl.core.sgd import projected
from fedcl.core.task import Examples
from fedcl.core.training.blocknet import SealedNet, Unfit


@dataclass(frozen=True)
class Trained:
    """A client after private training.

    Attributes:
        params: Its parameters.
        rows: Examples that it trained on.
    """

    params: dict[str, Tensor]
    rows: int


def check_digits(device: torch.device) -> None:
    """Raises ExposureError where matrix products drop digits: sums would exceed the clip."""
    reduced = torch.is_autocast_enabled(device.type)
    if reduced or (device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32):
        raise ExposureError(
            "private training bounds each example's gradient to the last digit, which products of "
            'reduced precision do not keep: set training.precision = "full"'
        )


def train_private(local: Local, settings: PrivateSettings, client: Client, message: Any) -> Trained:
    """Trains one client, step by step; it tells no loss.

    Raises:
        ExposureError: The client has no key, or numbers are not exact enough.
        ValueError: The model or the loss mixes examples.
    """
    key, data = secret_key(client.key), local.data(client, message)
    params = {name: value.detach().clone() for name, value in message.params.items()}
    first = next(iter(params.values()))
    check_digits(first.device)
    path = path_of(local, client.model, data, message)
    layers = dropouts(client.model)
    momenta: dict[str, Tensor] = {}
    for step, rows in enumerate(coins(key, len(data), settings)):
        masks = row_masks(layers, client.seed, step, rows, first.dtype)
        batch = data.take(rows.to(first.device))
        own = [mask.to(first.device) for mask in masks]

        def losses(sealed: bool, batch: Examples = batch, masks: list[Tensor] = own) -> Losses:
            return _losses(local, client, message, batch, masks, sealed)

        try:
            found = clipped_sum(
                client.model, params, losses(path == "books"), len(rows), settings.clip, path
            )
        except Unfit:  # rows of a kind that made-up ones are not
            found = clipped_sum(
                client.model, params, losses(False), len(rows), settings.clip, "vmap"
            )
        with torch.no_grad():
            for name, total in found.total.items():
                hide(total, key, step, name, len(data), settings)
            _descend(local, settings, params, momenta, found.total, message)
    return Trained(params, len(data))


def _losses(
    local: Local,
    client: Client,
    message: Any,
    batch: Examples,
    masks: Sequence[Tensor],
    sealed: bool,
) -> Losses:
    """Returns the losses of some rows of a batch, as `clipped_sum` wants them."""

    def losses(params: Params, places: Tensor) -> Tensor:
        everyone = len(places) == len(batch)
        part = batch if everyone else batch.take(places)
        own = list(masks) if everyone else [mask.index_select(0, places) for mask in masks]
        net = Net(client.model, params, own)
        if sealed:
            net = SealedNet(net, len(places))
        found = local.loss(net, part, client.task, message)
        check_losses(found, len(places))
        return found

    return losses


def _descend(
    local: Local,
    settings: PrivateSettings,
    params: dict[str, Tensor],
    momenta: dict[str, Tensor],
    gradients: dict[str, Tensor],
    message: Any,
) -> None:
    """Takes the step in place: what follows the noise touches no data."""
    if local.penalty is not None:
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            value = local.penalty(leaves, message)
        pulls = torch.autograd.grad(
            value, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        for gradient, pull in zip(gradients.values(), pulls, strict=True):
            gradient.add_(pull)
    if settings.weight_decay:
        for name, gradient in gradients.items():
            gradient.add_(params[name], alpha=settings.weight_decay)
    if local.project is not None:
        gradients = projected(local.project, gradients, message)
    for name, gradient in gradients.items():
        if settings.momentum:
            if name in momenta:
                gradient = momenta[name].mul_(settings.momentum).add_(gradient)
            else:
                momenta[name] = gradient.clone()
        params[name].add_(gradient, alpha=-settings.lr)
