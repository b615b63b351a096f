"""The reference work: what every engine is asked to do, so that client updates per second compare.

A client holds a few synthetic 28x28 images of 10 classes and trains one epoch of plain SGD from the
global model; a round is a cohort and its weighted mean. Needs PyTorch alone, so that it runs in the
environments of other simulators too.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE, CLASSES = (1, 28, 28), 10


@dataclass(frozen=True)
class Work:
    """One model and its local training.

    Attributes:
        examples: Examples of a client.
        batch_size: Examples of a step.
        lr: Learning rate.
        flops: Floating-point operations of one client's update in matrix products and convolutions:
            forward, gradients of weights, and gradients of inputs where they are needed; 0 where
            nobody asks.
    """

    examples: int = 50
    batch_size: int = 10
    lr: float = 0.05
    flops: float = 0.0


# `mlp_dropout` is FOT's Permuted-MNIST network with the share of one of its 125 clients.
WORKS = {
    "mlp": Work(flops=50 * 2 * (784 * 128 * 2 + 128 * 10 * 3)),
    "cnn": Work(
        flops=50 * 2 * (784 * 25 * 8 * 2 + 196 * 25 * 8 * 16 * 3 + 16 * 49 * 10 * 3),
    ),
    "mlp_dropout": Work(examples=480, batch_size=64, lr=0.01),
}


def make_model(name: str, seed: int = 0) -> nn.Module:
    """Returns a freshly initialised network.

    Args:
        name: `mlp` is 784-128-10 (101,770 parameters), `cnn` two 5x5 convolutions of 8 and 16
            channels with max-pooling and a linear head (11,274), `mlp_dropout` 784-400-400-400-10.
        seed: Seed of the initialisation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "cnn":
            return make_cnn()
        if name == "mlp":
            return nn.Sequential(
                nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, CLASSES)
            )
        layers: list[nn.Module] = [nn.Flatten()]
        for width, rate in ((784, 0.2), (400, 0.5), (400, 0.5)):
            layers += [nn.Linear(width, 400), nn.ReLU(), nn.Dropout(rate)]
        return nn.Sequential(*layers, nn.Linear(400, CLASSES))


def make_cnn() -> nn.Module:
    """Returns the small convolutional network, initialised from the global generator."""
    layers = {
        "conv1": nn.Conv2d(1, 8, 5, padding=2),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(8, 16, 5, padding=2),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "head": nn.Linear(16 * 49, CLASSES),
    }
    return nn.Sequential(OrderedDict(layers))


def client_data(client: int, examples: int) -> tuple[Tensor, Tensor]:
    """Returns (examples, 1, 28, 28) float32 inputs and (examples,) labels, alike at every call."""
    generator = torch.Generator().manual_seed(1000 + client)
    y = torch.randint(0, CLASSES, (examples,), generator=generator)
    x = torch.randn(examples, *SHAPE, generator=generator) * 0.5
    x[torch.arange(examples), 0, y * 2, :] += 1.0
    return x, y


def train(model: nn.Module, x: Tensor, y: Tensor, work: Work) -> None:
    """Trains one epoch in the given order: the slow, obvious way."""
    optimizer = torch.optim.SGD(model.parameters(), lr=work.lr)
    for start in range(0, len(x), work.batch_size):
        rows = slice(start, start + work.batch_size)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
