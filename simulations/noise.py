"""A step of a channel that makes second moments noisy, as a differentially private sum would be.

It belongs to the study in simulations/orthogonal.py: `[[channel]]` `name = "noise:MomentNoise"`.
Nothing is clipped and nothing accounted for: it shows what noise does, and protects nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedcl.core.channel import Aggregate, Sending
from fedcl.core.client import Client, Reply
from fedcl.core.seeds import torch_generator

__all__ = ["MomentNoise"]


@dataclass(frozen=True)
class MomentNoise:
    """Adds symmetric Gaussian noise to summed moments that travel packed.

    Attributes:
        sigma: Expected Frobenius norm of the noise (root of its mean square) as a multiple of the
            moment's own.
        kinds: Kinds of payload that are such moments: the part of a name before `/`.
    """

    sigma: float = 0.0
    kinds: tuple[str, ...] = ("input_moments", "output_moments")

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma must be at least 0 and finite, not {self.sigma}")

    @property
    def hides_replies(self) -> bool:
        """The server adds the noise itself, so it has seen what was sent."""
        return False

    def init(self) -> None:
        """Has no state."""

    def upload(self, reply: Reply, client: Client, sending: Sending) -> Reply:
        """Leaves every reply as it is."""
        return reply

    def receive(self, total: Aggregate, state: Any, seed: int) -> tuple[Aggregate, Any]:
        """Adds the noise to each moment, independent of the others'."""
        tensors = {
            name: self._noisy(value, name, seed) if name.split("/")[0] in self.kinds else value
            for name, value in total.total.items()
        }
        return replace(total, total=tensors), state

    def _noisy(self, packed: Tensor, name: str, seed: int) -> Tensor:
        draws = torch.randn(
            len(packed), generator=torch_generator(seed, "noise", name), dtype=torch.float64
        )
        # The entries of the triangle are independent and alike, so the d x d matrix that they make
        # has d squared times their variance as mean squared norm.
        scale = self.sigma * frobenius(packed) / side(packed)
        return packed + scale * draws.to(packed.device, packed.dtype)


def side(packed: Tensor) -> int:
    """Returns d of a packed (d, d) symmetric matrix."""
    return int(((8 * len(packed) + 1) ** 0.5 - 1) / 2)


def frobenius(packed: Tensor) -> float:
    """Returns the Frobenius norm of a packed symmetric matrix."""
    diagonal = _diagonal(packed)
    return float((2 * packed.double().square().sum() - diagonal.square().sum()).sqrt())


def trace(packed: Tensor) -> float:
    """Returns the trace of a packed symmetric matrix."""
    return float(_diagonal(packed).sum())


def private_noise(packed: Tensor, examples: float, epsilon: float, delta: float) -> float:
    """Returns the `sigma` that makes one sum over examples of x x^T differentially private.

    With every |x| clipped to C, adding or removing one example moves the sum by C^2 at most in
    Frobenius norm, and the Gaussian mechanism (Dwork and Roth, 2014, theorem A.1; for matrices
    "Analyze Gauss", Dwork et al., STOC 2014) adds a deviation of C^2 sqrt(2 ln(1.25 / delta)) /
    epsilon to each entry. C is taken as the root mean square of |x|, which the trace tells.

    Args:
        packed: The sum, packed.
        examples: How many examples it was made of.
        epsilon: At most 1.
        delta: Above 0.
    """
    clip = trace(packed) / examples  # C squared
    deviation = clip * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    return deviation * side(packed) / frobenius(packed)


def _diagonal(packed: Tensor) -> Tensor:
    # Row k of the upper triangle has d - k entries, of which the first lies on the diagonal.
    lengths = torch.arange(side(packed), 0, -1, device=packed.device)
    return packed.double()[torch.cumsum(lengths, 0) - lengths]
