"""Training without data: a generator learns on the server what a fixed teacher network knows.

What the data-free methods of this field share. The generator's images shall (DAFL, Chen et al.,
ICCV 2019; DeepInversion, Yin et al., CVPR 2020; TARGET, Zhang et al., ICCV 2023)

- be of the classes that were asked for, as the teacher sees it;
- be where a student does not yet follow the teacher;
- give the teacher's layers the statistics of real data.

`fedcl.core.generative.objective` holds the losses. For the third the papers take the running means
and variances of the teacher's BatchNorm layers. A network with GroupNorm has none. Here clients
measure them, once a stage, as a secure sum: for every convolution and linear layer the mean and the
mean square of each of its input channels, over examples and places (`ChannelMoments`). These are
the same numbers as BatchNorm's at its output, up to its affine map and ReLU. Of the network's input
they are taken pixel by pixel, which also gives the generator its range. What that reveals: means
over all examples of the clients that answered, among them the mean image and the standard deviation
of each pixel; of no class by itself and, under secure aggregation, of no client, but if one client
with one example answers, that example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedcl.core.features.layers import protected_layers
from fedcl.core.generative.generator import Generator, balanced
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.seeds import seed_of
from fedcl.core.task import ClientTask, Examples

INPUT = "moments/input"

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Look:
    """What a network makes of inputs; all of it carries gradients.

    Attributes:
        logits: (n, classes).
        features: (n, d) what the last layer, `head`, gets; (n, 0) without such a layer.
        sums: Sums over examples of means and mean squares, by name of the layer's weight
            `moments/<weight>` (2, channels), means over places; `moments/input` is (2, ...), pixel
            by pixel. The layer that gets the network's input itself is left out: the pixels say it
            all.
    """

    logits: Tensor
    features: Tensor
    sums: dict[str, Tensor]


def look(net: Net, x: Tensor) -> Look:
    """Returns what a network makes of (n, ...) inputs."""
    found = {INPUT: torch.stack([x.sum(0), x.square().sum(0)])}
    flat, handles, features = x.flatten(1), [], [x.new_zeros(len(x), 0)]
    for name, layer in protected_layers(net.model).items():

        def keep(_: object, inputs: tuple[Tensor, ...], name: str = name) -> None:
            rows = inputs[0]
            if name == "head.weight":
                features[0] = rows.flatten(1)
            if rows.numel() == x.numel() and torch.equal(rows.flatten(1), flat):
                return
            # (n, channels, places): of images the second place is the channel, else the last.
            maps = rows.flatten(2) if rows.dim() == 4 else rows.reshape(len(x), -1, rows.shape[-1])
            mean = (2,) if rows.dim() == 4 else (1,)
            sums = torch.stack([maps.mean(mean).sum(0), maps.square().mean(mean).sum(0)])
            found[f"moments/{name}"] = sums  # of its last use, where a layer is used twice

        handles.append(layer.register_forward_pre_hook(keep))
    try:
        return Look(net(x), features[0], found)
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class ChannelMoments:
    """Sums of `Look` and `count/examples`, as a `Statistic` measures them."""

    @torch.no_grad()
    def __call__(self, net: Net, rows: Examples, task: ClientTask, message: Any) -> Params:
        """Returns the sums over rows, in float64."""
        sums = look(net, rows.x).sums
        count = torch.tensor(float(len(rows)), dtype=torch.float64, device=rows.x.device)
        return {name: value.double() for name, value in sums.items()} | {"count/examples": count}


@torch.no_grad()
def moments_of(net: Net, images: Tensor) -> dict[str, Tensor]:
    """Returns the means over images of what `ChannelMoments` sums, in float64."""
    parts = [look(net, x).sums for x in images.split(128)]
    return {k: torch.stack([p[k].double() for p in parts]).sum(0) / len(images) for k in parts[0]}


def means(sums: Params) -> dict[str, Tensor]:
    """Returns sums of `ChannelMoments` divided by their number of examples, which may be noisy."""
    count = sums["count/examples"].double().clamp(min=1.0)
    return {k: v.double() / count for k, v in sums.items() if k.startswith("moments/")}


def mixed(parts: Sequence[tuple[float, Params]]) -> dict[str, Tensor]:
    """Returns the means of a union, from (number of examples, means) of its parts."""
    total = sum(count for count, _ in parts)
    shares = [(count / total, part) for count, part in parts]
    return {k: torch.stack([w * part[k] for w, part in shares]).sum(0) for k in parts[0][1]}


def spread_of(moments: Tensor) -> Tensor:
    """Returns the standard deviations that (2, ...) means and mean squares have."""
    return (moments[1] - moments[0].square()).clamp(min=0).sqrt()


# --- Training. ---


class Training:
    """A generator in training by Adam: each step on fresh noise and balanced labels."""

    def __init__(
        self,
        generator: Generator,
        params: Params,
        classes: Sequence[int],
        batch: int,
        lr: float,
        seed: int,
        frozen: Sequence[str] = (),
    ) -> None:
        """Starts from `params`, of which the frozen ones stay as they are.

        Draws are functions of the seed and the number of the step.
        """
        self.generator, self.classes, self.batch, self.seed = generator, classes, batch, seed
        self._own = {k: v.detach().clone() for k, v in params.items()}
        fixed = {*generator.fixed, *frozen}
        self._leaves = [v.requires_grad_() for k, v in self._own.items() if k not in fixed]
        self._adam = torch.optim.Adam(self._leaves, lr=lr, betas=(0.5, 0.999))
        self._done = 0

    @property
    def params(self) -> Params:
        """The generator's parameters as they are now, which the next step changes in place."""
        return {k: v.detach() for k, v in self._own.items()}

    def descend(self, steps: int, objective: Loss) -> None:
        """Takes steps down `objective(images, labels)`, a scalar."""
        for _ in range(steps):
            at = (self.seed, "step", self._done)
            labels = balanced(self.classes, self.batch, *at, "labels")
            labels = labels.to(self._leaves[0].device)
            with torch.enable_grad():
                value = objective(self.generator.draw(self._own, labels, *at), labels)
            for leaf, gradient in zip(
                self._leaves, torch.autograd.grad(value, self._leaves), strict=True
            ):
                leaf.grad = gradient
            self._adam.step()
            self._done += 1

    def sample(self, n: int, *position: int | str) -> Examples:
        """Returns n images of the generator as it is now."""
        seed = seed_of(self.seed, "sample", *position)
        return self.generator.sample(self.params, self.classes, n, seed)
