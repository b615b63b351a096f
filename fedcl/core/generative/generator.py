"""A generator: a small convolutional network that draws images of classes that are asked for.

Generative replay trains one on the server. Its parameters are a plain mapping of tensors, so that
they fit states and messages. It mixes no examples: GroupNorm stands where papers have BatchNorm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.params import Params
from fedcl.core.seeds import torch_generator
from fedcl.core.task import Examples

ROWS = 128  # images that are drawn together
EMBEDDING = "embedding.weight"


@dataclass(frozen=True)
class Generator:
    """An architecture from noise and labels to images, for any size of image.

    Noise and the embedding of the label, side by side, give 2 * width maps of a quarter of the
    image's height and width; two times they are normalised, enlarged to the next size (nearest
    neighbour; a half of the image, then all of it) and convolved, and a third convolution gives the
    raw image r. What comes out is, pixel by pixel,

        mean + reach * spread * tanh(r / reach) ,

    with mean and spread (`range.*` of the parameters, which training leaves as they are) in the
    data's own units, as images are after the data set's normalisation: r counts spreads from the
    mean, no pixel is further than `reach` of them, and one without a spread is constant.

    Attributes:
        shape: Channels, height and width of an image.
        classes: Labels that it knows.
        noise: Numbers of noise, and of a label's embedding.
        width: Channels before the last convolution.
        reach: Bound of a pixel's distance from its mean, in spreads.
    """

    fixed: ClassVar[tuple[str, ...]] = ("range.mean", "range.spread")

    shape: tuple[int, int, int]
    classes: int
    noise: int = 64
    width: int = 16
    reach: float = 4.0

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(
                f"a generator makes images (channels, height, width), not inputs of shape "
                f"{tuple(self.shape)}"
            )
        if min(self.classes, self.noise, self.width) < 1 or not self.reach > 0:
            raise ValueError("classes, noise and width must be at least 1 and reach above 0")

    @property
    def size(self) -> int:
        """Numbers in its parameters."""
        channels, height, width = self.shape
        maps, places = 2 * self.width, _quarter(height) * _quarter(width)
        convolutions = 9 * maps * maps + maps + 9 * maps * self.width + self.width
        norms = 2 * (maps + maps + self.width)
        first = (2 * self.noise + 1) * maps * places + self.classes * self.noise
        last = 9 * self.width * channels + channels
        return first + convolutions + norms + last + 2 * math.prod(self.shape)

    def init(self, seed: int, mean: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """Returns fresh parameters, on the device and in the type of `mean`.

        Args:
            seed: Seed of the weights.
            mean: What broadcasts to an image: where its range has its middle.
            spread: Likewise, at least 0: standard deviations of the data.
        """
        channels, height, width = self.shape
        maps = 2 * self.width
        generator = torch_generator(seed, "generator")

        def normal(*shape: int, inputs: int = 1, gain: float = 1.0) -> Tensor:
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            return (drawn * gain / math.sqrt(inputs)).to(mean)

        places = _quarter(height) * _quarter(width)
        he = math.sqrt(2.0)  # ReLU halves what goes through
        params = {
            EMBEDDING: normal(self.classes, self.noise),
            "grow.weight": normal(maps * places, 2 * self.noise, inputs=2 * self.noise),
            "grow.bias": mean.new_zeros(maps * places),
        }
        for index, (before, after) in enumerate(((maps, maps), (maps, self.width)), start=1):
            params[f"norm{index}.weight"] = mean.new_ones(before)
            params[f"norm{index}.bias"] = mean.new_zeros(before)
            weight = normal(after, before, 3, 3, inputs=9 * before, gain=he)
            params[f"conv{index}.weight"] = weight
            params[f"conv{index}.bias"] = mean.new_zeros(after)
        params["norm3.weight"] = mean.new_ones(self.width)
        params["norm3.bias"] = mean.new_zeros(self.width)
        last = normal(channels, self.width, 3, 3, inputs=9 * self.width, gain=he)
        params["conv3.weight"] = last
        params["conv3.bias"] = mean.new_zeros(channels)
        for name, value in (("range.mean", mean), ("range.spread", spread.to(mean))):
            params[name] = value.detach().expand(self.shape).clone()
        return params

    def __call__(self, params: Params, noise: Tensor, labels: Tensor) -> Tensor:
        """Returns (n, channels, height, width) images, each of its own noise and label alone.

        Args:
            params: Its parameters.
            noise: (n, noise) normal numbers.
            labels: (n,) int64.
        """
        _, height, width = self.shape
        x = torch.cat([noise, params[EMBEDDING][labels]], dim=1)
        x = F.linear(x, params["grow.weight"], params["grow.bias"])
        x = x.unflatten(1, (2 * self.width, _quarter(height), _quarter(width)))
        for index, size in ((1, (_half(height), _half(width))), (2, (height, width))):
            x = F.interpolate(_normalised(params, index, x), size=size, mode="nearest")
            x = F.conv2d(x, params[f"conv{index}.weight"], params[f"conv{index}.bias"], padding=1)
        x = _normalised(params, 3, x)
        raw = F.conv2d(x, params["conv3.weight"], params["conv3.bias"], padding=1)
        reached = self.reach * torch.tanh(raw / self.reach)
        return params["range.mean"] + params["range.spread"] * reached

    def draw(self, params: Params, labels: Tensor, *position: int | str) -> Tensor:
        """Returns images of these (n,) labels, with noise that the position gives."""
        like = params["range.mean"]
        noise = noise_of(self, len(labels), *position).to(like)
        return self(params, noise, labels.to(like.device))

    @torch.no_grad()
    def sample(self, params: Params, classes: Sequence[int], n: int, seed: int) -> Examples:
        """Returns n images of the given classes, equally many of each or one more."""
        labels = balanced(classes, n, seed, "labels").to(params["range.mean"].device)
        parts = [self.draw(params, y, seed, "part", k) for k, y in enumerate(labels.split(ROWS))]
        return Examples(torch.cat(parts), labels)


def noise_of(generator: Generator, n: int, *position: int | str) -> Tensor:
    """Returns (n, noise) normal numbers in float32: the same on every device, in every type."""
    return torch.randn((n, generator.noise), generator=torch_generator(*position, "noise"))


def balanced(classes: Sequence[int], n: int, *position: int | str) -> Tensor:
    """Returns (n,) int64 labels in random order, equally many of each class or one more."""
    if not classes:
        raise ValueError("there is no class to draw images of")
    source = torch_generator(*position)
    rounds = -(-n // len(classes))
    order = [torch.randperm(len(classes), generator=source) for _ in range(rounds)]
    places = torch.cat(order)[:n] if order else torch.zeros(0, dtype=torch.int64)
    return torch.tensor(list(classes), dtype=torch.int64)[places]


def _normalised(params: Params, index: int, x: Tensor) -> Tensor:
    channels = x.shape[1]
    weight, bias = params[f"norm{index}.weight"], params[f"norm{index}.bias"]
    # As many groups as papers' channels allow, at most 8, and some channels in each.
    return F.leaky_relu(F.group_norm(x, math.gcd(8, max(1, channels // 2)), weight, bias), 0.2)


def _half(size: int) -> int:
    return -(-size // 2)


def _quarter(size: int) -> int:
    return _half(_half(size))
