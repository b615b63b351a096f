"""ResNet-18 with group normalisation, for small images or with the stem made for ImageNet.

He, Zhang, Ren and Sun, Deep residual learning for image recognition, CVPR 2016; Wu and He, Group
normalization, ECCV 2018. Batch statistics of clients with different classes do not average: Hsieh,
Phanishayee, Mutlu and Gibbons, The non-IID data quagmire of decentralized machine learning, ICML
2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

__all__ = ["Resnet18Gn"]


@dataclass(frozen=True)
class Resnet18Gn:
    """Stem, four stages of two residual blocks of 3x3 convolutions, global average, head.

    Published federated continual learning uses a width of 64; FOT uses 20 and 32 with `groups = 0`.

    Attributes:
        width: Channels of the stem and the first stage; each further stage has twice as many.
        groups: Groups of each GroupNorm: 2 as usual in federated learning (32 in Wu and He); 0
            leaves the normalisation out.
        stem: "small": one 3x3 convolution, for images of at least 8x8. "imagenet": 7x7 of stride 2
            and a 3x3 max-pooling of stride 2, for images of at least 32x32.
        zero_init: Whether the last normalisation of each block starts at 0, so that each block
            starts as the identity (Goyal et al. 2017).
    """

    width: int = 64
    groups: int = 2
    stem: Literal["small", "imagenet"] = "small"
    zero_init: bool = False

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, not {self.width}")
        if self.groups < 0:
            raise ValueError(f"groups must be at least 0, not {self.groups}")
        if self.groups and self.width % self.groups:
            raise ValueError(f"groups = {self.groups} must divide the width {self.width}")
        if self.stem not in ("small", "imagenet"):
            raise ValueError(f'stem must be "small" or "imagenet", not {self.stem!r}')
        if self.zero_init and not self.groups:
            raise ValueError("zero_init needs normalisation: set groups above 0")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Returns the network for (n, channels, height, width) images."""
        if len(shape) != 3:
            raise ValueError(
                f"resnet18_gn needs images (channels, height, width), not inputs of shape {shape}; "
                "try mlp"
            )
        least = 8 if self.stem == "small" else 32
        if min(shape[1:]) < least:
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} are too small for resnet18_gn with stem = "
                f"{self.stem!r} ({least}x{least} at least)"
            )
        layers = nn.Sequential()
        small = self.stem == "small"
        kernel, stride = (3, 1) if small else (7, 2)
        layers.add_module("conv1", _convolution(shape[0], self.width, kernel, stride))
        layers.add_module("norm1", _norm(self.groups, self.width))
        layers.add_module("relu", nn.ReLU())
        if not small:
            layers.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))
        channels = self.width
        for stage in range(4):
            filters, stride = self.width << stage, 1 if stage == 0 else 2
            first = _Block(channels, filters, stride, self.groups, self.zero_init)
            second = _Block(filters, filters, 1, self.groups, self.zero_init)
            layers.add_module(f"layer{stage + 1}", nn.Sequential(first, second))
            channels = filters
        layers.add_module("average", nn.AdaptiveAvgPool2d(1))
        layers.add_module("flatten", nn.Flatten())
        layers.add_module("head", nn.Linear(channels, classes))
        return layers


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where shapes differ."""

    def __init__(
        self, channels: int, filters: int, stride: int, groups: int, zero_init: bool
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, filters, 3, stride)
        self.norm1 = _norm(groups, filters)
        self.relu = nn.ReLU()
        self.conv2 = _convolution(filters, filters, 3, 1)
        self.norm2 = _norm(groups, filters)
        if zero_init and isinstance(self.norm2, nn.GroupNorm):
            nn.init.zeros_(self.norm2.weight)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != filters:
            self.shortcut.add_module("conv", _convolution(channels, filters, 1, stride))
            self.shortcut.add_module("norm", _norm(groups, filters))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, channels, height, width) to (n, filters, height / stride, width / stride)."""
        inner = self.relu(self.norm1(self.conv1(x)))
        out: Tensor = self.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))
        return out


def _convolution(channels: int, filters: int, kernel: int, stride: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, filters, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _norm(groups: int, channels: int) -> nn.Module:
    return nn.GroupNorm(groups, channels) if groups else nn.Identity()
