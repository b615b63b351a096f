"""ResNet-20 for 32x32 images, without its last layer.

He, Zhang, Ren and Sun, Deep residual learning for image recognition, CVPR 2016, section 4.2, with
the shortcuts of option A (every second pixel, zeros for new channels). Names of the weights are
those of Idelbayev's PyTorch implementation, whose normalisation is ImageNet's.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.models._weights import Weights

__all__ = ["FILE", "LEAST", "MEAN", "STD", "WIDTH", "network"]

FILE = "backbone_resnet20_cifar10.npz"
WIDTH = 64
LEAST = 8  # pixels a side
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def network(weights: Weights) -> nn.Module:
    """Returns the network from normalised images to (n, 64) features, in float64."""
    layers = nn.Sequential()
    stem = nn.Conv2d(3, 16, 3, padding=1)
    layers.append(weights.convolution(stem, "conv1", "bn1")).append(nn.ReLU())
    channels = 16
    for stage in (1, 2, 3):
        filters = 8 << stage
        for number in range(3):
            stride = 2 if stage > 1 and number == 0 else 1
            name = f"layer{stage}.{number}"
            layers.append(_Block(weights, name, channels, filters, stride))
            channels = filters
    return layers.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())


class _Block(nn.Module):
    def __init__(
        self, weights: Weights, name: str, channels: int, filters: int, stride: int
    ) -> None:
        super().__init__()
        self.stride, self.more = stride, filters - channels
        first = nn.Conv2d(channels, filters, 3, stride, padding=1)
        second = nn.Conv2d(filters, filters, 3, padding=1)
        self.conv1 = weights.convolution(first, f"{name}.conv1", f"{name}.bn1")
        self.conv2 = weights.convolution(second, f"{name}.conv2", f"{name}.bn2")

    def forward(self, x: Tensor) -> Tensor:
        side = x[:, :, :: self.stride, :: self.stride]
        side = F.pad(side, (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(self.conv2(F.relu(self.conv1(x))) + side)
