"""What attackers learn instead of what they hold: other labels, or a trigger with its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from fedcl.core.attacks.adversary import Adversary
from fedcl.core.data.dataset import Dataset
from fedcl.core.errors import ConfigError
from fedcl.core.seeds import numpy_generator
from fedcl.core.task import Examples

_LOOKED_AT = 1000  # training inputs among which the largest value is looked for


@dataclass(frozen=True)
class Poison:
    """Attackers who change their own examples: a pure function of config, seed and data set.

    Attributes:
        adversary: What they do.
        ids: Who they are.
        seed: Seed of the experiment.
        classes: Size of the label space.
        value: What a trigger is made of.
    """

    adversary: Adversary
    ids: frozenset[int]
    seed: int
    classes: int
    value: float

    def marks(self, ids: Sequence[int], sizes: Sequence[int], stage: int) -> Tensor | None:
        """Returns which of some clients' examples are poisoned, or None where none is.

        Args:
            ids: The clients.
            sizes: Examples of each, which stand one after the other.
            stage: The stage.

        Returns:
            (sum(sizes),) bool, on the CPU: of each attacker the same examples whoever is with it.
        """
        if not self.adversary.active(stage) or self.ids.isdisjoint(ids):
            return None
        parts = []
        for id, size in zip(ids, sizes, strict=True):
            own = np.zeros(size, dtype=np.bool_)
            if id in self.ids:
                random = numpy_generator(self.seed, "poison", id, stage)
                own[random.permutation(size)[: round(self.share * size)]] = True
            parts.append(own)
        return torch.from_numpy(np.concatenate(parts))

    @property
    def share(self) -> float:
        """Share of an attacker's examples that are changed."""
        return self.adversary.poisoned or (1.0 if self.adversary.attack == "label_flip" else 0.5)

    def applied(self, data: Examples, marks: Tensor) -> Examples:
        """Returns examples of which those marked are poisoned; nothing is written to.

        Args:
            data: The examples, on any device.
            marks: (n,) bool.
        """
        marks = marks.to(data.y.device)
        if self.adversary.attack == "label_flip":
            return Examples(data.x, torch.where(marks, self._flips(data.y), data.y), data.extra)
        y = torch.where(marks, torch.full_like(data.y, self.adversary.target), data.y)
        seen = marks.view(-1, *(1,) * (data.x.dim() - 1))
        return Examples(torch.where(seen, self.triggered(data.x), data.x), y, data.extra)

    def triggered(self, x: Tensor) -> Tensor:
        """Returns (n, ...) inputs with the trigger."""
        size = self.adversary.size
        changed = x.clone()
        if x.dim() == 4:
            changed[..., -size:, -size:] = self.value
        else:
            changed[..., -size:] = self.value
        return changed

    def _flips(self, labels: Tensor) -> Tensor:
        table = torch.arange(self.classes, device=labels.device)
        if not self.adversary.flips:
            return table.flip(0)[labels]
        for label, instead in self.adversary.flips:
            table[label] = instead
        return table[labels]


def poison_of(adversary: Adversary, dataset: Dataset, clients: int, seed: int) -> Poison | None:
    """Returns what attackers do to their examples, or None where they leave them alone.

    Raises:
        ConfigError: Labels or the trigger do not fit the data set.
    """
    if not adversary.poisons:
        return None
    labels = [adversary.target] if adversary.attack == "backdoor" else []
    labels += [label for pair in adversary.flips for label in pair]
    if max(labels, default=0) >= dataset.classes:
        raise ConfigError(
            f"[adversary] names the label {max(labels)}, but labels go from 0 to "
            f"{dataset.classes - 1}"
        )
    sides = dataset.shape[-2:] if len(dataset.shape) == 3 else dataset.shape[-1:]
    if adversary.attack == "backdoor" and adversary.size >= min(sides):
        raise ConfigError(
            f"[adversary] size = {adversary.size} covers all of an input's {min(sides)} rows, "
            "columns or features: take a smaller trigger"
        )
    value = _largest(dataset) if adversary.attack == "backdoor" else 0.0
    return Poison(adversary, adversary.ids(clients, seed), seed, dataset.classes, value)


def _largest(dataset: Dataset) -> float:
    """Returns the largest value of some training inputs, evenly spaced."""
    count = len(dataset.train.labels)
    if not count or not prod(dataset.shape):
        return 1.0
    rows = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(np.int64))
    return float(dataset.train.rows(rows).max())
