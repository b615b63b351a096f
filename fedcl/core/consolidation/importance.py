"""How much single parameters matter to old tasks, and the pull that this weighs.

A parameter's importance is a mean over examples of what the gradient of one number per example
says: of its square (Fisher information) or its size (sensitivity of the output).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.consolidation.gradients import HELD, gradient_powers
from fedcl.core.consolidation.kronecker import sampled_labels
from fedcl.core.local import masked_logits
from fedcl.core.model import Net
from fedcl.core.optimizer import Moments
from fedcl.core.params import Params
from fedcl.core.task import ClientTask, Examples

ROWS = 128  # examples that pass through the network together


@dataclass(frozen=True)
class Question:
    """What goes down for a measurement: the global model, and the parameters that are meant."""

    params: Params
    names: tuple[str, ...]


@dataclass(frozen=True)
class Consolidated:
    """Server state: model, the last stage's one, importances, the server optimizer's moments."""

    params: Params
    anchor: Params = field(default_factory=dict)
    importance: Params = field(default_factory=dict)
    moments: Moments = field(default_factory=Moments)


@dataclass(frozen=True)
class Weighted:
    """What goes down with the model while it is pulled.

    Attributes:
        params: The model.
        anchor: What its parameters are pulled to, by name.
        importance: How hard, number by number: the strength is in it already.
    """

    params: Params
    anchor: Params
    importance: Params


@dataclass(frozen=True)
class WeightedPull:
    """Half of the squared distances to the message's anchor, weighed by its importance."""

    def __call__(self, params: Params, message: Weighted) -> Tensor:
        """Returns a scalar that touches no data."""
        parts = [
            (message.importance[name] * (params[name] - old).square()).sum()
            for name, old in message.anchor.items()
        ]
        return 0.5 * torch.stack(parts).sum()


@dataclass(frozen=True)
class SquaredGradients:
    """Squares of the log-likelihood's gradients, as a `Statistic` measures them.

    Attributes:
        labels: The examples' own (`empirical`), or `sampled` from the model's prediction with one
            draw of the statistic: their mean is the diagonal of the Fisher information.
        masked: Compare only the classes of the present task, as training does.
    """

    labels: Literal["empirical", "sampled"] = "empirical"
    masked: bool = False

    def __call__(
        self, net: Net, rows: Examples, task: ClientTask, message: Question
    ) -> dict[str, Tensor]:
        """Returns sums `fisher/<parameter>` and `count/n`.

        Args:
            net: The network with the message's parameters.
            rows: Examples, with `draws` where labels are sampled.
            task: Its masks say which classes are compared.
            message: As it says.
        """
        allowed = task.present if self.masked else task.head
        labels = rows.y
        if self.labels == "sampled":
            with torch.no_grad():
                logits = masked_logits(net(rows.x), allowed)
            labels = sampled_labels(logits, rows.extra["draws"][:, 0])

        def losses(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(masked_logits(logits, allowed), labels, reduction="none")

        sums = gradient_powers(net, rows.x, labels, losses, message.names, 2)
        return _named("fisher", rows, sums)


@dataclass(frozen=True)
class OutputSensitivity:
    """Sizes of the gradients of the logits' squared norm, as a `Statistic` measures them.

    Attributes:
        masked: Take only the logits of the present task's classes.
    """

    masked: bool = False

    def __call__(
        self, net: Net, rows: Examples, task: ClientTask, message: Question
    ) -> dict[str, Tensor]:
        """Returns sums `sensitivity/<parameter>` and `count/n`; labels are not looked at."""
        allowed = task.present if self.masked else task.head

        def norms(logits: Tensor, labels: Tensor) -> Tensor:
            return logits.masked_fill(~allowed, 0.0).square().sum(1)

        sums = gradient_powers(net, rows.x, rows.y, norms, message.names, 1)
        return _named("sensitivity", rows, sums)


def _named(kind: str, rows: Examples, sums: Params) -> dict[str, Tensor]:
    count = rows.x.new_tensor(len(rows), dtype=torch.float64)
    return {"count/n": count, **{f"{kind}/{name}": value for name, value in sums.items()}}


def weighted(
    params: Params, anchor: Params, importance: Params, strength: float, cap: float
) -> Weighted:
    """Returns the message that pulls parameters, none of them harder than `cap`."""
    factors = {
        name: (strength * value).clamp(max=cap).to(anchor[name].dtype)
        for name, value in importance.items()
    }
    return Weighted(params, anchor, factors)


def importance_needs(
    params: int, item: int, layers: Mapping[str, tuple[int, int]], rows: Mapping[str, int]
) -> dict[str, int]:
    """Returns the bytes of an importance and its anchor, and of measuring: names as in `Needs`.

    Args:
        params: Bytes of the model.
        item: Bytes of a number.
        layers: Length of a layer input and number of outputs by name of the weight.
        rows: Layer inputs of one example by name of the weight.
    """
    numbers, biases = params // item, sum(out for _, out in layers.values())
    # Inputs, outputs and their gradients of a call; those of the widest layer in float64, raised.
    values = [rows[name] * (width + 2 * out) for name, (width, out) in layers.items()]
    plain = {name for name in layers if rows[name] == 1}
    alone = numbers - sum(layers[name][0] * layers[name][1] for name in plain)
    if plain == layers.keys() and alone <= biases:
        alone = 0  # products give them all
    held = min(ROWS * item * alone, max(HELD, item * alone))
    return {
        "state": (8 + item) * numbers,
        # Sums of a block, of those before, and of all; old, new and next importance.
        "server": 6 * 8 * numbers,
        # Single gradients and their powers; sums of a call, and of all.
        "client": ROWS * (item * sum(values) + 4 * 8 * max(values, default=0))
        + 2 * held
        + 2 * 8 * numbers,
        "reply": params + 8,
    }
