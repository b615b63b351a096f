"""A multi-layer perceptron with ReLU: `hidden` layers and one linear head over all classes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from fedcl.core.model import Dropout

__all__ = ["Mlp"]


@dataclass(frozen=True)
class Mlp:
    """Linear layers with ReLU between them; inputs are flattened.

    Attributes:
        hidden: Widths of the hidden layers.
        input_dropout: Rate of dropout on the inputs (FOT's Permuted-MNIST network: 0.2).
        dropout: Rate of dropout after each hidden layer (FOT's: 0.5).
        bias: Whether the layers have biases.
    """

    hidden: tuple[int, ...] = (200, 200)
    input_dropout: float = 0.0
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden widths must be at least 1, not {list(self.hidden)}")
        for name, rate in (("input_dropout", self.input_dropout), ("dropout", self.dropout)):
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), not {rate}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Returns the network for (n, *shape) inputs."""
        layers = nn.Sequential()
        layers.add_module("flatten", nn.Flatten())
        width = prod(shape)
        if self.input_dropout:
            layers.add_module("drop0", Dropout(self.input_dropout, (width,)))
        for index, units in enumerate(self.hidden, start=1):
            layers.add_module(f"fc{index}", nn.Linear(width, units, bias=self.bias))
            layers.add_module(f"relu{index}", nn.ReLU())
            if self.dropout:
                layers.add_module(f"drop{index}", Dropout(self.dropout, (units,)))
            width = units
        layers.add_module("head", nn.Linear(width, classes, bias=self.bias))
        return layers
