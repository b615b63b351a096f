"""Example-level private SGD of each client: clipped gradients, random batches, Gaussian noise.

DP-SGD (Abadi et al., Deep learning with differential privacy, CCS 2016, arXiv 1607.00133), run by
every client on its own examples, with noise of its own: nobody but the client is trusted with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fedcl.core.block import Batching, Block
from fedcl.core.client import Client, Reply, Spent
from fedcl.core.local import Local
from fedcl.core.privacy.block import train_private_block
from fedcl.core.privacy.draws import PrivateSettings
from fedcl.core.privacy.examples import ExampleMechanism, check_local
from fedcl.core.privacy.sgd import train_private
from fedcl.core.trained import BlockReply

__all__ = ["DpSgd"]


@dataclass(frozen=True)
class DpSgd:
    """Trains each client by SGD that hides every single one of its examples.

    Attributes:
        clip: The largest norm of one example's gradient over all parameters.
        noise_multiplier: Standard deviation of the noise of a step over `clip`; of a statistic over
            its own bound. 0 protects nothing.
        batch_size: Examples of a step on average: each is in by a coin of its own.
        epochs: Passes over the client's examples on average.
        lr: Learning rate.
        momentum: Momentum, fresh in every round.
        weight_decay: L2 regularisation added to the gradient.
        delta: The delta for which epsilon is told: well below 1 / examples of a client.
        budget: Largest epsilon that may be spent; 0 for no limit.
        noise: `secret` draws noise and batches from the operating system's randomness; `seeded`
            from the experiment's seed, which anybody can repeat: no epsilon is told then.
        clips: The largest norm of one example's part in a statistic, by the program's name.
    """

    clip: float = 1.0
    noise_multiplier: float = 1.0
    batch_size: int = 16
    epochs: int = 1
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    delta: float = 1e-5
    budget: float = 0.0
    noise: Literal["secret", "seeded"] = "secret"
    clips: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, not {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {self.momentum}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, not {self.weight_decay}")
        _ = self.protection

    @property
    def private(self) -> bool:
        """Its replies satisfy example-level differential privacy."""
        return True

    @property
    def protection(self) -> ExampleMechanism:
        """What it promises to every example.

        Raises:
            ValueError: One of the numbers makes no sense.
        """
        return ExampleMechanism(
            self.noise_multiplier,
            self.clip,
            self.clips,
            self.delta,
            self.budget,
            self.noise == "seeded",
        )

    @property
    def settings(self) -> PrivateSettings:
        """The settings of the training loops."""
        return PrivateSettings(
            self.clip,
            self.noise_multiplier,
            self.batch_size,
            self.epochs,
            self.lr,
            self.momentum,
            self.weight_decay,
        )

    def check(self, shape: tuple[int, ...]) -> None:
        """Can train on inputs of any shape."""

    def scaled(self, factor: float) -> DpSgd:
        """Returns the trainer with its learning rate times `factor`."""
        return replace(self, lr=self.lr * factor)

    def spends(self, local: Local, least: int, most: int) -> Spent:
        """Returns what a client spends of each of its examples with its answer, at most.

        Args:
            local: The parts of local training.
            least: Fewest examples that it trains on.
            most: Most of them.
        """
        return replace(self.settings.spent(local, least), steps=self.settings.steps(most))

    def __call__(self, local: Local) -> LocalDpSgd:
        """Returns the program that trains one client.

        Raises:
            ExposureError: These parts of training cannot protect single examples.
        """
        check_local(local)
        return LocalDpSgd(local, self.settings)

    def block(self, local: Local, block: Block, message: Any, batching: Batching) -> BlockReply:
        """Trains several clients as one batched computation.

        Raises:
            ExposureError: These parts of training cannot protect single examples.
        """
        check_local(local)
        return train_private_block(local, self.settings, block, message, batching)


@dataclass(frozen=True)
class LocalDpSgd:
    """The program of one client: train in private, remember, report the change alone."""

    local: Local
    settings: PrivateSettings

    def __call__(self, client: Client, message: Any) -> Reply:
        """Returns the reply of one client; a loss is a function of data and is not told."""
        trained = train_private(self.local, self.settings, client, message)
        return Reply(
            tensors=self.local.report(client, message, trained.params),
            weight=float(len(client.data)),
            state=self.local.keep(client, message, trained.params),
            steps=self.settings.steps(trained.rows),
            examples=self.settings.visits(trained.rows) + self.local.passes(client, message),
            spent=self.settings.spent(self.local, trained.rows),
        )
