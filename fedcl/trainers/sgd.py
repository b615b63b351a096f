"""Plain local SGD: `epochs` passes in batches, with optional momentum and weight decay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fedcl.core.block import Batching, Block
from fedcl.core.client import Client, Reply
from fedcl.core.data.augment import Augmentation, check_images
from fedcl.core.local import Local
from fedcl.core.sgd import Settings, Trained, train_one
from fedcl.core.trained import BlockReply
from fedcl.core.training.together import train_block

__all__ = ["Sgd"]


@dataclass(frozen=True)
class Sgd:
    """Trains each client by stochastic gradient descent from the received parameters.

    Attributes:
        epochs: Passes over the client's examples in a round.
        batch_size: Examples of a step.
        lr: Learning rate.
        momentum: Momentum, fresh in every round.
        weight_decay: L2 regularisation added to the gradient.
        steps: Stop after this many steps; 0 means all of every pass.
        view_batch: Views of an example in a batch of `batch_size / view_batch` examples; `epochs`
            count the passes through the network, so that a round of one epoch visits so much
            smaller a part of a client's examples (Kang et al., Do your best and get enough rest for
            continual learning, CVPR 2025, arXiv 2503.18371: their batches and rest; their loss
            between the views is not here). Without `augment` all views are the same.
        augment: Views of images: `none`, `crop` (padded and cropped at random) or `crop_flip`. What
            a method computes before training, such as a teacher's answers, sees the examples as
            they are.
        padding: Pixels of that padding on each side.
    """

    epochs: int = 1
    batch_size: int = 16
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    steps: int = 0
    view_batch: int = 1
    augment: Augmentation = "none"
    padding: int = 4

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "view_batch", "padding"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, not {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {self.momentum}")
        if self.batch_size % self.view_batch:
            raise ValueError(
                f"view_batch ({self.view_batch}) must divide batch_size ({self.batch_size})"
            )
        for name in ("weight_decay", "steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    @property
    def private(self) -> bool:
        """Plain SGD gives no example-level privacy."""
        return False

    @property
    def settings(self) -> Settings:
        """The settings of the training loops."""
        return Settings(
            self.epochs,
            self.batch_size,
            self.lr,
            self.momentum,
            self.weight_decay,
            self.steps or None,
            self.view_batch,
            self.augment,
            self.padding,
        )

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError when it cannot train on inputs of this shape (without the batch)."""
        check_images(self.augment, shape)

    def scaled(self, factor: float) -> Sgd:
        """Returns the trainer with its learning rate times `factor`."""
        return replace(self, lr=self.lr * factor)

    def __call__(self, local: Local) -> LocalSgd:
        """Returns the program that trains one client."""
        return LocalSgd(local, self.settings)

    def block(self, local: Local, block: Block, message: Any, batching: Batching) -> BlockReply:
        """Trains several clients as one batched computation."""
        return train_block(local, self.settings, block, message, batching)


@dataclass(frozen=True)
class LocalSgd:
    """The program of one client: train, remember, report."""

    local: Local
    settings: Settings

    def __call__(self, client: Client, message: Any) -> Reply:
        """Returns the reply of one client."""
        return _reply(
            self.local, client, message, train_one(self.local, self.settings, client, message)
        )


def _reply(local: Local, client: Client, message: Any, trained: Trained) -> Reply:
    return Reply(
        tensors=local.report(client, message, trained.params),
        weight=float(len(client.data)),
        metrics={"loss": trained.loss},
        state=local.keep(client, message, trained.params),
        steps=trained.steps,
        examples=trained.examples + local.passes(client, message),
    )
