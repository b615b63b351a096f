"""Server optimizers: what the server does with the mean change.

Reddi et al., Adaptive federated optimization, ICLR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from fedcl.core.params import Params


@dataclass(frozen=True)
class Moments:
    """What a server optimizer remembers; part of a method's state.

    Attributes:
        first: Running mean of the changes.
        second: Running mean of their squares.
        steps: Steps taken.
    """

    first: Params = field(default_factory=dict)
    second: Params = field(default_factory=dict)
    steps: int = 0


def server_step(
    change: Params,
    moments: Moments,
    kind: Literal["mean", "momentum", "adam"],
    lr: float,
    momentum: float = 0.9,
    second: float = 0.99,
    epsilon: float = 1e-3,
) -> tuple[Params, Moments]:
    """Returns the step to add to the parameters and the next moments.

    Args:
        change: Mean change of the cohort.
        moments: What the optimizer remembers.
        kind: `mean` adds the change times `lr`; `momentum` is FedAvgM; `adam` is FedAdam (without
            bias correction, as in the paper's Algorithm 2; its second moment starts at 0).
        lr: Server learning rate.
        momentum: Decay of the first moment.
        second: Decay of the second moment.
        epsilon: The paper's tau, which bounds the adaptive step.
    """
    if kind == "mean":
        return {k: v * lr if lr != 1.0 else v for k, v in change.items()}, moments
    zeros = {k: torch.zeros_like(v) for k, v in change.items()}
    old = moments.first or zeros
    if kind == "momentum":
        first = {k: momentum * old[k] + v for k, v in change.items()}
        return {k: lr * v for k, v in first.items()}, Moments(first, {}, moments.steps + 1)
    first = {k: momentum * old[k] + (1 - momentum) * v for k, v in change.items()}
    squares = moments.second or zeros
    variance = {k: second * squares[k] + (1 - second) * v.square() for k, v in change.items()}
    step = {k: lr * first[k] / (variance[k].sqrt() + epsilon) for k in change}
    return step, Moments(first, variance, moments.steps + 1)


def check_server(kind: str, lr: float, momentum: float) -> None:
    """Raises ValueError for options that no server optimizer takes."""
    if lr <= 0:
        raise ValueError(f"server_lr must be above 0, not {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"server_momentum must lie in [0, 1), not {momentum}")


def server_needs(kind: str, numbers: int) -> tuple[int, int]:
    """Returns the bytes of the moments, and of all that a step has at work besides them.

    Args:
        kind: As in `server_step`.
        numbers: Parameters of the model; a mean change and what is made of it are in float64.
    """
    # At work: the sum of the changes, their mean, zeros or old moments, new ones, and the step.
    moments = {"mean": 0, "momentum": 1, "adam": 2}[kind]
    return 8 * moments * numbers, 8 * (2 + 2 * moments + (moments > 0)) * numbers
