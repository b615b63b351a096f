"""Gradient inversion: labels and images from the gradient that each of them gave.

Whoever has the gradient of one example's cross-entropy, and the network's weights, has the example.
Its label is the one class at which the last bias has a negative gradient, softmax minus one-hot
(Zhao, Mopuri and Bilen, iDLG, 2020, arXiv 2001.02610). Its image is sought by L-BFGS as the one
whose gradient is nearest (Zhu, Liu and Han, Deep leakage from gradients, NeurIPS 2019), which takes
a network that can be differentiated twice: its activations must be smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from fedcl.core.params import Params
from fedcl.core.seeds import torch_generator

Logits = Callable[[Params, Tensor], Tensor]

TOGETHER = 16  # images that are sought together
HISTORY = 100  # steps that L-BFGS remembers


@dataclass(frozen=True)
class Encoder:
    """A LeNet for images of any size, whose gradients stand for them; its weights are random.

    Three convolutions of 5 x 5 with 12 channels, the first two at stride 2, each with a sigmoid,
    and a linear layer. Published weights (in Zhu et al.'s code) lie in [-0.5, 0.5]. These lie in
    [-0.1, 0.1], the last layer's in 3 / sqrt(inputs) of 0: sigmoids are nearly linear then, so that
    images come back in a fraction of the steps.

    Attributes:
        shape: Channels, height and width of an image.
        classes: Classes of its logits.
        seed: Decides the weights: who knows it need not be sent any.

    Raises:
        ValueError: The shape is no image's.
    """

    shape: tuple[int, ...]
    classes: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"{self.shape} is no image's channels, height and width")

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the weights by name."""
        channels, height, width = self.shape
        places = -(-height // 4) * -(-width // 4)
        found: dict[str, tuple[int, ...]] = {}
        for name, inputs in (("conv1", channels), ("conv2", 12), ("conv3", 12)):
            found |= {f"{name}.weight": (12, inputs, 5, 5), f"{name}.bias": (12,)}
        return found | {"head.weight": (self.classes, 12 * places), "head.bias": (self.classes,)}

    def params(self, like: Tensor) -> dict[str, Tensor]:
        """Returns the weights, in the type and on the device of a tensor."""
        generator = torch_generator(self.seed, "encoder")
        wide = self.sizes["head.weight"][1]
        found: dict[str, Tensor] = {}
        for name, size in self.sizes.items():
            bound = 3.0 * wide**-0.5 if name.startswith("head") else 0.1
            drawn = torch.rand(size, generator=generator, dtype=torch.float64)
            found[name] = (2.0 * bound * (drawn - 0.5)).to(like)
        return found

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        """Returns the (n, classes) logits of (n, channels, height, width) images."""
        for name, stride in (("conv1", 2), ("conv2", 2), ("conv3", 1)):
            weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
            x = F.conv2d(x, weight, bias, stride=stride, padding=2).sigmoid()
        return F.linear(x.flatten(1), params["head.weight"], params["head.bias"])


def numbers(pixels: int, classes: int) -> int:
    """Returns how many weights an `Encoder` has, about at most: of square images in few channels.

    Args:
        pixels: Numbers of an image.
        classes: Classes of its logits.
    """
    convolutions = 12 * (3 * 25 + 1) + 2 * 12 * (12 * 25 + 1)
    return convolutions + classes * (12 * math.ceil(math.sqrt(pixels) / 4 + 1) ** 2 + 1)


def own_gradients(logits: Logits, params: Params, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Returns each example's own gradient of the cross-entropy, (n, ...) by name.

    Args:
        logits: `logits(params, x)` -> (n, classes).
        params: Where to take the gradients.
        x: (n, ...) inputs; the result can be differentiated by them.
        y: (n,) labels.
    """

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits(params, x[None]), y[None])

    if not len(x):
        return {name: value.new_zeros((0, *value.shape)) for name, value in params.items()}
    return vmap(grad(loss), in_dims=(None, 0, 0))(dict(params), x, y)  # type: ignore[no-any-return]


def labels_of(bias: Tensor) -> Tensor:
    """Returns the (n,) int64 labels of single examples, -1 where the gradient does not say.

    That is where no entry is negative: there was no example, or the softmax of its class was 1.

    Args:
        bias: (n, classes) gradients of the cross-entropy for the last layer's bias.
    """
    least = bias.min(1)
    return torch.where(least.values < 0, least.indices, -1)


def mismatch(found: Params, wanted: Params) -> Tensor:
    """Returns the (n,) squared distances of two rows of gradients, in those of `wanted` from 0."""
    far = [(found[name] - value).square()[..., None].flatten(1) for name, value in wanted.items()]
    size = [value.square()[..., None].flatten(1) for value in wanted.values()]
    return torch.cat(far, 1).sum(1) / torch.cat(size, 1).sum(1)


def invert(
    logits: Logits,
    params: Params,
    wanted: Params,
    y: Tensor,
    start: Tensor,
    iterations: int,
    tolerance: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Returns the (n, ...) images of gradients nearest to those wanted, and their (n,) mismatches.

    Some images are sought together, by L-BFGS on the sum of their mismatches, each in those of the
    start. An image whose search breaks down stays what it was then.

    Args:
        logits: `logits(params, x)` -> (n, classes), smooth in x.
        params: Where the gradients were taken.
        wanted: (n, ...) gradients by name, none of them 0.
        y: (n,) their labels.
        start: (n, ...) images to start from.
        iterations: Evaluations of the gradients, at most.
        tolerance: A search ends where a step changes that sum by less.
    """
    images, left = [start[:0]], [start.new_zeros(0)]
    for rows in torch.arange(len(start), device=start.device).split(TOGETHER):
        part = {name: value[rows] for name, value in wanted.items()}
        far = partial(_far, logits, params, part, y[rows])
        images.append(_search(far, start[rows], iterations, tolerance))
        left.append(far(images[-1]).detach())
    return torch.cat(images), torch.cat(left)


def _far(logits: Logits, params: Params, wanted: Params, y: Tensor, x: Tensor) -> Tensor:
    return mismatch(own_gradients(logits, params, x, y), wanted)


def _search(
    far: Callable[[Tensor], Tensor], start: Tensor, iterations: int, tolerance: float
) -> Tensor:
    if not iterations or not len(start):
        return start
    images = start.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [images],
        max_iter=iterations,
        max_eval=iterations,
        history_size=HISTORY,
        tolerance_grad=0.0,
        tolerance_change=tolerance,
        line_search_fn="strong_wolfe",
    )
    # Small from the start where the last layer's part does not depend on the image.
    first = far(start).detach().clamp(min=torch.finfo(start.dtype).tiny)

    def objective() -> Tensor:
        loss = (far(images) / first).sum()
        (images.grad,) = torch.autograd.grad(loss, [images])
        return loss.detach()

    with torch.enable_grad():
        optimizer.step(objective)
    found = images.detach()
    fine = found.isfinite().flatten(1).all(1)
    return torch.where(fine.view(-1, *[1] * (found.dim() - 1)), found, start)
