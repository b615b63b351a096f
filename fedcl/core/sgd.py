"""Local stochastic gradient descent of one client: the reference, with plain PyTorch's bits.

Which rows a step takes and which units it drops are functions of the client's seed, so that paths
that train many clients at once (`fedcl.core.training.fused`, `fedcl.core.training.vmapped`) do the
same and differ by rounding alone. The loop does the operations of `torch.optim.SGD` in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedcl.core.client import Client
from fedcl.core.data.augment import Augmentation, view_draws, viewed
from fedcl.core.local import Local, Project, check_losses
from fedcl.core.model import Dropout, Net, dropouts
from fedcl.core.params import Params
from fedcl.core.seeds import torch_generator
from fedcl.core.task import Examples


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of local SGD.

    Attributes:
        epochs: Passes over the client's examples.
        batch_size: Examples of a step; the last step of a pass takes what is left.
        lr: Learning rate.
        momentum: Momentum, fresh in every exchange.
        weight_decay: L2 regularisation added to the gradient.
        steps: Stop after this many steps; None means all of every pass.
        views: Views of an example in a batch: a batch holds `batch_size / views` examples. The
            examples passed stay as many as with one view, so that one comes up more seldom.
        augment: What a view does to an image.
        padding: Pixels that it may shift by.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    steps: int | None = None
    views: int = 1
    augment: Augmentation = "none"
    padding: int = 4

    def visit(self, rows: int) -> int:
        """Returns the visits of a pass over so many examples, each in all its views."""
        return rows * self.views


def visits(rows: int, settings: Settings, seed: int) -> Tensor:
    """Returns the rows that a client visits, in their order: every pass is a new permutation.

    With several views a row stands that often after itself, and there are as many visits as with
    one (up to the last row's views): `epochs = 4` and `views = 4` visit every row once.

    Args:
        rows: Number of examples; 0 gives no visits.
        settings: Passes, batch size and limit of steps.
        seed: Seed of the client in this exchange.
    """
    generator = torch_generator(seed, "batches")
    passes = settings.epochs if rows else 0
    limit, one = passes * rows, settings.visit(rows)
    if settings.steps is not None and rows:
        # Every pass ends with a step of what is left.
        whole, rest = divmod(settings.steps, -(-one // settings.batch_size))
        limit = min(limit, whole * one + rest * settings.batch_size)
    different = -(-limit // settings.views)
    drawn = [
        torch.randperm(rows, generator=generator)
        for _ in range(-(-different // rows) if rows else 0)
    ]
    if not drawn:
        return torch.zeros(0, dtype=torch.int64)
    return torch.cat(drawn)[:different].repeat_interleave(settings.views)


def batches(rows: int, settings: Settings, seed: int) -> list[Tensor]:
    """Returns the rows of each step: every pass is cut into batches; see `visits`."""
    steps: list[Tensor] = []
    for own in visits(rows, settings, seed).split(max(1, settings.visit(rows))):
        steps.extend(own.split(settings.batch_size))
    return steps if rows else []


def step_draws(visits: int, settings: Settings, seed: int) -> Tensor | None:
    """Returns the (visits, 3) draws of a client's views, or None where a view changes nothing."""
    return None if settings.augment == "none" else view_draws(visits, seed)


def seen(batch: Examples, draws: Tensor | None, first: int, settings: Settings) -> Examples:
    """Returns a batch as its views show it; its draws begin at row `first`."""
    if draws is None:
        return batch
    own = draws[first : first + len(batch)].to(batch.x.device)
    return replace(batch, x=viewed(batch.x, own, settings.augment, settings.padding))


def draw_masks(
    layers: Sequence[Dropout], settings: Settings, generator: torch.Generator, dtype: torch.dtype
) -> list[Tensor]:
    """Returns one step's dropout masks, always of a full batch, so that padding changes no draw."""
    return [layer.draw(settings.batch_size, generator, dtype) for layer in layers]


def projected(project: Project, gradients: Params, message: Any) -> dict[str, Tensor]:
    """Returns what `project` makes of gradients, in their order.

    Raises:
        ValueError: It returned other names, shapes or types.
    """
    found = project(gradients, message)
    named = found if isinstance(found, Mapping) else {}
    unfit = [name for name, given in gradients.items() if not _fits(named.get(name), given)]
    unfit += [name for name in named if name not in gradients]
    if unfit:
        raise ValueError(
            f"project returned no gradient that fits {unfit[0]!r}: return one for each parameter, "
            "by the same names, in the same shapes and types, and nothing else"
        )
    return {name: named[name] for name in gradients}


def _fits(value: Any, given: Tensor) -> bool:
    return isinstance(value, Tensor) and (value.shape, value.dtype) == (given.shape, given.dtype)


@dataclass(frozen=True)
class Trained:
    """A client after local training.

    Attributes:
        params: Its parameters.
        loss: Mean training loss over the steps; NaN without steps.
        steps: Steps taken.
        examples: Examples passed forward and backward.
    """

    params: dict[str, Tensor]
    loss: float
    steps: int
    examples: int


def train_one(local: Local, settings: Settings, client: Client, message: Any) -> Trained:
    """Trains one client, step by step."""
    data = local.data(client, message)
    steps = batches(len(data), settings, client.seed)
    params = {
        name: value.detach().clone().requires_grad_() for name, value in message.params.items()
    }
    values = list(params.values())
    momenta: list[Tensor] | None = None
    dtype, device = values[0].dtype, values[0].device
    total = torch.zeros((), dtype=torch.float64, device=device)
    layers = dropouts(client.model)
    generator = torch_generator(client.seed, "dropout")
    draws = step_draws(sum(map(len, steps)), settings, client.seed)
    first = 0
    for rows in steps:
        masks = [
            mask[: len(rows)].to(device) for mask in draw_masks(layers, settings, generator, dtype)
        ]
        batch = seen(data.take(rows.to(device)), draws, first, settings)
        first += len(rows)
        losses = local.loss(Net(client.model, params, masks), batch, client.task, message)
        check_losses(losses, len(rows))
        loss = losses.mean()
        if local.penalty is not None:
            loss = loss + local.penalty(params, message)
        gradients = list(
            torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True)
        )
        with torch.no_grad():
            if settings.weight_decay:
                gradients = list(torch._foreach_add(gradients, values, alpha=settings.weight_decay))
            if local.project is not None:
                named = dict(zip(params, gradients, strict=True))
                gradients = list(projected(local.project, named, message).values())
            if settings.momentum:
                if momenta is None:
                    momenta = [g.clone() for g in gradients]
                else:
                    torch._foreach_mul_(momenta, settings.momentum)
                    torch._foreach_add_(momenta, gradients)
                gradients = momenta
            torch._foreach_add_(values, gradients, alpha=-settings.lr)
            total += loss.detach()
    mean = float(total) / len(steps) if steps else float("nan")
    return Trained(
        {k: v.detach() for k, v in params.items()}, mean, len(steps), sum(map(len, steps))
    )
