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
        input_dropout: Rate of dropout on the inputs.
        dropout: Rate of dropout after each hidden layer: one for all of them, one each, or none.
        bias: Whether the layers have biases.
    """

    hidden: tuple[int, ...] = (200, 200)
    input_dropout: float = 0.0
    dropout: tuple[float, ...] = ()
    bias: bool = True

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden widths must be at least 1, not {list(self.hidden)}")
        for rate in (self.input_dropout, *self.dropout):
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"a dropout rate must lie in [0, 1), not {rate}")
        if len(self.dropout) not in (0, 1, len(self.hidden)):
            raise ValueError(
                f"dropout names {len(self.dropout)} rates for {len(self.hidden)} hidden layers: "
                "give one for all or one each"
            )

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Returns the network for (n, *shape) inputs."""
        layers = nn.Sequential()
        layers.add_module("flatten", nn.Flatten())
        width = prod(shape)
        rates = (
            self.dropout
            if len(self.dropout) == len(self.hidden)
            else self.dropout * len(self.hidden)
        )
        if self.input_dropout:
            layers.add_module("drop0", Dropout(self.input_dropout, (width,)))
        for index, units in enumerate(self.hidden, start=1):
            layers.add_module(f"fc{index}", nn.Linear(width, units, bias=self.bias))
            layers.add_module(f"relu{index}", nn.ReLU())
            if rates and rates[index - 1]:
                layers.add_module(f"drop{index}", Dropout(rates[index - 1], (units,)))
            width = units
        layers.add_module("head", nn.Linear(width, classes, bias=self.bias))
        return layers
