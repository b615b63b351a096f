"""A published network with frozen weights from a file, and a linear head that is trained.

Its weights are a function of the config and the file alone: they are never trained, sent, counted
as bytes or written into checkpoints, and whoever runs a part of the experiment needs the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.frozen import Frozen
from fedcl.models import _efficientnet_lite0, _resnet20
from fedcl.models._weights import locate, read

__all__ = ["FrozenBackbone"]

Backbone = Literal["resnet20", "efficientnet_lite0"]
_BACKBONES = {"resnet20": _resnet20, "efficientnet_lite0": _efficientnet_lite0}


@dataclass(frozen=True)
class FrozenBackbone:
    """A backbone with folded batch norms, and a head.

    It normalises images itself, and wants them in [0, 1]: leave `mean` and `std` of the data set
    at 0 and 1. Grey images are taken as three equal channels.

    Attributes:
        backbone: `resnet20` (CIFAR; 64 features) or `efficientnet_lite0` (ImageNet; 1280 features).
        root: Folder of the weights, or their file itself.
        file: Name of the file there; empty: the backbone's own name for it.
        sha256: What the file's SHA-256 must begin with, so that a changed file is refused; empty
            takes any.
        resize: Pixels a side to which images are resized bilinearly; 0 takes them as they are.
            `efficientnet_lite0` was trained at 224.
    """

    backbone: Backbone = "resnet20"
    root: str = ""
    file: str = ""
    sha256: str = ""
    resize: int = 0

    def __post_init__(self) -> None:
        if self.backbone not in _BACKBONES:
            raise ValueError(f"backbone must be one of {get_args(Backbone)}, not {self.backbone!r}")
        if self.resize < 0:
            raise ValueError(f"resize must be at least 0, not {self.resize}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Returns the network for (n, channels, height, width) images.

        Raises:
            ValueError: Images do not fit, or the file is missing, damaged or another network's.
        """
        kind = _BACKBONES[self.backbone]
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(
                f"frozen needs grey or colour images (channels, height, width), not inputs of "
                f"shape {shape}; try mlp"
            )
        height, width = (self.resize, self.resize) if self.resize else shape[1:]
        if min(height, width) < kind.LEAST:
            raise ValueError(
                f"images of {height}x{width} are too small for {self.backbone}: set model.resize "
                f"to {kind.LEAST} at least"
            )
        weights = read(locate(self.root, self.file or kind.FILE), self.sha256)
        network = nn.Sequential(_Prepare(self.resize, kind.MEAN, kind.STD), kind.network(weights))
        model = nn.Sequential()
        model.add_module("backbone", Frozen(network.to(torch.get_default_dtype())))
        model.add_module("head", nn.Linear(kind.WIDTH, classes))
        return model


class _Prepare(nn.Module):
    """Makes of images in [0, 1] what a backbone was trained on."""

    mean: Tensor
    std: Tensor

    def __init__(self, resize: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.resize = resize
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        if self.resize:
            size = (self.resize, self.resize)
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return (x.expand(-1, 3, -1, -1) - self.mean) / self.std
