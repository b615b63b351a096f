"""What a block of clients has learnt: parameters for each, and the sum of their changes at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedcl.core.client import Spent, Unchanged
from fedcl.core.params import Params

_SMALL = 2**18  # numbers that are added up at once


@dataclass(frozen=True)
class LowRank:
    """Weights of several clients as one matrix and a few outer products for each.

    Client k's weight is `scale[k] * start + left[k].T @ right[k]`, with a bias as the weight of a
    constant input 1. It is never written out where only the sum over clients is asked for.

    Attributes:
        scale: (clients,) factors of the start.
        left: (clients, visits, out) changes of the outputs, step after step.
        right: Inputs of each step, (clients at work, width, in): the first ones of all.
    """

    scale: Tensor
    left: Tensor
    right: tuple[Tensor, ...]

    def weight(self, k: int, start: Tensor) -> Tensor:
        """Returns client k's (out, in) weight."""
        own = start * self.scale[k]
        for left, right in self._steps():
            if k < len(right):
                own.addmm_(left[k].T, right[k])
        return own

    def bias(self, k: int, start: Tensor) -> Tensor:
        """Returns client k's (out,) bias."""
        return start * self.scale[k] + self.left[k].sum(0)

    def sums(self, start: Tensor, bias: Tensor | None, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weighted sums over clients of the changes of weight and bias, in float64.

        Args:
            start: (out, in) weight before training.
            bias: (out,) bias before training, or None.
            weights: (clients,) float64.
        """
        own = weights.to(self.left).view(-1, 1, 1)
        total = torch.zeros_like(start)
        for left, right in self._steps():
            weighed = left[: len(right)] * own[: len(right)]
            total.addmm_(weighed.flatten(0, 1).T, right.flatten(0, 1))
        moved = total.double()
        shrunk = float((weights * (self.scale.double() - 1.0)).sum())
        turned = (self.left * own).sum((0, 1)).double()
        if shrunk:
            moved += start.double() * shrunk
            turned += bias.double() * shrunk if bias is not None else 0.0
        return moved, turned

    def _steps(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = 0
        for right in self.right:
            yield self.left[:, first : first + right.shape[1]], right
            first += right.shape[1]


@dataclass(frozen=True)
class TrainedBlock:
    """A block of clients after local training.

    Attributes:
        start: Parameters before.
        stacked: (clients, ...) parameters after, by name, as the clients stand in `order`.
        low_rank: Weights in that form, by the name of the layer ("" for the model itself).
        order: Places in the block of the clients as they stand in the tensors.
        losses: Mean training loss of each client, in the block's order; NaN without steps.
        steps: Steps of each client.
        visits: Examples passed forward and backward by each client.
        padded: Rows computed and thrown away.
    """

    start: Params
    stacked: Mapping[str, Tensor]
    order: Sequence[int]
    losses: Sequence[float]
    steps: Sequence[int]
    visits: Sequence[int]
    padded: int = 0
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)

    def params(self, k: int) -> Params:
        """Returns the parameters of the k-th client of the block, each computed when looked at."""
        return _Own(self, list(self.order).index(k))

    def change_sums(self, weights: Sequence[float]) -> dict[str, Tensor]:
        """Returns the weighted sum over clients of parameters after minus before, in float64.

        Args:
            weights: A weight for each client, in the block's order.
        """
        own = torch.tensor([weights[k] for k in self.order], dtype=torch.float64)
        sums: dict[str, Tensor] = {}
        for name, start in self.start.items():
            layer = name.rpartition(".")[0]
            if name in sums:
                continue
            if layer in self.low_rank:
                at = f"{layer}.{{}}" if layer else "{}"
                bias = self.start.get(at.format("bias"))
                pair = self.low_rank[layer].sums(
                    self.start[at.format("weight")], bias, own.to(start.device)
                )
                sums[at.format("weight")] = pair[0]
                if bias is not None:
                    sums[at.format("bias")] = pair[1]
                continue
            sums[name] = _weighted(self.stacked[name], own) - start.double() * float(own.sum())
        return {name: sums[name] for name in self.start}


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted sum over the first dimension, in float64."""
    if values.numel() <= _SMALL:
        flat = weights.to(values.device) @ values.flatten(1).double()
        return flat.view(values.shape[1:])
    # A copy of all of them in float64 would leave the cache.
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value, weight in zip(values, weights.tolist(), strict=True):
        total.add_(value, alpha=weight)
    return total


class _Own(Mapping[str, Tensor]):
    """Parameters of one client of a block, by name."""

    def __init__(self, trained: TrainedBlock, place: int) -> None:
        self._trained, self._place, self._found = trained, place, {}  # type: ignore[var-annotated]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._found:
            self._found[name] = self._make(name)
        value: Tensor = self._found[name]
        return value

    def _make(self, name: str) -> Tensor:
        layer, _, kind = name.rpartition(".")
        start = self._trained.start[name]
        if layer in self._trained.low_rank:
            low = self._trained.low_rank[layer]
            return (
                low.weight(self._place, start) if kind == "weight" else low.bias(self._place, start)
            )
        # A copy: a view would keep, and carry to other processes, the whole block's parameters.
        return self._trained.stacked[name][self._place].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._trained.start)

    def __len__(self) -> int:
        return len(self._trained.start)


@dataclass(frozen=True)
class BlockReply:
    """What a block of clients answers before anything is summed: the trainer's side.

    Attributes:
        trained: The clients after training.
        weights: Weight of each reply.
        metrics: Metrics of each reply.
        states: Next memory of each client, or `Unchanged`.
        passes: Examples that each client passed besides those of its steps; empty for none.
        spent: What protects each client's records in its reply; empty where nothing does.
    """

    trained: TrainedBlock
    weights: Sequence[float]
    metrics: Sequence[Mapping[str, float]]
    states: Sequence[Any] = ()
    passes: Sequence[int] = ()
    spent: Sequence[Spent] = ()

    def examples(self, k: int) -> int:
        """Returns the examples that the k-th client passed through the network."""
        return self.trained.visits[k] + (self.passes[k] if self.passes else 0)

    def state(self, k: int) -> Any:
        """Returns the next memory of the k-th client."""
        return self.states[k] if self.states else Unchanged()
