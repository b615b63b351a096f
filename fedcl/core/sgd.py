"""Local stochastic gradient descent: once for one client (a loop), once for a block of them (vmap).

Both visit the same rows in the same order with the same dropout masks, all functions of the
client's seed, so they differ by rounding alone. The loop does the operations of `torch.optim.SGD`
in its order: its bits are plain PyTorch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from fedcl.core.client import Client
from fedcl.core.local import Local
from fedcl.core.model import Dropout, Net, dropouts
from fedcl.core.seeds import torch_generator
from fedcl.core.task import ClientTask, Examples


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
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    steps: int | None = None


def batches(rows: int, settings: Settings, seed: int) -> list[Tensor]:
    """Returns the rows of each step: every pass is a new permutation, cut into batches.

    Args:
        rows: Number of examples; 0 gives no steps.
        settings: Passes, batch size and limit of steps.
        seed: Seed of the client in this exchange.
    """
    generator = torch_generator(seed, "batches")
    steps: list[Tensor] = []
    for _ in range(settings.epochs if rows else 0):
        steps.extend(torch.randperm(rows, generator=generator).split(settings.batch_size))
    return steps[: settings.steps]


def _draw(
    layers: Sequence[Dropout], settings: Settings, generator: torch.Generator, dtype: torch.dtype
) -> list[Tensor]:
    """Returns one step's dropout masks, always of a full batch, so that padding changes no draw."""
    return [layer.draw(settings.batch_size, generator, dtype) for layer in layers]


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
    for rows in steps:
        masks = [mask[: len(rows)].to(device) for mask in _draw(layers, settings, generator, dtype)]
        loss = local.loss(
            Net(client.model, params, masks), data.take(rows.to(device)), client.task, message
        ).mean()
        if local.penalty is not None:
            loss = loss + local.penalty(params, message)
        gradients = list(
            torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True)
        )
        with torch.no_grad():
            if settings.weight_decay:
                gradients = list(torch._foreach_add(gradients, values, alpha=settings.weight_decay))
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


def train_block(
    local: Local, settings: Settings, clients: Sequence[Client], message: Any
) -> list[Trained]:
    """Trains a block of clients as one batched computation; uneven sizes by padding and masks."""
    model = clients[0].model
    shares = [local.data(client, message) for client in clients]
    plans = [
        batches(len(share), settings, client.seed)
        for share, client in zip(shares, clients, strict=True)
    ]
    first = next(iter(message.params.values()))
    dtype, device = first.dtype, first.device
    params = {
        k: v.detach().expand(len(clients), *v.shape).clone() for k, v in message.params.items()
    }
    momenta: dict[str, Tensor] | None = None
    data = _stack(shares)
    rows, weights = _pad(plans, dtype)
    layers = dropouts(model)
    generators = [torch_generator(client.seed, "dropout") for client in clients]
    blank = [torch.ones((settings.batch_size, *layer.shape), dtype=dtype) for layer in layers]
    tasks = {
        f.name: torch.stack([getattr(client.task, f.name) for client in clients])
        for f in fields(ClientTask)
    }
    step = _step_function(local, model, message)
    index = torch.arange(len(clients), device=device)[:, None]
    total = torch.zeros(len(clients), dtype=torch.float64, device=device)
    for s in range(rows.shape[1]):
        # A client that has finished has no masks to draw; ones are as good as any.
        drawn = [
            _draw(layers, settings, generator, dtype) if s < len(plan) else blank
            for plan, generator in zip(plans, generators, strict=True)
        ]
        masks = [
            torch.stack(own)[:, : rows.shape[2]].to(device) for own in zip(*drawn, strict=True)
        ]
        chosen = rows[:, s].to(device)
        weight = weights[:, s].to(device)
        active = weight.sum(1) > 0
        batch = (
            data.x[index, chosen],
            data.y[index, chosen],
            {k: v[index, chosen] for k, v in data.extra.items()},
        )
        gradients, losses = step(params, batch, weight, tasks, masks)
        if settings.weight_decay:
            gradients = {
                k: g.add(params[k], alpha=settings.weight_decay) for k, g in gradients.items()
            }
        if settings.momentum:
            if momenta is None:
                momenta = gradients
            else:
                # Of a client that has finished, too: it takes no step any more.
                momenta = {k: m * settings.momentum + gradients[k] for k, m in momenta.items()}
            gradients = momenta
        everyone = bool(active.all())
        for name, value in params.items():
            moved = value.sub(gradients[name], alpha=settings.lr)
            params[name] = moved if everyone else _where(active, moved, value)
        total += torch.where(active, losses.double(), 0.0)
    result = []
    for k, plan in enumerate(plans):
        mean = float(total[k]) / len(plan) if plan else float("nan")
        # A copy: a view would keep, and carry to other processes, the whole block's parameters.
        own = {name: value[k].clone() for name, value in params.items()}
        result.append(Trained(own, mean, len(plan), sum(map(len, plan))))
    return result


def _step_function(local: Local, model: nn.Module, message: Any) -> Any:
    def objective(
        params: dict[str, Tensor],
        batch: tuple[Tensor, Tensor, dict[str, Tensor]],
        weight: Tensor,
        task: dict[str, Tensor],
        masks: list[Tensor],
    ) -> Tensor:
        losses = local.loss(
            Net(model, params, masks), Examples(*batch), ClientTask(**task), message
        )
        value = (losses * weight).sum() / weight.sum().clamp(min=1.0)
        return value if local.penalty is None else value + local.penalty(params, message)

    return vmap(grad_and_value(objective))


def _where(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old)


def _stack(shares: Sequence[Examples]) -> Examples:
    """Returns (clients, longest, ...) columns, padded with zeros."""

    def padded(columns: list[Tensor]) -> Tensor:
        longest = max(1, *(len(column) for column in columns)) if columns else 1
        out = columns[0].new_zeros((len(columns), longest, *columns[0].shape[1:]))
        for row, column in zip(out, columns, strict=True):
            row[: len(column)] = column
        return out

    if any(share.extra.keys() != shares[0].extra.keys() for share in shares):
        raise ValueError("the examples of one block have different extra columns")
    extra = {key: padded([share.extra[key] for share in shares]) for key in shares[0].extra}
    return Examples(padded([s.x for s in shares]), padded([s.y for s in shares]), extra)


def _pad(plans: list[list[Tensor]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns (clients, steps, batch) rows and 0/1 weights, as long and as wide as the longest."""
    longest = max(map(len, plans))
    widest = max((len(chosen) for plan in plans for chosen in plan), default=0)
    rows = torch.zeros((len(plans), longest, widest), dtype=torch.int64)
    weights = torch.zeros((len(plans), longest, widest), dtype=dtype)
    for k, plan in enumerate(plans):
        for s, chosen in enumerate(plan):
            rows[k, s, : len(chosen)] = chosen
            weights[k, s, : len(chosen)] = 1.0
    return rows, weights
