"""EfficientNet-Lite0 for ImageNet, without its last layer.

Tan and Le, EfficientNet, ICML 2019; the Lite variants are Google's of 2020: no squeeze and
excitation, ReLU6, stem and last convolution of fixed width. Weights were converted from TensorFlow,
so padding is its "same" (the odd pixel behind) and batch norms have epsilon 1e-3. Names are those
of Melas-Kyriazi's PyTorch implementation.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.models._weights import Weights

__all__ = ["FILE", "LEAST", "MEAN", "STD", "WIDTH", "network"]

FILE = "backbone_efficientnet_lite0_fp16.npz"
WIDTH = 1280
LEAST = 32  # pixels a side
# Of inputs in [0, 1]: the network was trained on (byte - 127) / 128.
MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3
_EPSILON = 1e-3
# Repeats, kernel, stride of the first, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def network(weights: Weights) -> nn.Module:
    """Returns the network from normalised images to (n, 1280) features, in float64."""
    layers = nn.Sequential(_Convolution(weights, "_conv_stem", "_bn0", 3, 32, 3, 2), nn.ReLU6())
    channels, number = 32, 0
    for repeats, kernel, stride, expansion, filters in _STAGES:
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            name = f"_blocks.{number}"
            layers.append(_Block(weights, name, channels, filters, kernel, step, expansion))
            channels, number = filters, number + 1
    layers.append(_Convolution(weights, "_conv_head", "_bn1", channels, WIDTH, 1))
    return layers.append(nn.ReLU6()).append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())


class _Convolution(nn.Module):
    """A convolution whose output has the size of its input divided by the stride, rounded up."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        norm: str,
        channels: int,
        filters: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        layer = nn.Conv2d(channels, filters, kernel, stride, groups=groups)
        self.layer = weights.convolution(layer, name, norm, _EPSILON)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            steps = -(-size // self.stride)
            more = max(0, (steps - 1) * self.stride + self.kernel - size)
            pads += [more // 2, more - more // 2]
        out: Tensor = self.layer(F.pad(x, pads))
        return out


class _Block(nn.Module):
    """Expansion, depthwise convolution, projection; beside it the input where shapes are equal."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        channels: int,
        filters: int,
        kernel: int,
        stride: int,
        expansion: int,
    ) -> None:
        super().__init__()
        wide = channels * expansion
        layers = nn.Sequential()
        if expansion > 1:
            expand = _Convolution(
                weights, f"{name}._expand_conv", f"{name}._bn0", channels, wide, 1
            )
            layers.append(expand).append(nn.ReLU6())
        depthwise = f"{name}._depthwise_conv", f"{name}._bn1"
        layers.append(_Convolution(weights, *depthwise, wide, wide, kernel, stride, groups=wide))
        layers.append(nn.ReLU6())
        project = f"{name}._project_conv", f"{name}._bn2"
        layers.append(_Convolution(weights, *project, wide, filters, 1))
        self.layers, self.beside = layers, stride == 1 and channels == filters

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out + x if self.beside else out
