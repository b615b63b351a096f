"""Local training described by its parts, so that an engine may run one client or a block."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.block import Batching, Block
from fedcl.core.client import Client, Program
from fedcl.core.model import Net
from fedcl.core.params import Params, subtract
from fedcl.core.task import ClientTask, Examples
from fedcl.core.trained import BlockReply

Loss = Callable[[Net, Examples, ClientTask, Any], Tensor]
Penalty = Callable[[Params, Any], Tensor]
Project = Callable[[Params, Any], Params]


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy over the head of the scenario, one value per example.

    Attributes:
        rowwise: The masks of a task may come one for each row; see `fedcl.core.training.fused`.
        heeds_message: It does not look at what the client received; see
            `fedcl.core.training.jointly`.
        masked: Compare only the classes of the client's present task. It moves published
            class-incremental results by many points, so it is a named switch.
    """

    rowwise: ClassVar[bool] = True
    heeds_message: ClassVar[bool] = False

    masked: bool = False

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: object) -> Tensor:
        """Returns (n,) losses."""
        allowed = task.present if self.masked else task.head
        return F.cross_entropy(masked_logits(net(batch.x), allowed), batch.y, reduction="none")


cross_entropy = CrossEntropy()


def masked_logits(logits: Tensor, allowed: Tensor) -> Tensor:
    """Returns logits with a very low value where a class is not allowed.

    The value is finite so that an example of a class that is not allowed has a finite loss and
    gradient.
    """
    return logits.masked_fill(~allowed, -1e9)


@dataclass(frozen=True)
class Proximal:
    """Half of `strength` times the squared distance to the received parameters (FedProx).

    Attributes:
        strength: The factor mu.
    """

    strength: float

    def __call__(self, params: Params, message: Any) -> Tensor:
        """Returns a scalar that touches no data."""
        squares = [(params[k] - v).square().sum() for k, v in message.params.items()]
        return 0.5 * self.strength * torch.stack(squares).sum()


def check_losses(losses: Tensor, rows: int) -> None:
    """Raises ValueError when a loss did not return one value for each example."""
    if losses.shape != (rows,):
        raise ValueError(
            f"the loss returned shape {tuple(losses.shape)} for {rows} examples: return one value "
            "for each example"
        )


def own_data(client: Client, message: object) -> Examples:
    """Trains on the client's own examples of the present stage."""
    return client.data


def own_state(client: Client, message: object, params: Params) -> Any:
    """Keeps the client's memory as it was."""
    return client.state


def no_passes(client: Client, message: object) -> int:
    """Looks at no example besides those of the training steps."""
    return 0


def change(client: Client, message: Any, params: Params) -> dict[str, Tensor]:
    """Reports the local parameters minus the received ones: add it to improve."""
    return subtract(params, message.params)


@dataclass(frozen=True)
class Local:
    """One exchange of standard local training: the parts that a method may choose.

    Attributes:
        loss: `loss(net, batch, task, message)` -> (n,) losses, each independent of the other
            examples.
        penalty: `penalty(params, message)` -> a scalar that touches no data, or None.
        data: `data(client, message)` -> the examples to train on.
        keep: `keep(client, message, params)` -> the client's next memory.
        report: `report(client, message, params)` -> the tensors that go up.
        project: `project(gradients, message)` -> the gradients that each step follows, by the same
            names, in the same shapes and types; a function of tensors that touches no data, or
            None. It gets the gradient with weight decay, before momentum.
        name: Name of the program in records and errors.
        passes: `passes(client, message)` -> the examples that `data`, `keep` and `report` pass
            through the network besides those of the steps, for the costs.
    """

    loss: Loss
    penalty: Penalty | None = None
    data: Callable[[Client, Any], Examples] = own_data
    keep: Callable[[Client, Any, Params], Any] = own_state
    report: Callable[[Client, Any, Params], Params] = change
    project: Project | None = None
    name: str = "train"
    passes: Callable[[Client, Any], int] = no_passes

    @property
    def key(self) -> Hashable:
        """Stands for the program where it is looked up; a loss with a list in it has no hash."""
        try:
            hash(self)
        except TypeError:
            return repr(self)
        return self


class Trainer(Protocol):
    """How one client trains: what a file in `trainers/` offers."""

    @property
    def private(self) -> bool:
        """Whether its replies satisfy example-level differential privacy."""
        ...

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError when it cannot train on inputs of this shape (without the batch)."""
        ...

    def scaled(self, factor: float) -> Trainer:
        """Returns the trainer with its learning rate times a schedule's factor."""
        ...

    def __call__(self, local: Local) -> Program[Any]:
        """Returns the program that trains one client."""
        ...

    def block(self, local: Local, block: Block, message: Any, batching: Batching) -> BlockReply:
        """Trains several clients as one batched computation."""
        ...
