"""How a linear layer holds the weights of several clients while they train.

Either way SGD's step is taken inside the backward pass: `Stepped` has a weight for each client and
never writes out its gradient; `Outer` keeps each client's weight as the common start plus outer
products, which costs less while these hold fewer numbers than the weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedcl.core.sgd import Settings


class UsedTwice(Exception):
    """A loss called the network more than once in a step, or asked for gradients by itself."""


@dataclass
class Step:
    """Where a block's training is; shared by its layers.

    Attributes:
        clients: Clients at work in this step: the first ones of all.
        number: Number of the step, from 0.
        width: Rows of each client in a step.
        anchor: Scalar that makes the backward pass reach layers whose inputs need no gradient.
        grouped: Whether convolutions are one with a group for each client.
        learning: Whether this is the backward pass of the whole loss, which moves weights.
    """

    clients: int
    number: int
    width: int
    anchor: Tensor
    grouped: bool = False
    learning: bool = False


class Weights(ABC):
    """How a linear layer holds the weights of several clients; one use in each step."""

    used: bool = False
    moved: bool = False

    def apply(self, x: Tensor, step: Step) -> Tensor:
        """Returns the (..., out) outputs of (..., in) inputs.

        Raises:
            UsedTwice: It was called in this step before.
        """
        if self.used:
            raise UsedTwice
        self.used = True
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor = _Linear.apply(rows, step.anchor, self, step)  # type: ignore[no-untyped-call]
        return y if x.dim() == 2 else y.view(*x.shape[:-1], -1)

    @abstractmethod
    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Computes the (rows, out) outputs of (rows, in) inputs."""

    @abstractmethod
    def backward(self, x: Tensor, dy: Tensor, step: Step, needed: bool) -> Tensor | None:
        """Takes the optimizer's step and returns the gradient of the inputs, if it is needed."""

    def finish(self, step: Step) -> None:
        """Ends a step."""
        self.used = self.moved = False


class _Linear(torch.autograd.Function):
    """Lets `Weights` compute both ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, weights: Weights, step: Step) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weights, ctx.step = weights, step
        return weights.forward(x, step)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, None]:
        # A gradient that the loss itself asks for is none to learn from.
        if not ctx.step.learning:
            raise UsedTwice
        (x,) = ctx.saved_tensors
        dx = ctx.weights.backward(x, dy, ctx.step, ctx.needs_input_grad[0])
        ctx.weights.moved = True
        return dx, None, None, None


class Stepped(Weights):
    """A weight for each client; SGD steps inside the backward pass.

    Attributes:
        weight: (clients, out, in).
        bias: (clients, out), or None.
        lr: Learning rate.
        decay: Weight decay.
        momentum: Momentum; its velocity starts at 0.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, lr: float, decay: float, momentum: float
    ) -> None:
        self.weight, self.bias, self.lr = weight, bias, lr
        self.decay, self.momentum = decay, momentum
        self.own = [weight] if bias is None else [weight, bias]
        self.velocity = [torch.zeros_like(value) for value in self.own if momentum]

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Computes the outputs."""
        weight = self.weight[: step.clients]
        rows = x.view(step.clients, -1, weight.shape[2])
        # Written into a tensor of its own: what follows may change an output, but no view, in
        # place.
        y = x.new_empty(len(x), weight.shape[1])
        into = y.view(step.clients, -1, weight.shape[1])
        if self.bias is None:
            torch.bmm(rows, weight.transpose(1, 2), out=into)
        else:
            bias = self.bias[: step.clients, None]
            torch.baddbmm(bias, rows, weight.transpose(1, 2), out=into)
        return y

    def backward(self, x: Tensor, dy: Tensor, step: Step, needed: bool) -> Tensor | None:
        """Takes SGD's step; without momentum the gradient is never written out."""
        weight = self.weight[: step.clients]
        change = dy.reshape(step.clients, -1, weight.shape[1])
        dx = torch.bmm(change, weight).view(x.shape) if needed else None
        self._let_go(step.clients)
        # Into the weights themselves, or into their velocity.
        aims = [value[: step.clients] for value in self.velocity or self.own]
        factor = 1.0 if self.velocity else -self.lr
        rows = x.view(step.clients, -1, weight.shape[2])
        aims[0].baddbmm_(change.transpose(1, 2), rows, alpha=factor)
        if self.bias is not None:
            aims[1].add_(change.sum(1), alpha=factor)
        self._follow(step.clients)
        return dx

    def _let_go(self, working: int) -> None:
        """Takes the part of a step that needs no gradient: momentum and decay."""
        for number, value in enumerate(self.own):
            if self.velocity:
                self.velocity[number][:working].mul_(self.momentum)
                if self.decay:
                    self.velocity[number][:working].add_(value[:working], alpha=self.decay)
            elif self.decay:
                value[:working].mul_(1.0 - self.lr * self.decay)

    def _follow(self, working: int) -> None:
        for value, velocity in zip(self.own, self.velocity, strict=False):
            value[:working].add_(velocity[:working], alpha=-self.lr)

    def finish(self, step: Step) -> None:
        """Ends a step; weights that the loss did not depend on still decay and coast."""
        if not self.moved:
            self._let_go(step.clients)
            self._follow(step.clients)
        super().finish(step)


def as_products(visits: int, width: int, out: int) -> bool:
    """Returns whether a weight is cheaper as `Outer` than as `Stepped`.

    It is while the products hold fewer numbers than the weight. On a CPU, for 64 to 1024 inputs, 64
    to 512 outputs and batches of 10 and 32, they take 0.4 to 1.1 of the time up to there, and 1 to
    7 times as much at 400 visits.

    Args:
        visits: Rows that a client visits.
        width: Inputs of the layer.
        out: Its outputs.
    """
    return visits * (width + out) <= width * out


class Outer(Weights):
    """One start for all clients, and for each the outer products that its steps have added.

    After step s a client's weight is `scale[s] W + sum_r factor[s, r] dY_r^T X_r` over its earlier
    visits r: all that SGD does with momentum and weight decay is linear in the gradients.

    Attributes:
        weight: (out, in) start.
        bias: (out,) start, or None.
        left: (clients, visits, out) gradients at the outputs.
        right: Inputs of each step, (clients at work, width, in): not copied, only remembered.
        scale: (steps + 1,) factors of the start.
        factor: (steps + 1, steps) factors of the steps' products.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        clients: int,
        visits: int,
        scale: Tensor,
        factor: Tensor,
    ) -> None:
        self.weight, self.bias = weight, bias
        self.right: list[Tensor] = []
        self.left = weight.new_zeros((clients, visits, weight.shape[0]))
        self.scale, self.factor = scale.tolist(), factor
        steps = factor.shape[1]
        # The usual case, plain SGD: every earlier product counts by the same number.
        self.same = [
            None if bool((factor[s, :s] != factor[s, 0]).any()) else float(factor[s, 0])
            for s in range(1, steps)
        ]

    def _past(self, step: Step) -> int:
        return step.number * step.width

    def _weigh(self, products: Tensor, step: Step) -> tuple[Tensor, float]:
        """Returns products with earlier visits (clients, rows, visits), and a factor for them."""
        same = self.same[step.number - 1]
        if same is not None:
            return products, same
        factors = self.factor[step.number, : step.number].repeat_interleave(step.width)
        return products * factors.to(products), 1.0

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Computes the outputs without the clients' weights."""
        scale, past = self.scale[step.number], self._past(step)
        if self.bias is None:
            y = x @ self.weight.T if scale == 1.0 else (x @ self.weight.T) * scale
        else:
            y = torch.addmm(self.bias, x, self.weight.T, beta=scale, alpha=scale)
        rows = x.view(step.clients, step.width, -1)
        if past:
            earlier = [inputs[: step.clients].transpose(1, 2) for inputs in self.right]
            products = torch.cat([torch.bmm(rows, inputs) for inputs in earlier], 2)
            if self.bias is not None:
                products.add_(1.0)
            products, factor = self._weigh(products, step)
            y.view(step.clients, step.width, -1).baddbmm_(
                products, self.left[: step.clients, :past], alpha=factor
            )
        self.right.append(rows.detach())  # without the graph of what came before
        return y

    def backward(self, x: Tensor, dy: Tensor, step: Step, needed: bool) -> Tensor | None:
        """Notes the outer product that the step adds."""
        past = self._past(step)
        rows = dy.reshape(step.clients, step.width, -1)
        dx = None
        if needed:
            dx = torch.mm(dy, self.weight)
            if self.scale[step.number] != 1.0:
                dx *= self.scale[step.number]
            if past:
                products = torch.bmm(rows, self.left[: step.clients, :past].transpose(1, 2))
                products, factor = self._weigh(products, step)
                parts = products.split(step.width, 2)
                for part, inputs in zip(parts, self.right[: step.number], strict=True):
                    dx.view(step.clients, step.width, -1).baddbmm_(
                        part, inputs[: step.clients], alpha=factor
                    )
        self.left[: step.clients, past : past + step.width] = rows
        return dx

    def finish(self, step: Step) -> None:
        """Ends a step; inputs that the loss did not depend on must not count, not even infinity."""
        if not self.moved:
            del self.right[step.number :]
            shape = (step.clients, step.width, self.weight.shape[1])
            self.right.append(self.weight.new_zeros(shape))
        super().finish(step)


@lru_cache(maxsize=256)
def recurrence(settings: Settings, steps: int) -> tuple[Tensor, Tensor]:
    """Returns the factors of the start and of each step's gradient in the weights, step by step.

    SGD's v <- momentum v + g + decay w and w <- w - lr v are linear in the start and the gradients.

    Returns:
        (steps + 1,) and (steps + 1, steps) float64.
    """
    weight = torch.zeros(steps + 1, dtype=torch.float64)
    weight[0] = 1.0
    velocity = torch.zeros_like(weight)
    rows = [weight.clone()]
    for step in range(steps):
        velocity = settings.momentum * velocity + settings.weight_decay * weight
        velocity[step + 1] += 1.0
        weight = weight - settings.lr * velocity
        rows.append(weight)
    table = torch.stack(rows)
    return table[:, 0], table[:, 1:]
