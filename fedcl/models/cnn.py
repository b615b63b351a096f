"""A small convolutional network: blocks of 3x3 convolution, GroupNorm, ReLU, pooling; a head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fedcl.core.model import Dropout

__all__ = ["Cnn"]


@dataclass(frozen=True)
class Cnn:
    """Convolution blocks and a head, for images of at least 2 ** len(channels) pixels a side.

    Attributes:
        channels: Channels of the blocks; each block halves the image.
        hidden: Width of the linear layer before the head; 0 leaves it out.
        groups: Groups of each GroupNorm; 0 leaves the normalisation out.
        dropout: Rate of dropout before the head.
    """

    channels: tuple[int, ...] = (32, 64)
    hidden: int = 128
    groups: int = 8
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.channels or any(c < 1 for c in self.channels):
            raise ValueError(
                f"channels must be at least one number above 0, not {list(self.channels)}"
            )
        if self.groups < 0:
            raise ValueError(f"groups must be at least 0, not {self.groups}")
        if self.groups and any(c % self.groups for c in self.channels):
            raise ValueError(
                f"groups = {self.groups} must divide every number of channels {list(self.channels)}"
            )
        if self.hidden < 0:
            raise ValueError(f"hidden must be at least 0, not {self.hidden}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Returns the network for (n, channels, height, width) images."""
        if len(shape) != 3:
            raise ValueError(
                f"cnn needs images (channels, height, width), not inputs of shape {shape}; try mlp"
            )
        channels, height, width = shape
        if min(height, width) < 2 ** len(self.channels):
            raise ValueError(
                f"images of {height}x{width} are too small to be halved {len(self.channels)} times"
            )
        layers = nn.Sequential()
        for index, filters in enumerate(self.channels, start=1):
            layers.add_module(f"conv{index}", nn.Conv2d(channels, filters, 3, padding=1))
            if self.groups:
                layers.add_module(f"norm{index}", nn.GroupNorm(self.groups, filters))
            layers.add_module(f"relu{index}", nn.ReLU())
            layers.add_module(f"pool{index}", nn.MaxPool2d(2))
            channels, height, width = filters, height // 2, width // 2
        layers.add_module("flatten", nn.Flatten())
        features = channels * height * width
        if self.hidden:
            layers.add_module("fc", nn.Linear(features, self.hidden))
            layers.add_module("relu", nn.ReLU())
            features = self.hidden
        if self.dropout:
            layers.add_module("drop", Dropout(self.dropout, (features,)))
        layers.add_module("head", nn.Linear(features, classes))
        return layers
