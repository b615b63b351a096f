"""The AlexNet-like network of FOT and GPM for 32x32 images, without biases.

Serra et al., Overcoming catastrophic forgetting with hard attention to the task, ICML 2018;
Bakman et al., ICLR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fedcl.core.model import Dropout

__all__ = ["Alexnet"]


@dataclass(frozen=True)
class Alexnet:
    """Convolutions 64@4x4, 128@3x3, 256@2x2 with ReLU, dropout, 2x2 pooling; 2048, 2048, head.

    Attributes:
        width: Factor for all widths: 1.0 is the published network.
        dropout: Rates after the first two convolutions and after the rest.
    """

    width: float = 1.0
    dropout: tuple[float, float] = (0.2, 0.5)

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise ValueError(f"width must be above 0, not {self.width}")
        if not all(0.0 <= rate < 1.0 for rate in self.dropout):
            raise ValueError(f"dropout rates must lie in [0, 1), not {list(self.dropout)}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Returns the network for (n, channels, height, width) images of at least 19x19."""
        if len(shape) != 3:
            raise ValueError(
                f"alexnet needs images (channels, height, width), not inputs of shape {shape}; "
                "try mlp"
            )
        channels, height, width = shape
        early, late = self.dropout
        layers = nn.Sequential()
        for index, (filters, kernel, rate) in enumerate(
            ((64, 4, early), (128, 3, early), (256, 2, late)), start=1
        ):
            filters = max(1, round(filters * self.width))
            layers.add_module(f"conv{index}", nn.Conv2d(channels, filters, kernel, bias=False))
            layers.add_module(f"relu{index}", nn.ReLU())
            height, width = height - kernel + 1, width - kernel + 1
            if min(height, width) < 2:
                raise ValueError(
                    f"images of {shape[1]}x{shape[2]} are too small for alexnet (19x19 at least)"
                )
            layers.add_module(f"drop{index}", Dropout(rate, (filters, height, width)))
            layers.add_module(f"pool{index}", nn.MaxPool2d(2))
            channels, height, width = filters, height // 2, width // 2
        layers.add_module("flatten", nn.Flatten())
        features = channels * height * width
        for index in (1, 2):
            units = max(1, round(2048 * self.width))
            layers.add_module(f"fc{index}", nn.Linear(features, units, bias=False))
            layers.add_module(f"relu{index + 3}", nn.ReLU())
            layers.add_module(f"drop{index + 3}", Dropout(late, (units,)))
            features = units
        layers.add_module("head", nn.Linear(features, classes, bias=False))
        return layers
