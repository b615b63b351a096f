"""What gradients and updates give away of the examples that made them.

Reconstructed images show that a payload is no secret; that none comes back shows nothing: images
stop coming back at an amount of noise that is no privacy at all, and labels leak on long after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedcl.core.seeds import torch_generator

Loss = Callable[[Sequence[Tensor], Tensor], Tensor]


def linear_input(weight: Tensor, bias: Tensor) -> Tensor:
    """Returns the input of a linear layer that made a gradient, if it was one input alone.

    Each output's gradient of the weights is the input times that of the bias; this is the least
    squares solution over all outputs (Phong et al., 2017; Geiping et al., 2020). A change of one
    step of gradient descent serves as well as a gradient. Of several inputs it is a mixture.

    Args:
        weight: (outputs, inputs) gradient of the weights.
        bias: (outputs,) gradient of the bias.

    Returns:
        (inputs,) in float64; zeros if no output has a gradient.
    """
    by, rows = bias.detach().double(), weight.detach().double()
    squares = by.square().sum()
    return by @ rows / torch.where(squares > 0, squares, 1.0)


def neuron_inputs(weight: Tensor, bias: Tensor) -> Tensor:
    """Returns what each output of a linear layer says its input was; zeros where it is silent.

    Of a batch, an output that only one example reached gives that example.

    Args:
        weight: (outputs, inputs) gradient of the weights.
        bias: (outputs,) gradient of the bias.

    Returns:
        (outputs, inputs) in float64.
    """
    by, rows = bias.detach().double()[:, None], weight.detach().double()
    return torch.where(by != 0, rows / torch.where(by != 0, by, 1.0), 0.0)


def single_label(bias: Tensor) -> int:
    """Returns the class of a single example, from the gradient of the last layer's bias.

    Softmax minus one-hot is negative at the label alone (Zhao, Mopuri and Bilen, iDLG, 2020).

    Args:
        bias: (classes,) gradient of the cross-entropy.
    """
    return int(bias.argmin())


def class_set(change: Tensor) -> frozenset[int]:
    """Returns the classes that local training saw: those whose bias in the last layer grew.

    Args:
        change: (classes,) how training changed the bias; minus the gradient does as well.
    """
    return frozenset(int(label) for label in (change > 0).nonzero().flatten())


def f1(found: frozenset[int], present: frozenset[int]) -> float:
    """Returns the harmonic mean of precision and recall of a set, 1 where both are empty."""
    size = len(found) + len(present)
    return 2.0 * len(found & present) / size if size else 1.0


def inverted(
    loss: Loss,
    params: Sequence[Tensor],
    gradient: Sequence[Tensor],
    shape: tuple[int, ...],
    seed: int,
    iterations: int = 1000,
    rate: float = 0.1,
    smoothness: float = 0.2,
) -> Tensor:
    """Returns the images in [0, 1] whose gradient points where the one given does.

    Adam on the signs of the gradient of `1 - cosine + smoothness * total variation`, its rate a
    tenth after 3/8, 5/8 and 7/8 of the iterations (Geiping et al., Inverting gradients, 2020).

    Args:
        loss: `loss(params, images)`, with the labels known, differentiable twice.
        params: Where the gradient was taken.
        gradient: Of the same shapes.
        shape: Of the images, (n, channels, height, width).
        seed: Decides the images to start from.
        iterations: Steps.
        rate: Of the first steps.
        smoothness: Weight of the mean absolute difference of neighbouring pixels.
    """
    leaves = [value.detach().requires_grad_() for value in params]
    wanted = torch.cat([value.detach().flatten() for value in gradient])
    generator = torch_generator(seed, "inverted")
    start = torch.rand(shape, generator=generator, dtype=torch.float64).to(wanted)
    images = start.requires_grad_()
    optimizer = torch.optim.Adam([images], lr=rate)
    drops = [iterations * part // 8 for part in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
    with torch.enable_grad():
        for _ in range(iterations):
            own = torch.autograd.grad(loss(leaves, images), leaves, create_graph=True)
            flat = torch.cat([value.flatten() for value in own])
            apart = 1.0 - torch.cosine_similarity(flat, wanted, dim=0)
            (slope,) = torch.autograd.grad(apart + smoothness * _variation(images), [images])
            images.grad = slope.sign()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                images.clamp_(0.0, 1.0)
    return images.detach()


def _variation(images: Tensor) -> Tensor:
    """Returns the mean absolute differences of neighbours down and across, 0 where none are."""
    down, across = images.diff(dim=-2).abs(), images.diff(dim=-1).abs()
    return down.sum() / max(1, down.numel()) + across.sum() / max(1, across.numel())
