"""Evaluation in the simulator's own view: which held-out examples a method's model gets right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.method import Method
from fedcl.core.model import Net
from fedcl.core.task import Examples
from fedcl.core.tree import settle


@dataclass(frozen=True)
class Answers:
    """A model's answers to held-out examples.

    Attributes:
        labels: (n,) true classes.
        right: (n,) bool, whether the largest logit is the true class's.
        losses: (n,) cross-entropies over the logits that the scenario allows.
    """

    labels: Tensor
    right: Tensor
    losses: Tensor

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return int(self.right.sum()) / len(self.right)

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return float(self.losses.double().mean())


def answer(
    method: Method[Any], state: Any, net: Net, examples: Examples, allowed: Tensor, batch: int
) -> Answers:
    """Returns a model's answers.

    Args:
        method: Says how to predict.
        state: The method's state.
        net: The network to evaluate.
        examples: Held-out examples, on the net's device and in its type.
        allowed: (classes,) bool, what a prediction may choose from.
        batch: Examples of one forward pass.
    """
    right, losses = [], []
    with torch.no_grad():
        for x, y in zip(examples.x.split(batch), examples.y.split(batch), strict=True):
            logits = method.predict(state, net, x, allowed)
            right.append((logits.argmax(1) == y).cpu())
            losses.append(F.cross_entropy(logits, y, reduction="none").cpu())
    return Answers(examples.y.cpu(), torch.cat(right), torch.cat(losses))


def predicted(
    method: Method[Any], state: Any, model: nn.Module, x: Tensor, allowed: Tensor, batch: int
) -> Tensor:
    """Returns the (n, classes) logits that a method gives inputs, on the CPU.

    Args:
        method: Says how to predict.
        state: The method's state, whose parameters are asked.
        model: The architecture; it lies where the network computes.
        x: (n, ...) inputs of any device and real type.
        allowed: (classes,) bool, what a prediction may choose from.
        batch: Inputs of one forward pass.
    """
    device = next(model.parameters()).device
    dtype = next(iter(state.params.values())).dtype
    net, allowed = Net(model, settle(dict(state.params), device)), allowed.to(device)
    with torch.no_grad():
        return torch.cat(
            [
                method.predict(state, net, settle(part.to(dtype), device), allowed).cpu()
                for part in x.split(batch)
            ]
        )
