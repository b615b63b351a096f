"""What example-level private SGD draws: batches, noise and masks, each a function of its place.

Batches and noise are functions of the client's secret key; dropout masks of its seed, the step and
the row, so that nothing that happens to one example depends on another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedcl.core.client import Spent
from fedcl.core.errors import ExposureError
from fedcl.core.local import Local, own_data
from fedcl.core.model import Dropout
from fedcl.core.privacy import noise
from fedcl.core.seeds import seed_of, uniforms


@dataclass(frozen=True)
class PrivateSettings:
    """Hyper-parameters of private SGD.

    Attributes:
        clip: The largest norm of one example's gradient over all parameters.
        noise_multiplier: Standard deviation of the noise of a step's sum, over `clip`.
        batch_size: Examples of a step on average.
        epochs: Passes over the client's examples on average.
        lr: Learning rate.
        momentum: Momentum, fresh in every exchange.
        weight_decay: L2 regularisation added to the gradient.
    """

    clip: float
    noise_multiplier: float
    batch_size: int
    epochs: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def rate(self, rows: int) -> float:
        """Returns the chance of each of so many examples to be in a step."""
        return min(1.0, self.batch_size / rows) if rows else 1.0

    def steps(self, rows: int) -> int:
        """Returns the steps of a client with so many examples."""
        return self.epochs * math.ceil(rows / self.batch_size)

    def visits(self, rows: int) -> int:
        """Returns how many examples all steps see on average: the true number is a secret."""
        return round(self.steps(rows) * self.rate(rows) * rows)

    def spent(self, local: Local, rows: int) -> Spent:
        """Returns what protects a client's records in its reply."""
        earlier = local.data is not own_data
        return Spent(self.noise_multiplier, self.rate(rows), self.steps(rows), earlier)


def secret_key(key: bytes | None) -> bytes:
    """Returns a client's key.

    Raises:
        ExposureError: It has none.
    """
    if key is None:
        raise ExposureError(
            "private training draws noise from the client's secret key, and it has none: ask "
            "through the door of a run, which gives one where something protects"
        )
    return key


def coins(key: bytes, rows: int, settings: PrivateSettings) -> Iterator[Tensor]:
    """Yields the rows that are in each step, ascending: each by itself, and by the same chance."""
    generator, rate = noise.generator(key, "coins"), settings.rate(rows)
    for _ in range(settings.steps(rows)):
        yield torch.from_numpy(np.flatnonzero(generator.random(rows) < rate))


def hide(
    total: Tensor, key: bytes, step: int, name: str, rows: int, settings: PrivateSettings
) -> None:
    """Puts noise on a parameter's sum and divides it by the *expected* size of a batch, in place.

    Args:
        total: The sum of clipped gradients.
        key: The client's key.
        step: Number of the step.
        name: The parameter's name.
        rows: Examples of the client.
        settings: How much.
    """
    scale = settings.noise_multiplier * settings.clip
    noise.hide(total, key, scale, settings.rate(rows) * rows, "noise", step, name)


def row_masks(
    layers: Sequence[Dropout], seed: int, step: int, rows: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Returns the dropout masks of some rows in a step, on the CPU.

    A row's mask is its own: were it a function of the row's place in its batch, one example more
    would change the gradients of others.

    Args:
        layers: The model's dropout layers.
        seed: The client's seed.
        step: Number of the step.
        rows: (n,) rows of the client's examples.
        dtype: Type of the masks.
    """
    masks, items = [], rows.numpy().astype(np.int64)
    for number, layer in enumerate(layers):
        own = seed_of(seed, "dropout", step, number)
        drawn = torch.from_numpy(uniforms(own, items, math.prod(layer.shape)))
        keep = (drawn >= layer.rate).to(dtype) / (1.0 - layer.rate)
        masks.append(keep.view(len(items), *layer.shape))
    return masks
