"""Anchors: where features of a class shall lie, of real examples and generated ones (LANDER)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from fedcl.core.features.layers import head_answers, head_inputs
from fedcl.core.local import masked_logits
from fedcl.core.losses.distillation import Taught, over_heads
from fedcl.core.losses.prototypes import ClassVectors
from fedcl.core.model import Net
from fedcl.core.task import ClientTask, Examples


def beyond(features: Tensor, anchors: Tensor, radius: float) -> Tensor:
    """Returns (n,) values max(0, mean over numbers of (features - anchors)^2 - radius).

    LANDER's bounding loss: within the radius a feature is free.
    """
    return ((features - anchors).square().mean(1) - radius).clamp(min=0)


@dataclass(frozen=True)
class Anchors:
    """Where a class's images shall lie in the space of features.

    Attributes:
        vectors: A direction for each class; the generator gets it as the label's embedding, too.
        size: Root mean square of an anchor's numbers.
        radius: Squared distance a number that is near enough.
    """

    vectors: ClassVectors = field(default_factory=ClassVectors)
    size: float = 1.0
    radius: float = 0.015

    def __post_init__(self) -> None:
        if not (0 < self.size < float("inf") and 0 <= self.radius < float("inf")):
            raise ValueError("an anchor's size must be above 0, its radius at least 0, both finite")

    def __call__(self, classes: int, width: int) -> Tensor:
        """Returns (classes, width) float64 anchors.

        What a network's last layer gets is behind a ReLU in ours, so that no feature can reach a
        negative number: these are cut to 0 before the length is set.
        """
        rows = self.vectors(classes, width).clamp(min=0)
        return rows / rows.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12) * self.size


@dataclass(frozen=True)
class Bounded:
    """Learns present examples within their anchors' reach, and holds synthetic ones to a teacher.

    Attributes:
        anchors: The anchors.
        masked: Compare only the classes of the present task in the cross-entropy.
        bounding: Factor of `beyond`.
        current: Factor of own examples' losses from stage 1 on.
        previous: Factor of synthetic ones'.
        features: Factor of the features' mean squared distance from the teacher's, beside the
            distillation of its answers.
        temperature: T of the distillation.
    """

    rowwise: ClassVar[bool] = True

    anchors: Anchors
    masked: bool
    bounding: float
    current: float = 1.0
    previous: float = 0.0
    features: float = 0.0
    temperature: float = 2.0

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: object) -> Tensor:
        """Returns (n,) losses; of a message without heads they are the first stage's."""
        inner = head_inputs(net, batch.x)
        logits = head_answers(net, inner)
        allowed = task.present if self.masked else task.head
        own = F.cross_entropy(masked_logits(logits, allowed), batch.y, reduction="none")
        if self.bounding:
            anchors = self.anchors(logits.shape[1], inner.shape[1]).to(inner)
            own = own + self.bounding * beyond(inner, anchors[batch.y], self.anchors.radius)
        if not isinstance(message, Taught):
            return own
        old = over_heads(logits, batch.extra["teacher"], message.heads, self.temperature)
        if self.features:
            away = (inner - batch.extra["features"]).square().mean(1)
            old = old + self.features * away
        own = self.current * batch.extra["own"] * own
        return own + self.previous * batch.extra["old"] * old
